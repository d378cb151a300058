"""From the record of a job to the message about it; pure.

Owns the joining of record and logs, and what the platform's own templates are given; wording and
limits are `notification`'s. Source: host behaviour, section 1.14.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vzdump_qemu.outlet_ports import Message
from vzdump_qemu.plan.batch_record import JobRecord, RunRecord
from vzdump_qemu.plan.notification import (
    HEADINGS,
    TEMPLATE_NAME,
    GuestOutcome,
    JobOutcome,
    guest_display_name,
    render_logs,
    render_status,
    render_subject,
    render_summary,
    render_text_body,
    shown_file_name,
    shown_size_bytes,
)
from vzdump_qemu.plan.notification_html import render_html_body

# How the platform shows the cells of a column; others are plain.
_RENDERERS = {"Time": "duration", "Size": "human-bytes"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLogText:
    """The log of one run.

    Attributes:
        text: None if it could not be read.
    """

    text: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLogs:
    """What was logged for a message.

    Attributes:
        before, after: what hook scripts said before the first VM, and at the end.
        by_vmid: of the VMs that have a log.
    """

    before: Sequence[str] = ()
    after: Sequence[str] = ()
    by_vmid: Mapping[int, RunLogText] = field(default_factory=dict)


def make_outcome(
    record: JobRecord, logs: JobLogs, *, host_name: str, command_line: str
) -> JobOutcome:
    """What a message tells of.

    Args:
        host_name: with its domain.
        command_line: as the log tells it; needed for a job that failed before it began.
    """
    # A job that never got the lock has no VMs to tell of.
    runs = record.runs if record.command_line else ()
    return JobOutcome(
        host_name=host_name,
        command_line=_well_formed(command_line),
        error=_well_formed(record.error),
        guests=tuple(_make_guest(run, logs.by_vmid.get(run.vmid)) for run in runs),
        duration_s=record.duration_s if runs else 0.0,
        log_before=_well_formed("\n".join(logs.before)),
        log_after=_well_formed("\n".join(logs.after)),
    )


def make_message(outcome: JobOutcome, fields: Mapping[str, str]) -> Message:
    """The message in every form. Args: fields: what rules can match."""
    return Message(
        subject=render_subject(outcome),
        summary=render_summary(outcome),
        text=render_text_body(outcome),
        html=render_html_body(outcome),
        failed=outcome.failed,
        template_name=TEMPLATE_NAME,
        template_data=_template_data(outcome),
        fields=fields,
    )


def _make_guest(run: RunRecord, log: RunLogText | None) -> GuestOutcome:
    return GuestOutcome(
        vmid=run.vmid,
        vm_name=_well_formed(run.vm_name),
        state=run.state,
        duration_s=run.duration_s,
        size_bytes=run.size_bytes,
        file_name=_well_formed(run.location),
        log_text=None if log is None or log.text is None else _well_formed(log.text),
        is_log_unreadable=log is not None and log.text is None,
    )


def _well_formed(text: str) -> str:
    """Command lines, paths and names may hold bytes that are no text, which nobody takes."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _template_data(outcome: JobOutcome) -> Mapping[str, Any]:
    columns = []
    for heading in HEADINGS:
        column = {"label": heading, "id": heading.lower()}
        if heading in _RENDERERS:
            column["renderer"] = _RENDERERS[heading]
        columns.append(column)
    return {
        "error-message": outcome.body_error,
        "status-text": render_status(outcome),
        "guest-table": {
            "schema": {"columns": columns},
            "data": [_template_row(guest) for guest in outcome.guests],
        },
        "total-time": int(outcome.duration_s),
        "total-size": outcome.total_bytes,
        "logs": render_logs(outcome),
    }


def _template_row(guest: GuestOutcome) -> Mapping[str, Any]:
    return {
        "vmid": guest.vmid,
        "name": guest_display_name(guest),
        "status": guest.state.value,
        "time": int(guest.duration_s),
        "size": shown_size_bytes(guest),
        "filename": shown_file_name(guest),
    }
