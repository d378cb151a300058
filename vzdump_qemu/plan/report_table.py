"""The figures of every VM as a table, and its backups with their sizes over time; pure.

Owns columns and charts of sizes. On a narrow screen a row becomes a card, with the heading of
each column beside its figure; the roles of a table stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from vzdump_qemu.events import FreezeSkip
from vzdump_qemu.plan.batch_record import RunRecord
from vzdump_qemu.plan.notification import GuestState
from vzdump_qemu.plan.report_text import (
    NONE,
    day,
    esc,
    freeze_length,
    length,
    rate,
    size,
    vm_label,
    vm_link,
    vm_title,
)

STATE_WORDS = {
    GuestState.OK: "backed up",
    GuestState.FAILED: "failed",
    GuestState.NOT_REACHED: "not reached",
}
_STATE_CLASSES = {
    GuestState.OK: "ok",
    GuestState.FAILED: "bad",
    GuestState.NOT_REACHED: "todo",
}
_ICONS = {
    GuestState.OK: '<path d="M2.5 6.5l2.5 2.5 4.5-5.5"/>',
    GuestState.FAILED: '<path d="M3 3l6 6m0-6l-6 6"/>',
    GuestState.NOT_REACHED: '<path d="M2.5 6h7"/>',
}
_ZERO, _REUSED = "Zero", "Reused"
_HEADINGS = (
    *("VM", "State", "Mode", "Consistency", "Data path", "Duration", "Guest frozen"),
    *("Read", _ZERO, "Written", "Read rate", "Backup size"),
)
# From here on, figures: to the right, so that they stand below each other.
_FIRST_FIGURE = _HEADINGS.index("Duration")
_BAR_COUNT_MAX = 30
_SKIP_WORDS = {
    FreezeSkip.DISABLED: "no agent",
    FreezeSkip.NOT_RUNNING: "agent silent",
    FreezeSkip.ALREADY_FROZEN: "was frozen already",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PastBackup:
    """A backup of a VM that stands where this job's went.

    Attributes:
        name: of the archive, or its path at a server.
        local_time: when it began, as its name tells.
    """

    name: str
    local_time: datetime
    size_bytes: int


def state_icon(state: GuestState) -> str:
    """A mark whose shape tells the state too."""
    return f'<svg class="icon" viewBox="0 0 12 12" aria-hidden="true">{_ICONS[state]}</svg>'


def state_class(state: GuestState) -> str:
    """The class that colours a state."""
    return _STATE_CLASSES[state]


def render_table(runs: Sequence[RunRecord], *, is_server: bool) -> str:
    """The section; empty without VMs.

    Args:
        is_server: what is zero counts among what the server has already.
    """
    if not runs:
        return ""
    headings = [_REUSED if is_server and name == _ZERO else name for name in _HEADINGS]
    heads = "".join(
        f'<th role="columnheader" scope="col"{_number_class(index)}>{name}</th>'
        for index, name in enumerate(headings)
    )
    rows = "\n".join(_render_row(run, headings) for run in runs)
    return (
        '<section aria-labelledby="h-vms">\n'
        f'<div class="head"><h2 id="h-vms">Virtual machines</h2></div>\n'
        '<div class="wide"><table role="table" class="vms"><thead role="rowgroup">'
        f'<tr role="row">{heads}</tr></thead>\n'
        f'<tbody role="rowgroup">\n{rows}\n</tbody></table></div>\n</section>\n'
    )


def _number_class(index: int) -> str:
    return ' class="num"' if index >= _FIRST_FIGURE else ""


def _render_row(run: RunRecord, headings: Sequence[str]) -> str:
    state = f'<span class="state">{state_icon(run.state)}{_state_words(run)}</span>'
    transfer = run.transfer
    skipped = ""
    if transfer is not None:
        skipped = size(transfer.reused_bytes if _REUSED in headings else transfer.zero_bytes)
    cells = (
        vm_link(run),
        state,
        run.mode.value if run.mode else NONE,
        run.consistency.value if run.consistency else NONE,
        esc(run.data_path) or NONE,
        length(run.duration_s) if run.ended_wall_s is not None else NONE,
        _freeze_cell(run),
        size(transfer.read_bytes) if transfer else NONE,
        skipped or NONE,
        size(transfer.written_bytes) if transfer else NONE,
        rate(transfer.read_bytes_per_s) if transfer else NONE,
        size(run.size_bytes) if run.state is GuestState.OK and run.size_bytes else NONE,
    )
    row = []
    for index, (heading, cell) in enumerate(zip(headings, cells, strict=True)):
        if not index:
            row.append(f'<th role="rowheader" scope="row">{cell}</th>')
            continue
        empty = " empty" if cell == NONE else ""
        kind = f"{'num' if index >= _FIRST_FIGURE else ''}{empty}".strip()
        marked = f' class="{kind}"' if kind else ""
        row.append(f'<td role="cell"{marked} data-label="{heading}">{cell}</td>')
    return f'<tr role="row" class="{state_class(run.state)}">{"".join(row)}</tr>'


def _state_words(run: RunRecord) -> str:
    return "going on" if run.is_going_on else STATE_WORDS[run.state]


def _freeze_cell(run: RunRecord) -> str:
    freeze = run.freeze
    if freeze is None:
        words = _SKIP_WORDS.get(run.freeze_skip) if run.freeze_skip else None
        return f'<span class="none">{words}</span>' if words else NONE
    if freeze.window_s is None:
        return "unconfirmed"
    return freeze_length(freeze.window_s) + (" (not frozen)" if freeze.failure else "")


def render_backups(
    runs: Sequence[RunRecord], past: dict[int, Sequence[PastBackup]], *, is_server: bool
) -> str:
    """The section: where each backup is, and the sizes of those that stand beside it.

    Args:
        past: by VM, in any order, this job's own included.
        is_server: sizes are what restores, not what is stored.
    """
    shown = [run for run in runs if run.state is GuestState.OK or past.get(run.vmid)]
    if not shown:
        return ""
    items = "\n".join(_render_backup(run, past.get(run.vmid, ())) for run in shown)
    what = "as it restores" if is_server else "of the archive"
    return (
        '<section aria-labelledby="h-backups">\n'
        '<div class="head"><h2 id="h-backups">Backups</h2>'
        f'<p class="aside">size {what}, and its change on the one before</p></div>\n'
        f'<ul class="backups">\n{items}\n</ul>\n</section>\n'
    )


def _render_backup(run: RunRecord, past: Sequence[PastBackup]) -> str:
    ordered = sorted(past, key=lambda one: (one.local_time, one.name))
    own_name = run.location if run.state is GuestState.OK else ""
    is_own = [bool(own_name) and own_name.endswith(one.name) for one in ordered]
    place = f'<div class="place">{esc(run.location)}</div>' if own_name else ""
    if run.state is GuestState.OK and not own_name:
        place = '<div class="place">standard output</div>'
    return (
        f'<li class="{state_class(run.state)}"><div class="title"><span class="state">'
        f"{state_icon(run.state)}</span><span>{vm_label(run)}</span></div>"
        f'<div class="now">{_headline(run, ordered, is_own)}</div>'
        f"{_render_bars(run, ordered, is_own)}{place}</li>"
    )


def _headline(run: RunRecord, past: Sequence[PastBackup], is_own: Sequence[bool]) -> str:
    earlier = [one for one, own in zip(past, is_own, strict=True) if not own]
    if run.state is not GuestState.OK:
        last = earlier[-1]
        return (
            f'<strong>{size(last.size_bytes)}</strong> <span class="note">'
            f"the last one there, of {last.local_time:%Y-%m-%d %H:%M}</span>"
        )
    now = f"<strong>{size(run.size_bytes)}</strong>" if run.size_bytes else ""
    if not earlier:
        return f'{now} <span class="note">the only one there</span>' if past else now
    before = earlier[-1].size_bytes
    change = _change(run.size_bytes, before) if before and run.size_bytes else ""
    since = f"{len(earlier)} earlier, since {day(earlier[0].local_time)}"
    return f'{now} <span class="delta">{change}</span><span class="note">{since}</span>'


def _change(now_bytes: int, before_bytes: int) -> str:
    percent = (now_bytes - before_bytes) / before_bytes * 100
    if abs(percent) < 0.05:
        return "±0 %"
    sign = "+" if percent > 0 else "−"
    figure = f"{abs(percent):.1f}" if abs(percent) < 100 else f"{abs(percent):.0f}"
    return f"{sign}{figure} %"


def _render_bars(run: RunRecord, past: Sequence[PastBackup], is_own: Sequence[bool]) -> str:
    shown = list(zip(past, is_own, strict=True))[-_BAR_COUNT_MAX:]
    top = max((one.size_bytes for one, _ in shown), default=0)
    if len(shown) < 2 or not top:
        return ""
    # A few bars do not become planks.
    width = 100 / max(len(shown), 12)
    bars = []
    for index, (one, own) in enumerate(shown):
        height = max(2.0, one.size_bytes / top * 36)
        bars.append(
            f'<rect{" class=own" if own else ""} x="{index * width:.2f}%" '
            f'width="{width * 0.78:.2f}%" y="{36 - height:.1f}" height="{height:.1f}">'
            f"<title>{one.local_time:%Y-%m-%d %H:%M}: {size(one.size_bytes)}</title></rect>"
        )
    first, last = shown[0][0], shown[-1][0]
    told = esc(
        f"Sizes of {len(shown)} backups of VM {vm_title(run)}: {size(first.size_bytes)} on "
        f"{day(first.local_time)}, {size(last.size_bytes)} on {day(last.local_time)}"
    )
    return (
        f'<svg class="bars" width="100%" height="36" role="img" aria-label="{told}">'
        f"{''.join(bars)}</svg>"
    )
