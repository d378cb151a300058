"""What `query-backup` and `query-pbs-bitmap-info` say, as checked values; pure.

Source: pve-qemu backup QMP, sections 4 and 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from vzdump_qemu.errors import QmpError
from vzdump_qemu.events import BitmapAction
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


@dataclass(frozen=True, slots=True, kw_only=True)
class BitmapInfo:
    """What the latest backup makes of one disk's bitmap; `dirty_bytes` is what it looks at."""

    device_id: str
    action: BitmapAction
    size_bytes: int
    dirty_bytes: int


class _BitmapReply(msgspec.Struct):
    drive: str
    action: str
    size: int
    dirty: int


def parse_bitmap_infos(reply: Any) -> tuple[BitmapInfo, ...]:
    """By device id. Raises QmpError if the reply is not what QEMU's schema promises."""
    try:
        parsed = msgspec.convert(reply, list[_BitmapReply])
    except msgspec.ValidationError as error:
        raise QmpError(f"query-pbs-bitmap-info answered oddly: {error}") from error
    return tuple(
        BitmapInfo(
            device_id=found.drive,
            action=_action(found.action),
            size_bytes=found.size,
            dirty_bytes=found.dirty,
        )
        for found in sorted(parsed, key=lambda found: found.drive)
    )


def _action(text: str) -> BitmapAction:
    try:
        return BitmapAction(text)
    except ValueError:
        return BitmapAction.UNKNOWN
