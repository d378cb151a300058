"""What the command line says of the job as a whole: several VMs at once, limits, a deadline.

Owns the grammar of these options and their meaning as options of the engine. Which VMs are of
other nodes, or known to fail, is `vm_selection`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.plan.options import BatchOptions, StorageLimits

_TIME_OF_DAY = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])")
_LENGTH = re.compile(r"(?:(\d{1,4})d)?(?:(\d{1,4})h)?(?:(\d{1,5})m(?:in)?)?(?:(\d{1,6})s)?")
_LIMIT = re.compile(r"(?:(.+)=)?([1-9]\d{0,4})")


def read_batch_options(merged: Mapping[str, Any], *, now: datetime) -> BatchOptions:
    """The options of the engine.

    Args:
        merged: options by name.
        now: local time, which a deadline counts from.
    Raises:
        ConfigError: a text that means nothing; beginning with the option's name.
    """
    deadline = merged.get("deadline", "")
    return BatchOptions(
        parallel_max=merged.get("max-parallel", 1),
        storage_limits=_parse_limits(merged.get("storage-limit", ())),
        deadline_wall_s=_parse_deadline(deadline, now).timestamp() if deadline else None,
    )


def check_batch_texts(given: Mapping[str, Any]) -> None:
    """Refuse what cannot be read, before anything is done. Raises ConfigError."""
    read_batch_options(given, now=datetime(2000, 1, 1))


def _parse_deadline(text: str, now: datetime) -> datetime:
    """``6h``, ``1h30m``: so much later; ``06:00``: when the clock shows that next."""
    time_of_day = _TIME_OF_DAY.fullmatch(text)
    if time_of_day:
        hour, minute = int(time_of_day[1]), int(time_of_day[2])
        moment = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
        return moment if moment > now else moment + timedelta(days=1)
    length = _LENGTH.fullmatch(text)
    if length is None or not text:
        raise ConfigError(
            f"deadline: unable to parse '{text}'",
            hint="a length as 6h or 1h30m, or a time of day as 06:00",
        )
    days, hours, minutes, seconds = (int(part or 0) for part in length.groups())
    # As a moment, not as a reading of the clock: an hour that is put back counts twice.
    later_s = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()
    return datetime.fromtimestamp(now.timestamp() + later_s)


def _parse_limits(texts: Iterable[str]) -> StorageLimits:
    of_each: int | None = None
    by_storage: dict[str, int] = {}
    for word in (word for text in texts for word in text.split(",") if word):
        found = _LIMIT.fullmatch(word)
        if found is None:
            raise ConfigError(
                f"storage-limit: unable to parse '{word}'",
                hint="N for every storage, or STORAGE=N; several joined by commas",
            )
        name, count = found[1], int(found[2])
        if name is None:
            of_each = count
        else:
            by_storage[name] = count
    return StorageLimits(of_each=of_each, by_storage=tuple(by_storage.items()))
