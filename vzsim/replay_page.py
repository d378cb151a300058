"""One run as a page: a swim lane per actor, the freeze window and standstill shaded.

Self-contained HTML without scripts. Rows are events in order, not to scale: hours of waiting and
microseconds of work stand in the same picture, with the time that passed in between.
"""

from __future__ import annotations

from html import escape

from vzsim.event_log import Lane, LogEntry
from vzsim.replay import render_verdict
from vzsim.simulation import Report
from vzsim.token import Token
from vzsim.units_text import seconds_text

_LANES = (Lane.TOOL, Lane.QEMU, Lane.GUEST, Lane.AGENT, Lane.FILES)
_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #1a1a1a; background: #fff }
table { border-collapse: collapse; width: 100%; table-layout: fixed }
th { position: sticky; top: 0; background: #fff; border-bottom: 2px solid #444; text-align: left }
th, td { padding: 2px 8px; vertical-align: top; overflow-wrap: anywhere }
td + td { border-left: 1px solid #ddd }
col.time { width: 11em }
td.time { font-variant-numeric: tabular-nums; color: #666; white-space: nowrap }
tr.pause td { border-top: 1px dashed #aaa }
.frozen { background: #dcecff }
.halted { background: #ffeccc }
.fault td { background: #ffd9d6; font-weight: 600 }
.check td { background: #8c1c13; color: #fff }
.bad { color: #8c1c13 } .good { color: #19692c }
@media (prefers-color-scheme: dark) {
  body, th { background: #16181c; color: #e4e4e4 } td + td { border-color: #333 }
  .frozen { background: #1d3a5c } .halted { background: #54401a } .fault td { background: #6b211c }
  .bad { color: #ff8a80 } .good { color: #7ddc92 } td.time { color: #999 }
}
"""


def render_page(token: Token, report: Report) -> str:
    """The whole run as one HTML document."""
    verdict = "".join(
        f'<li class="{"bad" if line.startswith("VIOLATION") else "good"}">{escape(line)}</li>'
        for line in render_verdict(report)
    )
    title = f"{report.scenario.name}, seed {report.seed}"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1><p>{escape(report.scenario.about)}</p>"
        f"<p>Faults: <code>{escape(report.script.render() or 'none')}</code><br>"
        f"Token: <code>{escape(token.render())}</code></p><ul>{verdict}</ul>"
        '<p><span class="frozen">&emsp;</span> file systems frozen &emsp;'
        '<span class="halted">&emsp;</span> guest stands still</p>'
        f"<table>{_head()}{_rows(report)}</table></html>\n"
    )


def _head() -> str:
    lanes = "".join(f"<th>{lane.value}</th>" for lane in _LANES)
    columns = '<col class="time">' + "<col>" * len(_LANES)
    return f"<colgroup>{columns}</colgroup><tr><th>time</th>{lanes}</tr>"


def _rows(report: Report) -> str:
    rows = []
    frozen = halted = False
    last_ns = 0
    for entry in report.log.read():
        if entry.lane is Lane.GUEST:
            frozen = {"frozen": True, "thawed": False}.get(entry.text, frozen)
            halted = {"runs": False}.get(entry.text, halted or entry.text.startswith("stands"))
        rows.append(_row(entry, last_ns, frozen=frozen, halted=halted))
        last_ns = entry.at_ns
    return "".join(rows)


def _row(entry: LogEntry, last_ns: int, *, frozen: bool, halted: bool) -> str:
    waited_ns = entry.at_ns - last_ns
    waited = f" {seconds_text(waited_ns)}" if waited_ns else ""
    time_cell = f'<td class="time">{entry.at_ns / 1e9:.6f}{waited}</td>'
    kind = "pause" if waited_ns >= 1e9 else ""
    if entry.lane in (Lane.FAULT, Lane.CHECK):
        text = escape(entry.text)
        return (
            f'<tr class="{entry.lane.value} {kind}">{time_cell}'
            f'<td colspan="{len(_LANES)}">{text}</td></tr>'
        )
    shade = "frozen" if frozen else "halted" if halted else ""
    cells = []
    for lane in _LANES:
        mark = f' class="{shade}"' if shade and lane in (Lane.GUEST, Lane.AGENT) else ""
        cells.append(f"<td{mark}>{escape(entry.text) if lane is entry.lane else ''}</td>")
    return f'<tr class="{kind}">{time_cell}{"".join(cells)}</tr>'
