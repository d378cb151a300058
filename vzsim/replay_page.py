"""One run as a page: a swim lane per actor, the freeze window and standstill shaded.

Self-contained HTML without scripts. Rows are events in order, not to scale: hours of waiting and
microseconds of work stand in the same picture, with the time that passed in between.
"""

from __future__ import annotations

from html import escape

from vzsim.event_log import Lane, LogEntry
from vzsim.replay import render_verdict
from vzsim.token import Token
from vzsim.trial import Report
from vzsim.units_text import seconds_text

_LANES = (Lane.TOOL, Lane.QEMU, Lane.GUEST, Lane.AGENT, Lane.FILES)
_STYLE = """
:root {
  --bg: #fff; --ink: #1c2128; --soft: #57606a; --line: #d9dee4; --frozen: #dcecff;
  --halted: #ffeccc; --fault: #ffdfdb; --check: #b42318; --bad: #b42318; --good: #1a7f37;
}
@media (prefers-color-scheme: dark) {
  :root {
    --bg: #101418; --ink: #e4e8ec; --soft: #9ba6b2; --line: #2d353e; --frozen: #1b3557;
    --halted: #4a3816; --fault: #5a211c; --check: #b42318; --bad: #ff8a80; --good: #5bc47c;
  }
}
body {
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", sans-serif; color: var(--ink);
  background: var(--bg); margin: 0 auto; max-width: 1500px; padding: 32px; box-sizing: border-box;
  overflow-wrap: anywhere;
}
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; font-weight: 650 }
p, ul { margin: 0 0 16px; padding: 0 } ul { list-style: none; font-weight: 500 }
code { font: 13px ui-monospace, Menlo, Consolas, monospace }
.key i {
  display: inline-block; width: 1em; height: 1em; margin-right: 6px; vertical-align: -2px;
  border: 1px solid var(--line);
}
.key span { margin-right: 20px; white-space: nowrap }
table { border-collapse: collapse; width: 100%; table-layout: fixed; font-size: 13px }
th {
  position: sticky; top: 0; background: var(--bg); box-shadow: 0 1px var(--soft);
  text-align: left; font-weight: 600;
}
th, td { padding: 3px 10px; vertical-align: top } th:first-child, .time { padding-left: 0 }
td + td { border-left: 1px solid var(--line) }
.c-time { width: 11em } .c-tool { width: 28% } .c-qemu { width: 17% } .c-files { width: 22% }
.time { font-variant-numeric: tabular-nums; color: var(--soft); white-space: nowrap }
.pause td { border-top: 1px dashed var(--soft) }
td.frozen, .key .frozen { background: var(--frozen) }
td.halted, .key .halted { background: var(--halted) }
.fault td + td { background: var(--fault); font-weight: 600 }
.check td + td { background: var(--check); color: #fff; font-weight: 600 }
.bad { color: var(--bad) } .good { color: var(--good) }
@media (max-width: 900px) {
  body { padding: 20px 16px }
  table, tbody, td { display: block } thead, colgroup { display: none }
  tr { display: block; padding: 5px 0; border-top: 1px solid var(--line) }
  td, td + td { border: 0 !important; padding: 0 8px } td:empty { display: none }
  td[data-lane]::before { content: attr(data-lane) ": "; color: var(--soft) }
  tr.frozen { background: var(--frozen) } tr.halted { background: var(--halted) }
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
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1><p>{escape(report.scenario.about)}</p>"
        f"<p>Faults: <code>{escape(report.script.render() or 'none')}</code><br>"
        f"Token: <code>{escape(token.render())}</code></p><ul>{verdict}</ul>"
        '<p class="key"><span><i class="frozen"></i>file systems frozen</span> '
        '<span><i class="halted"></i>guest stands still</span></p>'
        f"<table>{_head()}<tbody>{_rows(report)}</tbody></table></html>\n"
    )


def _head() -> str:
    lanes = "".join(f"<th>{lane.value}</th>" for lane in _LANES)
    names = ("time", *(lane.value for lane in _LANES))
    columns = "".join(f'<col class="c-{name}">' for name in names)
    return f"<colgroup>{columns}</colgroup><thead><tr><th>time</th>{lanes}</tr></thead>"


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
        if lane is entry.lane:
            cells.append(f'<td{mark} data-lane="{lane.value}">{escape(entry.text)}</td>')
        else:
            cells.append(f"<td{mark}></td>")
    return f'<tr class="{kind} {shade}">{time_cell}{"".join(cells)}</tr>'
