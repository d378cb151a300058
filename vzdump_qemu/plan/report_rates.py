"""The throughput of a job over time, all VMs together, as a curve of the report page; pure.

Owns the sharing out of what was read and written over even stretches of time, so that nothing is
lost or counted twice, and the drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from vzdump_qemu.plan.batch_record import JobRecord, Phase, RunRecord
from vzdump_qemu.plan.report_axis import TimeAxis
from vzdump_qemu.plan.report_text import LocalTime, nice_rate_step, rate, round_rate

BIN_COUNT = 120
_GRID_LINE_COUNT_MAX = 4
_HEIGHT = 200
_TOP_SHARE = 0.94


@dataclass(frozen=True, slots=True, kw_only=True)
class RateCurve:
    """Mean rates over stretches of equal length.

    Attributes:
        bin_s: length of one stretch.
        read_bytes_per_s, written_bytes_per_s: one figure a stretch.
    """

    bin_s: float
    read_bytes_per_s: Sequence[float]
    written_bytes_per_s: Sequence[float]

    @property
    def peak_bytes_per_s(self) -> float:
        return max(*self.read_bytes_per_s, *self.written_bytes_per_s)


def make_rate_curve(job: JobRecord, *, begin_s: float, span_s: float) -> RateCurve:
    """Add up what all VMs read and wrote.

    Args:
        begin_s: seconds since the epoch.
        span_s: above 0; what lies outside counts in the first or last stretch.
    """
    bin_s = span_s / BIN_COUNT
    read, written = [0.0] * BIN_COUNT, [0.0] * BIN_COUNT
    for run in job.runs:
        points = _points(run)
        for before, after in pairwise(points):
            begin, end = (before[0] - begin_s) / bin_s, (after[0] - begin_s) / bin_s
            _share_out(read, begin, end, after[1] - before[1])
            _share_out(written, begin, end, after[2] - before[2])
    return RateCurve(
        bin_s=bin_s,
        read_bytes_per_s=[amount / bin_s for amount in read],
        written_bytes_per_s=[amount / bin_s for amount in written],
    )


def _points(run: RunRecord) -> list[tuple[float, float, float]]:
    """Time, read and written bytes of a run since its copying began; amounts never fall."""
    copying = [phase for phase in run.phases if phase.phase is Phase.COPYING]
    if not copying or not (run.samples or run.transfer):
        return []
    points: list[tuple[float, float, float]] = [(copying[0].began_wall_s, 0.0, 0.0)]
    ends = [(s.wall_s, s.read_bytes, s.written_bytes) for s in run.samples]
    if run.transfer is not None:
        transfer = run.transfer
        ends.append((copying[-1].ended_wall_s, transfer.read_bytes, transfer.written_bytes))
    for wall_s, read_bytes, written_bytes in ends:
        last = points[-1]
        points.append((max(wall_s, last[0]), max(read_bytes, last[1]), max(written_bytes, last[2])))
    return points


def _share_out(bins: list[float], begin: float, end: float, amount: float) -> None:
    """Add an amount to the stretches between two places, evenly; places count in stretches."""
    last = len(bins) - 1
    if end <= begin:
        bins[min(max(int(begin), 0), last)] += amount
        return
    index = int(max(begin, 0.0))
    at = begin
    while at < end:
        until = end if index >= last else min(end, index + 1.0)
        bins[min(index, last)] += amount * (until - at) / (end - begin)
        at = until
        index += 1


def render_rates(job: JobRecord, local_time: LocalTime) -> str:
    """The section; empty if no VM was copied at all."""
    if not any(_points(run) for run in job.runs):
        return ""
    axis = TimeAxis(job, local_time)
    curve = make_rate_curve(job, begin_s=axis.begin_s, span_s=axis.span_s)
    peak = curve.peak_bytes_per_s
    if peak <= 0:
        return ""
    step = nice_rate_step(peak, count_max=_GRID_LINE_COUNT_MAX)
    top = max(peak / _TOP_SHARE, step)
    whose = "All VMs together, b" if len(job.runs) > 1 else "B"
    told = f"Read and written bytes per second over time; peak {rate(peak)}."
    return (
        '<section aria-labelledby="h-rates">\n'
        '<div class="head"><h2 id="h-rates">Throughput</h2><ul class="legend">'
        '<li><svg width="16" height="12" aria-hidden="true"><path class="c-read" '
        'd="M0 3h16v9H0z"/><path class="c-read-line" d="M0 3h16"/></svg>read</li>'
        '<li><svg width="16" height="12" aria-hidden="true"><path class="c-write" '
        'd="M0 6h16"/></svg>written</li></ul></div>\n'
        '<figure class="chart"><div class="plot">'
        f"{_render_labels(step, top)}"
        f'<svg width="100%" height="{_HEIGHT + 18}" role="img" aria-label="{told}">'
        f'<svg width="100%" height="{_HEIGHT}" viewBox="0 0 1000 100" '
        f'preserveAspectRatio="none">{_render_curves(curve, top)}</svg>'
        f"{_render_grid(step, top, axis)}</svg></div>\n"
        f"<figcaption>{whose}efore compression. Peak {rate(peak)} read.</figcaption></figure>\n"
        "</section>\n"
    )


def _render_curves(curve: RateCurve, top: float) -> str:
    read = _step_path(curve.read_bytes_per_s, top)
    written = _step_path(curve.written_bytes_per_s, top)
    return (
        f'<path class="c-read" d="M0 100{read}V100z"/>'
        f'<path class="c-read-line" d="M0 100{read}V100"/>'
        f'<path class="c-write" d="M0 100{written}V100"/>'
    )


def _step_path(rates: Sequence[float], top: float) -> str:
    width = 1000 / len(rates)
    path: list[str] = []
    last_y = ""
    for index, one in enumerate(rates):
        y = f"{100 - one / top * 100:.1f}"
        if y == last_y:
            path[-1] = f"H{(index + 1) * width:.1f}"
            continue
        path += [f"V{y}", f"H{(index + 1) * width:.1f}"]
        last_y = y
    return "".join(path)


def _render_labels(step: float, top: float) -> str:
    texts = "".join(
        f'<text x="100%" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        for y, label in _levels(step, top)
    )
    return (
        f'<svg class="ylab" width="100%" height="{_HEIGHT + 18}" aria-hidden="true">{texts}</svg>'
    )


def _levels(step: float, top: float) -> list[tuple[float, str]]:
    """Height from above, and label, of each line of the grid; the lowest one first."""
    levels = [(float(_HEIGHT), "0")]
    while len(levels) * step <= top:
        level = len(levels) * step
        levels.append((_HEIGHT * (1 - level / top), round_rate(level)))
    return levels


def _render_grid(step: float, top: float, axis: TimeAxis) -> str:
    parts = [
        f'<line{" class=base" if label == "0" else ""} x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
        for y, label in _levels(step, top)
    ]
    for index, tick in enumerate(axis.ticks):
        parts.append(
            f'<text x="{tick.percent:.2f}%" y="{_HEIGHT + 15}" dx="{3 if index else 0}">'
            f"{tick.label}</text>"
        )
    return f'<g class="grid" aria-hidden="true">{"".join(parts)}</g>'
