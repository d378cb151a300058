"""Which backups a prune keeps.

Owns the rules: the newest of each of the last N periods, protected ones apart, unfinished ones
only while nothing newer is finished. Periods are those of UTC. Source: host behaviour, section 2.7.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

# In the order in which the rules are applied, with the text that tells periods apart.
_PERIODS: Final = {
    "keep-last": "%Y/%m/%d/%H/%M/%S",
    "keep-hourly": "%Y/%m/%d/%H",
    "keep-daily": "%Y/%m/%d",
    "keep-weekly": "%G/%V",
    "keep-monthly": "%Y/%m",
    "keep-yearly": "%Y",
}
KEEP_NAMES: Final = tuple(_PERIODS)


class Mark(enum.Enum):
    """What becomes of a backup."""

    KEEP = "keep"
    KEEP_PARTIAL = "keep-partial"
    PROTECTED = "protected"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptBackup:
    """What the rules look at."""

    backup_time_s: int
    is_finished: bool
    is_protected: bool


def mark_backups(backups: Sequence[KeptBackup], keep: Mapping[str, int]) -> list[Mark]:
    """One mark for each backup, in their order.

    Args:
        keep: counts by the names of `KEEP_NAMES`; without any that is positive all are kept.
    """
    order = sorted(range(len(backups)), key=lambda place: -backups[place].backup_time_s)
    marks: dict[int, Mark] = {}
    _mark_unfinished(backups, order, marks)
    marks.update({place: Mark.PROTECTED for place in order if backups[place].is_protected})
    if not any(keep.get(name, 0) > 0 for name in KEEP_NAMES):
        return [marks.get(place, Mark.KEEP) for place in range(len(backups))]
    for name in KEEP_NAMES:
        if keep.get(name, 0) > 0:
            periods = [_period(backup.backup_time_s, name) for backup in backups]
            _mark_periods(periods, order, marks, keep[name])
    return [marks.get(place, Mark.REMOVE) for place in range(len(backups))]


def _mark_unfinished(
    backups: Sequence[KeptBackup], order: Sequence[int], marks: dict[int, Mark]
) -> None:
    may_be_running = True
    for place in order:
        if not backups[place].is_finished:
            marks[place] = Mark.KEEP_PARTIAL if may_be_running else Mark.REMOVE
        may_be_running = False


def _mark_periods(
    periods: Sequence[str], order: Sequence[int], marks: dict[int, Mark], period_count_max: int
) -> None:
    covered = {periods[place] for place, mark in marks.items() if mark is Mark.KEEP}
    opened: set[str] = set()
    for place in order:
        period = periods[place]
        if place in marks or period in covered:
            continue
        if period in opened:
            marks[place] = Mark.REMOVE
        elif len(opened) >= period_count_max:
            return
        else:
            opened.add(period)
            marks[place] = Mark.KEEP


def _period(backup_time_s: int, name: str) -> str:
    moment = datetime.fromtimestamp(backup_time_s, UTC)
    return moment.strftime(_PERIODS[name])
