"""A calendar of what stays and why: months as grids, for people; pure.

Owns the layout, which fits into 80 columns; what stays is decided by `retention`. Source of the
reasons: host behaviour, section 2.7.
"""

from __future__ import annotations

import textwrap
from calendar import Calendar
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from itertools import zip_longest

from vzdump_qemu.plan.retention import (
    JUST_MADE,
    LAST_WHOLE,
    NONE_WHOLE,
    PROTECTED,
    LocalTime,
    RetentionDecision,
)
from vzdump_qemu.plan.retention_at_server import BY_SERVER, NO_VM, UNFINISHED
from vzdump_qemu.plan.retention_rule import KEEP_ALL, KeepOption

WIDTH_CHARS = 80

_LETTERS: Mapping[str, str] = {
    KeepOption.LAST.value: "l",
    KeepOption.HOURLY.value: "h",
    KeepOption.DAILY.value: "d",
    KeepOption.WEEKLY.value: "w",
    KeepOption.MONTHLY.value: "m",
    KeepOption.YEARLY.value: "y",
    KEEP_ALL: "a",
    PROTECTED: "p",
    LAST_WHOLE: "*",
    NONE_WHOLE: "?",
    JUST_MADE: "n",
    BY_SERVER: "s",
    UNFINISHED: "u",
    NO_VM: "o",
}
_GOES, _SEVERAL = "-", "+"
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
_WEEKDAYS = ("Mo", "Tu", "We", "Th", "Fr", "Sa", "Su")
_CELL_CHARS = 5
_MONTH_CHARS = _CELL_CHARS * len(_WEEKDAYS)
_MONTHS_PER_ROW = 2
_GAP = " " * 3
# More times of one day by one rule are told as a number and a span.
_TIMES_MAX = 6

_Days = Mapping[date, Sequence[tuple[datetime, RetentionDecision]]]


def render_calendar(decisions: Sequence[RetentionDecision], *, local_time: LocalTime) -> str:
    """Draw a calendar for each VM, with a legend, and lists of what does not fit into a grid.

    Args:
        decisions: newest first for each VM, as `retention.decide_retention` gives them.
        local_time: the zone they were decided in.
    Returns:
        Lines that end in line feeds; empty without decisions.
    """
    vmids = dict.fromkeys(decision.vmid for decision in decisions)
    sections = [
        _render_vm([decision for decision in decisions if decision.vmid == vmid], local_time)
        for vmid in vmids
    ]
    return "\n".join("".join(f"{line}\n" for line in section) for section in sections)


def _render_vm(decisions: Sequence[RetentionDecision], local_time: LocalTime) -> list[str]:
    days: dict[date, list[tuple[datetime, RetentionDecision]]] = {}
    renamed = []
    for decision in decisions:
        if decision.time_s is None:
            renamed.append(decision)
            continue
        moment = local_time(decision.time_s)
        days.setdefault(moment.date(), []).append((moment, decision))
    vmid = decisions[0].vmid
    stay_count = sum(decision.keep for decision in decisions)
    lines = [
        f"{'unknown VM' if vmid is None else f'VM {vmid}'}: "
        f"{stay_count} stay, {len(decisions) - stay_count} go"
    ]
    lines += _render_months(days)
    legend = _render_legend(days)
    if legend:
        lines += ["", *legend]
    several = [line for day in sorted(days) for line in _render_several(day, days[day])]
    if several:
        lines += ["", "Days on which several stay:", *several]
    if renamed:
        lines += ["", "Renamed by hand, never removed:"]
        lines += [f"  {_tell_renamed(decision)}" for decision in renamed]
    return lines


def _tell_renamed(decision: RetentionDecision) -> str:
    return f"{decision.name} (protected)" if decision.reason == PROTECTED else decision.name


def _render_months(days: _Days) -> list[str]:
    months = sorted({(day.year, day.month) for day in days})
    lines = []
    for start in range(0, len(months), _MONTHS_PER_ROW):
        row = months[start : start + _MONTHS_PER_ROW]
        grids = [_render_month(year, month, days) for year, month in row]
        lines.append("")
        for parts in zip_longest(*grids, fillvalue=""):
            lines.append(_GAP.join(part.ljust(_MONTH_CHARS) for part in parts).rstrip())
    return lines


def _render_month(year: int, month: int, days: _Days) -> list[str]:
    lines = [
        f"{_MONTHS[month - 1]} {year}".center(_MONTH_CHARS),
        "".join(f"{name:<{_CELL_CHARS}}" for name in _WEEKDAYS),
    ]
    for week in Calendar().monthdayscalendar(year, month):
        cells = []
        for day in week:
            found = days.get(date(year, month, day), ()) if day else ()
            cells.append(f"{day:>2}{_mark(found)}" if day else "")
        lines.append("".join(cell.ljust(_CELL_CHARS) for cell in cells))
    return lines


def _mark(found: Sequence[tuple[datetime, RetentionDecision]]) -> str:
    if not found:
        return ""
    letters = [_LETTERS[decision.reason] for _, decision in found if decision.keep]
    if not letters:
        return _GOES
    return letters[0] + (_SEVERAL if len(letters) > 1 else "")


def _render_legend(days: _Days) -> list[str]:
    decisions = [decision for found in days.values() for _, decision in found]
    reasons = {decision.reason for decision in decisions if decision.keep}
    words = [f"{letter} {reason}" for reason, letter in _LETTERS.items() if reason in reasons]
    marks = {_mark(found) for found in days.values()}
    if _GOES in marks:
        words.append(f"{_GOES} nothing of that day stays")
    if any(mark.endswith(_SEVERAL) for mark in marks):
        words.append(f"{_SEVERAL} several stay, the newest is shown")
    # Each entry stays on one line, however the lines break.
    glued = "   ".join(word.replace(" ", "\N{NO-BREAK SPACE}") for word in words)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in textwrap.wrap(glued, WIDTH_CHARS)]


def _render_several(day: date, found: Sequence[tuple[datetime, RetentionDecision]]) -> list[str]:
    times: dict[str, list[str]] = {}
    for moment, decision in sorted(found, key=lambda pair: pair[0]):
        if decision.keep:
            times.setdefault(decision.reason, []).append(f"{moment:%H:%M}")
    if sum(map(len, times.values())) < 2:
        return []
    words = [
        f"{reason} {' '.join(at)}"
        if len(at) <= _TIMES_MAX
        else f"{reason} {len(at)} from {at[0]} to {at[-1]}"
        for reason, at in times.items()
    ]
    return textwrap.wrap(
        f"{day.isoformat()}  {'; '.join(words)}",
        WIDTH_CHARS,
        initial_indent="  ",
        subsequent_indent=" " * 14,
    )
