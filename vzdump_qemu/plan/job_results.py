"""How every VM of a job went, as values for a program; pure.

Owns the names and their meaning (``docs/batches.md``); writing them is left to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from vzdump_qemu.errors import INTERRUPTED_TEXT
from vzdump_qemu.plan.batch_record import JobRecord, RunRecord
from vzdump_qemu.plan.notification import GuestState

NOT_REACHED_TEXT = "aborted"


def list_results(record: JobRecord) -> list[Mapping[str, Any]]:
    """One value per VM, ascending by VMID; what is not known is None."""
    runs = sorted(record.runs, key=lambda run: run.vmid)
    return [_describe(run, record) for run in runs]


def _describe(run: RunRecord, record: JobRecord) -> Mapping[str, Any]:
    is_ok = run.state is GuestState.OK
    # Interrupted before it could tell its end.
    cut = run.state is GuestState.NOT_REACHED and run.began_wall_s is not None
    transfer = run.transfer
    error, hint = run.error, run.hint
    if run.state is GuestState.NOT_REACHED:
        error, hint = (INTERRUPTED_TEXT, "") if cut else (_explain(record), record.hint)
    window_s = run.freeze.window_s if run.freeze else None
    return {
        "vmid": run.vmid,
        "name": run.vm_name or None,
        "status": GuestState.FAILED.value if cut else run.state.value,
        "error": error or None,
        "hint": hint or None,
        "archive": run.location or None if is_ok else None,
        "size_bytes": run.size_bytes if is_ok else None,
        "started": _render_time(run.began_wall_s),
        "ended": _render_time(run.ended_wall_s),
        "duration_s": _round(run.duration_s) if run.ended_wall_s is not None else None,
        "mode": run.mode.value if run.mode else None,
        "data_path": run.data_path or None,
        "consistency": run.consistency.value if run.consistency else None,
        "freeze_window_ms": _round(window_s * 1000) if window_s is not None else None,
        "downtime_s": _round(run.downtime_s) if run.downtime_s is not None else None,
        "read_bytes": transfer.read_bytes if transfer else None,
        "zero_bytes": transfer.zero_bytes if transfer else None,
        "written_bytes": transfer.written_bytes if transfer else None,
        "reused_bytes": transfer.reused_bytes if transfer else None,
        "warnings": list(run.warnings),
    }


def _explain(record: JobRecord) -> str:
    """Why a VM's run never began."""
    if not record.error:
        return NOT_REACHED_TEXT
    return f"{NOT_REACHED_TEXT}: {' '.join(record.error.split())}"


def _round(value: float) -> float:
    return round(value, 3)


def _render_time(wall_s: float | None) -> str | None:
    if wall_s is None:
        return None
    moment = datetime.fromtimestamp(wall_s, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
