"""The time axis that the charts of the report page share; pure.

Owns the mapping of times of day to the width of a chart, and which times get a label.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from vzdump_qemu.plan.batch_record import JobRecord
from vzdump_qemu.plan.report_text import LocalTime, round_length

# So few that they do not touch on a phone: hours and minutes take less room than seconds.
TICK_COUNT_MAX = 7
TICK_WITH_SECONDS_COUNT_MAX = 5
_STEPS_S = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800),
    *(3600, 7200, 3 * 3600, 6 * 3600, 12 * 3600, 86400),
)
# Below this, seconds since the beginning say more than the time of day.
_CLOCK_SPAN_S = 60.0
_SPAN_S_MIN = 0.001
# A label that begins further to the right would leave the chart.
_LAST_LABEL_SHARE = 0.93


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One labelled time; `percent` of the chart's width."""

    percent: float
    label: str


class TimeAxis:
    """From the beginning of a job to its end, or to the last thing heard of it.

    Attributes:
        begin_s: seconds since the epoch.
        span_s: never 0.
        ticks: from left to right.
    """

    def __init__(self, job: JobRecord, local_time: LocalTime) -> None:
        begins_s = [phase.began_wall_s for run in job.runs for phase in run.phases]
        ends_s = [phase.ended_wall_s for run in job.runs for phase in run.phases]
        if job.began_wall_s is not None:
            begins_s.append(job.began_wall_s)
        if job.ended_wall_s is not None:
            ends_s.append(job.ended_wall_s)
        self.begin_s = min(begins_s, default=0.0)
        self.span_s = max(max(ends_s, default=self.begin_s) - self.begin_s, _SPAN_S_MIN)
        self.ticks = tuple(self._make_ticks(local_time))

    def percent(self, wall_s: float) -> float:
        """Where a time is, in percent of the width; kept inside."""
        return min(100.0, max(0.0, (wall_s - self.begin_s) / self.span_s * 100))

    def _make_ticks(self, local_time: LocalTime) -> list[Tick]:
        step_s = next((s for s in _STEPS_S if self.span_s / s <= _count_max(s)), 0.0)
        if not step_s:
            step_s = 86400.0 * -(-self.span_s // (86400.0 * TICK_COUNT_MAX))
        if self.span_s < _CLOCK_SPAN_S:
            moments = _multiples(0.0, self.span_s, step_s)
            return [
                Tick(percent=at_s / self.span_s * 100, label=round_length(at_s) if at_s else "0")
                for at_s in moments
                if at_s <= self.span_s * _LAST_LABEL_SHARE
            ]
        begin = local_time(self.begin_s)
        midnight = datetime(begin.year, begin.month, begin.day)
        offset_s = (begin - midnight) / timedelta(seconds=1)
        return [
            Tick(
                percent=(at_s - offset_s) / self.span_s * 100,
                label=_clock_label(midnight + timedelta(seconds=at_s), step_s),
            )
            for at_s in _multiples(offset_s, offset_s + self.span_s * _LAST_LABEL_SHARE, step_s)
        ]


def _multiples(low: float, high: float, step: float) -> list[float]:
    first = -(-low // step)
    found = []
    while first * step <= high:
        found.append(first * step)
        first += 1
    return found


def _count_max(step_s: float) -> int:
    return TICK_COUNT_MAX if step_s >= 60 else TICK_WITH_SECONDS_COUNT_MAX


def _clock_label(moment: datetime, step_s: float) -> str:
    if step_s < 60:
        return f"{moment:%H:%M:%S}"
    return f"{moment:%H:%M}" if step_s < 86400 else f"{moment:%m-%d}"
