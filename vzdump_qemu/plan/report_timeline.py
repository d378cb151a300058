"""The timeline of the report page: what each VM's run was busy with, and when; pure.

Owns the bars, their marks and their legend. A guest is frozen for milliseconds in a job of hours:
that is a mark of its own beside the bars. Nothing is told by colour alone: every bar has its
words, read out and shown on hover, and what is small is told in the table.
"""

from __future__ import annotations

from collections.abc import Sequence

from vzdump_qemu.plan.batch_record import JobRecord, Phase, PhaseRecord, RunRecord
from vzdump_qemu.plan.notification import GuestState
from vzdump_qemu.plan.report_axis import TimeAxis
from vzdump_qemu.plan.report_text import (
    DASH,
    LocalTime,
    clock,
    esc,
    freeze_length,
    length,
    vm_label,
    vm_title,
)

PHASE_CLASSES = {
    Phase.LOCKING: "wait",
    Phase.PREPARING: "prep",
    Phase.FREEZE: "frz",
    Phase.COPYING: "copy",
    Phase.PROVING: "prove",
    Phase.PUBLISHING: "publ",
    Phase.KEEPING: "keep",
    Phase.PUTTING_BACK: "back",
}
_PHASE_WORDS = {
    Phase.LOCKING: "waiting for the VM’s lock",
    Phase.PREPARING: "preparing",
    Phase.FREEZE: "freezing and fixing the point in time",
    Phase.COPYING: "copying",
    Phase.PROVING: "proving the backup",
    Phase.PUBLISHING: "publishing",
    Phase.KEEPING: "removing older backups",
    Phase.PUTTING_BACK: "putting back",
}
_LEGEND = (
    ("copy", "copying"),
    ("prove", "proving"),
    ("prep", "before and after"),
)
# With more rows than this they are drawn closer.
_ROW_COUNT_DENSE = 40
_HEIGHT, _DENSE_HEIGHT = 24, 18


def phase_words(phase: Phase) -> str:
    """What a phase is, for a reader who does not know the program."""
    return _PHASE_WORDS[phase]


def render_timeline(job: JobRecord, local_time: LocalTime) -> str:
    """The section; empty if no run began."""
    if not any(run.phases for run in job.runs):
        return ""
    axis = TimeAxis(job, local_time)
    dense = len(job.runs) > _ROW_COUNT_DENSE
    height = _DENSE_HEIGHT if dense else _HEIGHT
    rows = "\n".join(_render_row(run, axis, local_time, height) for run in job.runs)
    return (
        '<section aria-labelledby="h-timeline">\n'
        '<div class="head"><h2 id="h-timeline">Timeline</h2>'
        f"{_render_legend(job.runs)}</div>\n"
        f'<div class="timeline{" dense" if dense else ""}">\n'
        f"{_render_axis(axis)}\n{rows}\n</div>\n</section>\n"
    )


def _render_legend(runs: Sequence[RunRecord]) -> str:
    items = [
        f'<li><svg width="12" height="12" aria-hidden="true"><rect class="p-{kind}" y="2" '
        f'width="12" height="8" rx="2"/></svg>{label}</li>'
        for kind, label in _LEGEND
    ]
    if any(run.freeze for run in runs):
        items.append(
            '<li><svg width="12" height="12" viewBox="-6 0 12 12" aria-hidden="true">'
            f"{_FREEZE_MARK}</svg>guest frozen</li>"
        )
    if any(run.state is GuestState.FAILED for run in runs):
        items.append(
            '<li><svg width="12" height="12" viewBox="-6 -6 12 12" aria-hidden="true">'
            f"{_FAILURE_MARK}</svg>failed</li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


_FREEZE_MARK = '<path class="m-frz" d="M-4.5 0h9L0 7z"/>'
_FAILURE_MARK = '<path class="m-bad" d="M-3.5-3.5l7 7m0-7l-7 7"/>'


def _render_axis(axis: TimeAxis) -> str:
    labels = "".join(
        f'<text x="{tick.percent:.2f}%" y="11" dx="{3 if index else 0}">{tick.label}</text>'
        for index, tick in enumerate(axis.ticks)
    )
    grid = "".join(
        f'<line x1="{tick.percent:.2f}%" x2="{tick.percent:.2f}%" y1="0" y2="100%"/>'
        for tick in axis.ticks
    )
    return (
        '<div class="axis" aria-hidden="true"><svg width="100%" height="16">'
        f'<defs><g id="grid">{grid}</g></defs><use href="#grid"/>{labels}</svg></div>'
    )


def _render_row(run: RunRecord, axis: TimeAxis, local_time: LocalTime, height: int) -> str:
    name = f'<div class="who">{vm_label(run)}</div>'
    if not run.phases:
        words = "failed" if run.state is GuestState.FAILED else "not reached"
        return f'<div class="row missed">{name}<div class="track"><span>{words}</span></div></div>'
    bars = "".join(_render_bar(phase, axis, local_time, height) for phase in run.phases)
    marks = ""
    if run.freeze is not None:
        window_s = run.freeze.window_s
        told = f"guest frozen {freeze_length(window_s)}" if window_s is not None else "freeze"
        at = axis.percent(run.freeze.began_wall_s)
        marks = f'<svg x="{at:.2f}%" overflow="visible"><title>{told}</title>{_FREEZE_MARK}</svg>'
    if run.state is GuestState.FAILED:
        at = axis.percent(run.phases[-1].ended_wall_s)
        marks += (
            f'<svg x="{at:.2f}%" y="50%" overflow="visible"><title>failed</title>'
            f'<circle class="m-ring" r="7"/>{_FAILURE_MARK}</svg>'
        )
    told = esc(f"VM {vm_title(run)}: {_tell(run, local_time)}")
    return (
        f'<div class="row">{name}<div class="track">'
        f'<svg width="100%" height="{height}" role="img" aria-label="{told}">'
        f'<use href="#grid"/>{bars}{marks}</svg></div>'
        f'<div class="len">{length(_run_length_s(run))}</div></div>'
    )


def _render_bar(phase: PhaseRecord, axis: TimeAxis, local_time: LocalTime, height: int) -> str:
    left, right = axis.percent(phase.began_wall_s), axis.percent(phase.ended_wall_s)
    if right - left < 0.01:
        return ""
    # The dull phases are drawn thinner: they step back without being hidden.
    is_work = phase.phase in (Phase.COPYING, Phase.PROVING)
    thickness = height - (10 if is_work else 18 if height > _DENSE_HEIGHT else 14)
    words = f"{_PHASE_WORDS[phase.phase]}: {length(phase.length_s)}, from "
    words += clock(local_time(phase.began_wall_s))
    return (
        f'<rect class="p-{PHASE_CLASSES[phase.phase]}" x="{left:.2f}%" width="{right - left:.2f}%"'
        f' y="{(height - thickness) / 2:g}" height="{thickness}"><title>{words}</title></rect>'
    )


def _run_length_s(run: RunRecord) -> float:
    return run.phases[-1].ended_wall_s - run.phases[0].began_wall_s


def _tell(run: RunRecord, local_time: LocalTime) -> str:
    """The whole row in words."""
    began, ended = run.phases[0].began_wall_s, run.phases[-1].ended_wall_s
    lengths: dict[Phase, float] = {}
    for phase in run.phases:
        lengths[phase.phase] = lengths.get(phase.phase, 0.0) + phase.length_s
    parts = [f"{_PHASE_WORDS[phase]} {length(taken_s)}" for phase, taken_s in lengths.items()]
    if run.state is GuestState.FAILED:
        parts.append("failed")
    return f"{clock(local_time(began))} {DASH} {clock(local_time(ended))}; {', '.join(parts)}"
