"""Points in time as PBS writes them: RFC 3339 with whole seconds.

Owns the two forms of the text; which clock they come from is left to the caller.
Source: PBS formats, sections 1 and 9.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from typing import Final

from vzdump_qemu.errors import PbsError

BACKUP_TIME_S_MIN: Final = 1
# The last second whose year has four digits.
TIME_S_MAX: Final = 253402300799

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_UTC_TEXT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_ANY_TEXT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(Z|[+-][0-9]{2}:[0-9]{2})"
)


# The same few times are part of every path that a backup has.
@lru_cache(maxsize=64)
def render_utc(time_s: int) -> str:
    """Seconds since the epoch as ``2023-11-14T22:13:20Z``.

    Raises:
        PbsError: before 1970 or after 9999.
    """
    return f"{_moment(time_s).replace(tzinfo=None).isoformat()}Z"


def render_local(time_s: int, *, utc_offset_s: int = 0) -> str:
    """Seconds since the epoch as ``2023-11-14T22:13:20+00:00``.

    Args:
        utc_offset_s: of the writer's local time, whole minutes, less than a day.

    Raises:
        PbsError: before 1970 or after 9999, or an offset that the text cannot hold.
    """
    if abs(utc_offset_s) >= 86400 or utc_offset_s % 60:
        raise PbsError(f"time offset of {utc_offset_s} seconds cannot be written")
    try:
        local = _moment(time_s).astimezone(timezone(timedelta(seconds=utc_offset_s)))
    except OverflowError as error:
        raise PbsError(f"time {time_s} cannot be written as text") from error
    return local.isoformat()


@lru_cache(maxsize=64)
def parse_utc(text: str) -> int:
    """Seconds since the epoch of a text of `render_utc`.

    Raises:
        PbsError: another form, or no such day or time.
    """
    if not _UTC_TEXT.fullmatch(text):
        raise PbsError(f"not a time in UTC: {ascii(text)[:60]}")
    return parse_any(text)


def parse_any(text: str) -> int:
    """Seconds since the epoch of a text with ``Z`` or an offset.

    Raises:
        PbsError: another form, or no such day or time, or before 1970.
    """
    match = _ANY_TEXT.fullmatch(text)
    if not match:
        raise PbsError(f"not a time: {ascii(text)[:60]}")
    try:
        moment = datetime.fromisoformat(match[1] + ("+00:00" if match[2] == "Z" else match[2]))
    except ValueError as error:
        raise PbsError(f"no such time: {text}") from error
    time_s = (moment - _EPOCH) // _SECOND
    if not 0 <= time_s <= TIME_S_MAX:
        raise PbsError(f"time {text} is out of range")
    return time_s


def _moment(time_s: int) -> datetime:
    if not 0 <= time_s <= TIME_S_MAX:
        raise PbsError(f"time {time_s} cannot be written as text")
    return _EPOCH + timedelta(seconds=time_s)
