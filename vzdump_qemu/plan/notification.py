"""The message that tells how a job ended: who gets it, its subject and its text; pure.

Owns policy, wording and limits; sending is an adapter's, the HTML body `notification_html`'s.
Source: host behaviour, section 1.14.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vzdump_qemu.units import KIB, render_bytes, render_duration

SENDER_NAME = "vzdump backup tool"
TEMPLATE_NAME = "vzdump"
LOG_TOO_LONG = "Log output was too long to be sent. See Task History for details!"
HEADINGS = ("VMID", "Name", "Status", "Time", "Size", "Filename")

_LOG_BYTES_MAX = 1024 * KIB
# Mail allows lines of 998 bytes.
_LINE_CHARS_MAX = 990


class NotificationMode(enum.Enum):
    """The option ``notification-mode``."""

    AUTO = "auto"
    LEGACY_SENDMAIL = "legacy-sendmail"
    NOTIFICATION_SYSTEM = "notification-system"


class MailPolicy(enum.Enum):
    """The option ``mailnotification``."""

    ALWAYS = "always"
    FAILURE = "failure"


class Delivery(enum.Enum):
    """Where the message goes."""

    NOBODY = enum.auto()
    MAIL = enum.auto()
    NOTIFICATION_SYSTEM = enum.auto()


class GuestState(enum.Enum):
    """How far a job came with one VM."""

    OK = "ok"
    FAILED = "err"
    NOT_REACHED = "todo"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestOutcome:
    """One VM of the job.

    Attributes:
        size_bytes, file_name: of the archive; shown of a VM that is OK only.
        log_text: of the run; None if there is none.
        is_log_unreadable: there is one, and it could not be read.
    """

    vmid: int
    vm_name: str
    state: GuestState
    duration_s: float = 0.0
    size_bytes: int = 0
    file_name: str = ""
    log_text: str | None = None
    is_log_unreadable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutcome:
    """What a message tells of.

    Attributes:
        error: of the job itself, lines separated by line feeds; empty if only VMs failed.
        guests: in the order of the job; empty if it never came so far.
        log_before: what hooks said before the first VM.
        log_after: what hooks said at the end.
    """

    host_name: str
    command_line: str
    error: str
    guests: Sequence[GuestOutcome]
    duration_s: float
    log_before: str = ""
    log_after: str = ""

    @property
    def failed(self) -> bool:
        """Whether the job or any VM of it failed."""
        return bool(self.error) or any(guest.state is not GuestState.OK for guest in self.guests)

    @property
    def body_error(self) -> str:
        """The error as far as the subject does not tell it."""
        error = self.error.strip("\n")
        return error if "\n" in error else ""

    @property
    def total_bytes(self) -> int:
        """Of all archives that were made."""
        return sum(shown_size_bytes(guest) for guest in self.guests)


def choose_delivery(
    mode: NotificationMode, policy: MailPolicy, *, has_recipients: bool, failed: bool
) -> Delivery:
    """Who is told. The policy counts for mail only: the notification system has its own.

    Args:
        has_recipients: the option ``mailto`` names somebody.
    """
    if mode is NotificationMode.NOTIFICATION_SYSTEM:
        return Delivery.NOTIFICATION_SYSTEM
    if not has_recipients:
        is_auto = mode is NotificationMode.AUTO
        return Delivery.NOTIFICATION_SYSTEM if is_auto else Delivery.NOBODY
    wanted = failed or policy is MailPolicy.ALWAYS
    return Delivery.MAIL if wanted else Delivery.NOBODY


def notification_fields(*, node_name: str, job_id: str = "") -> Mapping[str, str]:
    """What the notification system's rules can match."""
    fields = {"type": TEMPLATE_NAME, "hostname": node_name}
    return {**fields, "job-id": job_id} if job_id else fields


def render_severity(outcome: JobOutcome) -> str:
    """``error`` or ``info``."""
    return "error" if outcome.failed else "info"


def render_status(outcome: JobOutcome) -> str:
    """``backup successful``, or ``backup failed`` with the job's own error if it has one."""
    if not outcome.failed:
        return "backup successful"
    error = outcome.error.strip("\n")
    if not error:
        return "backup failed"
    return f"backup failed: {'multiple problems' if outcome.body_error else error}"


def render_subject(outcome: JobOutcome) -> str:
    """The subject, one line."""
    status = " ".join(render_status(outcome).split())
    return f"vzdump backup status ({outcome.host_name}): {status}"


def guest_row(guest: GuestOutcome) -> tuple[str, ...]:
    """The cells of one VM under `HEADINGS`."""
    return (
        str(guest.vmid),
        guest_display_name(guest),
        guest.state.value,
        render_duration(guest.duration_s),
        render_bytes(shown_size_bytes(guest)),
        shown_file_name(guest),
    )


def guest_display_name(guest: GuestOutcome) -> str:
    """The VM's name, or what stands for one."""
    return guest.vm_name or f"VM {guest.vmid}"


def shown_file_name(guest: GuestOutcome) -> str:
    """Where the VM's backup is; empty if there is none."""
    return guest.file_name if guest.state is GuestState.OK else ""


def shown_size_bytes(guest: GuestOutcome) -> int:
    """What the VM's backup takes; 0 if there is none."""
    return guest.size_bytes if guest.state is GuestState.OK else 0


def render_text_body(outcome: JobOutcome) -> str:
    """The message as plain text, without a long line."""
    lines = [render_summary(outcome), "", "Logs", "====", "", render_logs(outcome)]
    return break_long_lines("\n".join(lines))


def render_summary(outcome: JobOutcome) -> str:
    """The message without its logs, without a long line."""
    rows = [HEADINGS, *(guest_row(guest) for guest in outcome.guests)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(HEADINGS))]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines = [
        *([outcome.body_error, ""] if outcome.body_error else []),
        *("Details", "=======", ""),
        *table,
        "",
        f"Total running time: {render_duration(outcome.duration_s)}",
        f"Total size: {render_bytes(outcome.total_bytes)}",
    ]
    return break_long_lines("\n".join(lines))


def render_logs(outcome: JobOutcome) -> str:
    """The logs of the job and of its VMs, or one line instead if they are too long to be sent."""
    parts = [outcome.command_line, "", *outcome.log_before.splitlines()]
    for guest in outcome.guests:
        parts += [f"{guest.vmid}: {line}" for line in _log_lines(guest)]
    parts += outcome.log_after.splitlines()
    text = "".join(f"{line}\n" for line in parts)
    if len(text.encode("utf-8", "surrogateescape")) > _LOG_BYTES_MAX:
        return f"{LOG_TOO_LONG}\n"
    return break_long_lines(text)


def break_long_lines(text: str) -> str:
    """Break lines that mail would not carry."""
    return "\n".join(
        line[start : start + _LINE_CHARS_MAX]
        for line in text.split("\n")
        for start in range(0, max(len(line), 1), _LINE_CHARS_MAX)
    )


def _log_lines(guest: GuestOutcome) -> Sequence[str]:
    if guest.is_log_unreadable:
        return ("Could not open log file",)
    if guest.log_text is None:
        return ("no log available",)
    return guest.log_text.splitlines()
