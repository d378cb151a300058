"""A job as one page: verdict, what needs a look, course, figures, backups; pure.

Owns the order of the page, its head and the words of the verdict. The page needs nothing beside
itself: no script, no font, no address. Its parts are `report_timeline`, `report_rates` and
`report_table`, its looks are `report_style`; writing it is an adapter's.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vzdump_qemu.plan.batch_record import JobRecord, RunRecord
from vzdump_qemu.plan.notification import GuestState
from vzdump_qemu.plan.report_details import render_details
from vzdump_qemu.plan.report_rates import render_rates
from vzdump_qemu.plan.report_style import STYLE
from vzdump_qemu.plan.report_table import (
    PastBackup,
    render_backups,
    render_table,
    state_icon,
)
from vzdump_qemu.plan.report_text import (
    DASH,
    LocalTime,
    count,
    esc,
    freeze_length,
    length,
    lines,
    rate,
    size,
    span,
    vm_link,
)
from vzdump_qemu.plan.report_timeline import render_timeline

WARNINGS_SHOWN_MAX = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFacts:
    """What a page is made from.

    Attributes:
        past: the backups that stand in the target, by VM; this job's own may be among them.
        zone: of `local_time`, as the page names it; may be empty.
    """

    job: JobRecord
    local_time: LocalTime
    zone: str = ""
    program: str = "vzdump-qemu"
    past: Mapping[int, Sequence[PastBackup]] = field(default_factory=dict)


class _Tone(enum.Enum):
    GOOD = "ok"
    DOUBTFUL = "warn"
    BAD = "bad"


_TONE_ICONS = {
    _Tone.GOOD: state_icon(GuestState.OK),
    _Tone.DOUBTFUL: '<svg class="icon" viewBox="0 0 12 12" aria-hidden="true">'
    '<path d="M6 2.5v4.5m0 2v.5"/></svg>',
    _Tone.BAD: state_icon(GuestState.FAILED),
}


def render_report(facts: ReportFacts) -> str:
    """The whole page."""
    job = facts.job
    tone, verdict = _judge(job)
    # A path at a server has no root.
    is_server = any(run.location and not run.location.startswith("/") for run in job.runs)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{esc(f'{verdict} ({job.host_name})')}</title>\n"
        f"<style>{STYLE}</style>\n</head>\n<body>\n"
        f"{_render_head(facts, tone, verdict)}"
        "<main>\n"
        f"{_render_attention(facts)}"
        f"{render_timeline(job, facts.local_time)}"
        f"{render_rates(job, facts.local_time)}"
        f"{render_table(job.runs, is_server=is_server)}"
        f"{render_backups(job.runs, dict(facts.past), is_server=is_server)}"
        f"{render_details(job.runs, facts.local_time)}"
        "</main>\n"
        f"{_render_foot(facts)}"
        "</body>\n</html>\n"
    )


def _judge(job: JobRecord) -> tuple[_Tone, str]:
    all_count = len(job.runs)
    good_count = len(job.in_state(GuestState.OK))
    if job.ended_wall_s is None:
        return _Tone.DOUBTFUL, "Backup job not ended"
    if not all_count:
        failed = (_Tone.BAD, "Backup job failed")
        return failed if job.error else (_Tone.DOUBTFUL, "There was nothing to back up")
    if good_count < all_count:
        if all_count == 1:
            return _Tone.BAD, f"VM {job.runs[0].vmid} was not backed up"
        if not good_count:
            return _Tone.BAD, f"None of {all_count} VMs was backed up"
        missing = all_count - good_count
        return _Tone.BAD, f"{missing} of {all_count} VMs {_was(missing)} not backed up"
    if job.error:
        return _Tone.BAD, "Backup job failed after its last VM"
    whole = f"VM {job.runs[0].vmid} is backed up"
    if all_count > 1:
        whole = f"All {all_count} VMs are backed up"
    if job.warning_count:
        return _Tone.DOUBTFUL, f"{whole}, with {count(job.warning_count, 'warning')}"
    return _Tone.GOOD, whole


def _was(number: int) -> str:
    return "was" if number == 1 else "were"


def _render_head(facts: ReportFacts, tone: _Tone, verdict: str) -> str:
    job = facts.job
    when = ""
    if job.began_wall_s is not None:
        end_s = job.ended_wall_s if job.ended_wall_s is not None else job.began_wall_s
        when = span(facts.local_time(job.began_wall_s), facts.local_time(end_s))
        when += f" {facts.zone}" if facts.zone else ""
    return (
        f'<header class="{tone.value}">\n'
        f'<p class="kind">Backup report <span>{esc(job.host_name)}</span></p>\n'
        f'<h1><span class="badge">{_TONE_ICONS[tone]}</span>{esc(verdict)}</h1>\n'
        f'<p class="when">{esc(when)}</p>\n'
        f"{_render_figures(job)}</header>\n"
    )


def _render_figures(job: JobRecord) -> str:
    """The job in a few figures; those that say nothing are left out."""
    transfers = [run.transfer for run in job.runs if run.transfer is not None]
    windows = [run.freeze.window_s for run in job.runs if run.freeze and run.freeze.window_s]
    # A job that was refused took no time worth a figure.
    figures = [("Duration", length(job.duration_s), "")] if job.duration_s >= 0.001 else []
    if job.runs:
        figures.insert(0, ("VMs backed up", *_vm_figure(job)))
    if job.size_bytes:
        figures.append(("Backup size", size(job.size_bytes), ""))
    if transfers:
        read_bytes = sum(one.read_bytes for one in transfers)
        written_bytes = sum(one.written_bytes for one in transfers)
        copy_s = sum(one.duration_s for one in transfers)
        figures.append(("Read", size(read_bytes), f"{size(written_bytes)} written"))
        if copy_s > 0:
            figures.append(("Read rate", rate(read_bytes / copy_s), "mean, while copying"))
    if windows:
        among = f"of {len(windows)}" if len(windows) > 1 else ""
        figures.append(("Longest freeze", freeze_length(max(windows)), among))
    items = "".join(
        f"<div><dt>{label}</dt><dd>{value}{f' <small>{note}</small>' if note else ''}</dd></div>"
        for label, value, note in figures
    )
    return f'<dl class="figures">{items}</dl>\n'


def _vm_figure(job: JobRecord) -> tuple[str, str]:
    good, missed = job.in_state(GuestState.OK), job.in_state(GuestState.NOT_REACHED)
    failed_count = len(job.in_state(GuestState.FAILED))
    notes = [f"{failed_count} failed"] if failed_count else []
    notes += [f"{len(missed)} not reached"] if missed else []
    if not notes:
        return str(len(good)), ""
    return f"{len(good)} of {len(job.runs)}", ", ".join(notes)


def _render_attention(facts: ReportFacts) -> str:
    job = facts.job
    items = []
    if job.error:
        items.append(_problem("bad", "The job", job.error, job.hint))
    for run in job.in_state(GuestState.FAILED):
        text = run.error or "no reason was told"
        items.append(_problem("bad", vm_link(run), text, run.hint, _standing(run, facts)))
    missed = job.in_state(GuestState.NOT_REACHED)
    if missed and job.ended_wall_s is not None:
        who = ", ".join(str(run.vmid) for run in missed)
        text = "The job ended before these VMs had their turn: " + who
        items.append(_problem("todo", "Not reached", text, ""))
    if job.warnings:
        items.append(_warnings("The job", job.warnings))
    items += [_warnings(vm_link(run), run.warnings) for run in job.runs if run.warnings]
    if not items:
        return ""
    body = "\n".join(items)
    return (
        '<section aria-labelledby="h-look">\n'
        '<div class="head"><h2 id="h-look">Needs a look</h2></div>\n'
        f'<ul class="problems">\n{body}\n</ul>\n</section>\n'
    )


def _standing(run: RunRecord, facts: ReportFacts) -> str:
    """What a VM can be restored from, now that this job made nothing."""
    if run.vmid not in facts.past:
        return ""
    past = sorted(facts.past[run.vmid], key=lambda one: one.local_time)
    if not past:
        return "There is no earlier backup of this VM."
    last = past[-1]
    return f"Last backup there: {last.local_time:%Y-%m-%d %H:%M}, {size(last.size_bytes)}."


def _problem(kind: str, who: str, text: str, hint: str, standing: str = "") -> str:
    icon = state_icon(GuestState.FAILED if kind == "bad" else GuestState.NOT_REACHED)
    more = f'<p class="hint">{lines(hint[:1].upper() + hint[1:])}</p>' if hint else ""
    more += f'<p class="hint">{esc(standing)}</p>' if standing else ""
    return (
        f'<li class="{kind}"><span class="badge">{icon}</span><div><h3>{who}</h3>'
        f"<p>{lines(text)}</p>{more}</div></li>"
    )


def _warnings(who: str, texts: Sequence[str]) -> str:
    shown = "".join(f"<p>{lines(text)}</p>" for text in texts[:WARNINGS_SHOWN_MAX])
    left_count = len(texts) - WARNINGS_SHOWN_MAX
    if left_count > 0:
        shown += f'<p class="hint">{count(left_count, "more warning")}: see the log.</p>'
    badge = f'<span class="badge">{_TONE_ICONS[_Tone.DOUBTFUL]}</span>'
    return f'<li class="warn">{badge}<div><h3>{who}</h3>{shown}</div></li>'


def _render_foot(facts: ReportFacts) -> str:
    job = facts.job
    command = f"<p><code>{esc(job.command_line)}</code></p>\n" if job.command_line else ""
    waited = ""
    if job.lock_wait_s >= 1:
        waited = f" The job waited {length(job.lock_wait_s)} for another one."
    return (
        f"<footer>\n{command}<p>{esc(facts.program)}{' ' + DASH if waited else ''}{waited}</p>\n"
        "</footer>\n"
    )
