"""What the host's journal keeps of a job: lines as syslog had them, and entries to search by.

Owns the fields and when an entry is one of an error; the encoding is `formats.journal_entry`'s.
Pure. Source: host behaviour, sections 1.6, 1.7 and 1.12.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from vzdump_qemu.plan.batch_record import JobRecord, RunRecord
from vzdump_qemu.plan.notification import GuestState
from vzdump_qemu.units import render_bytes, render_duration

IDENTIFIER = "vzdump"
RUN_MESSAGE_ID = "1d8d3b86b0fa497b8364bc12a28f00e3"
"""Of the entry about one VM's backup, whether it ended well or not."""
JOB_MESSAGE_ID = "e64d3f8e1b0246bf83cd81c56c70410a"
"""Of the entry about a whole job."""


class Priority(enum.Enum):
    """Severities of syslog, as far as they are used."""

    ERROR = 3
    WARNING = 4
    INFO = 6


def line_entry(text: str, priority: Priority, *, vmid: int | None = None) -> Mapping[str, str]:
    """One line of the log."""
    vm = {} if vmid is None else {"VZDUMP_VMID": str(vmid)}
    return {**_head(text, priority), **vm}


def run_entry(run: RunRecord, *, job_id: str = "") -> Mapping[str, str]:
    """One VM of a job, once nothing more will be said about it."""
    is_ok = run.state is GuestState.OK
    name = f" ({run.vm_name})" if run.vm_name else ""
    if is_ok:
        size = render_bytes(run.size_bytes)
        told = f"backed up, {size} in {render_duration(run.duration_s)}"
    else:
        told = f"not backed up: {run.error}"
    transfer = run.transfer
    facts: dict[str, object | None] = {
        "VZDUMP_VMID": run.vmid,
        "VZDUMP_VM_NAME": run.vm_name,
        "VZDUMP_STATE": run.state.value,
        "VZDUMP_ARCHIVE": run.location if is_ok else "",
        "VZDUMP_SIZE_BYTES": run.size_bytes if is_ok else None,
        "VZDUMP_DURATION_S": _seconds(run.duration_s),
        "VZDUMP_MODE": run.mode.value if run.mode else "",
        "VZDUMP_DATA_PATH": run.data_path,
        "VZDUMP_CONSISTENCY": run.consistency.value if run.consistency else "",
        "VZDUMP_FREEZE_WINDOW_S": _seconds(run.freeze.window_s if run.freeze else None),
        "VZDUMP_DOWNTIME_S": _seconds(run.downtime_s),
        "VZDUMP_READ_BYTES": transfer.read_bytes if transfer else None,
        "VZDUMP_WRITTEN_BYTES": transfer.written_bytes if transfer else None,
        "VZDUMP_WARNINGS": len(run.warnings),
        "VZDUMP_ERROR": run.error,
        "VZDUMP_HINT": run.hint,
        "VZDUMP_LOG": run.side_log_path or run.log_path,
        "VZDUMP_JOB_ID": job_id,
    }
    priority = Priority.INFO if is_ok else Priority.ERROR
    return _entry(f"VM {run.vmid}{name}: {told}", priority, RUN_MESSAGE_ID, facts)


def job_entry(record: JobRecord, *, status: str, job_id: str = "") -> Mapping[str, str]:
    """A whole job that has ended. Args: status: one line that tells how."""
    of_state = {state: record.in_state(state) for state in GuestState}
    facts: dict[str, object | None] = {
        "VZDUMP_COMMAND_LINE": record.command_line,
        "VZDUMP_ERROR": record.error,
        "VZDUMP_HINT": record.hint,
        "VZDUMP_DURATION_S": _seconds(record.duration_s),
        "VZDUMP_SIZE_BYTES": record.size_bytes,
        "VZDUMP_VMS_OK": len(of_state[GuestState.OK]),
        "VZDUMP_VMS_FAILED": len(of_state[GuestState.FAILED]),
        "VZDUMP_VMS_NOT_REACHED": len(of_state[GuestState.NOT_REACHED]),
        "VZDUMP_WARNINGS": record.warning_count,
        "VZDUMP_JOB_ID": job_id,
    }
    priority = Priority.INFO if record.ok else Priority.ERROR
    return _entry(status, priority, JOB_MESSAGE_ID, facts)


def _entry(
    text: str, priority: Priority, message_id: str, facts: Mapping[str, object | None]
) -> Mapping[str, str]:
    known = {name: str(fact) for name, fact in facts.items() if fact not in (None, "")}
    return {**_head(text, priority), "MESSAGE_ID": message_id, **known}


def _head(text: str, priority: Priority) -> Mapping[str, str]:
    return {
        "MESSAGE": text,
        "PRIORITY": str(priority.value),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
    }


def _seconds(length_s: float | None) -> str | None:
    return None if length_s is None else f"{length_s:.3f}"
