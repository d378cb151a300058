"""What `query-backup` says, as a checked value; pure.

Source: pve-qemu backup QMP, section 4.
"""

from __future__ import annotations

from typing import Any

import msgspec

from vzdump_qemu.errors import QmpError
from vzdump_qemu.ports import JobProgress, JobStatus


class _Reply(msgspec.Struct, rename="kebab"):
    status: str = ""
    uuid: str = ""
    errmsg: str = ""
    backup_file: str = ""
    total: int = 0
    dirty: int | None = None
    transferred: int = 0
    zero_bytes: int = 0
    reused: int = 0
    finishing: bool = False


def parse_job_progress(reply: Any) -> JobProgress:
    """Check one reply. Raises QmpError if it is not what QEMU's schema promises."""
    try:
        parsed = msgspec.convert(reply, _Reply)
    except msgspec.ValidationError as error:
        raise QmpError(f"query-backup answered oddly: {error}") from error
    try:
        status = JobStatus(parsed.status)
    except ValueError:
        status = JobStatus.UNKNOWN
    return JobProgress(
        status=status,
        status_text=parsed.status,
        uuid=parsed.uuid,
        backup_file=parsed.backup_file,
        error_text=parsed.errmsg.strip(),
        total_bytes=parsed.total,
        dirty_bytes=parsed.total if parsed.dirty is None else parsed.dirty,
        transferred_bytes=parsed.transferred,
        zero_bytes=parsed.zero_bytes,
        reused_bytes=parsed.reused,
        finishing=parsed.finishing,
    )
