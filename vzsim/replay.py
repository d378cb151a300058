"""One run as a readable timeline.

Owns the text form: a heading that says what the run was, one line per event, the verdict. The page
form is `vzsim.replay_page`'s.
"""

from __future__ import annotations

from vzsim.event_log import LogEntry
from vzsim.token import Token
from vzsim.trial import Report
from vzsim.units_text import seconds_text

_TEXT_COLUMNS = 150


def render_timeline(token: Token, report: Report) -> str:
    """The whole run as text."""
    lines = [
        f"scenario  {report.scenario.name}: {report.scenario.about}",
        f"seed      {report.seed}",
        f"faults    {report.script.render() or 'none'}",
        f"token     {token.render()}",
        "",
    ]
    last_ns = 0
    for entry in report.log.read():
        lines.append(_render_entry(entry, last_ns))
        last_ns = entry.at_ns
    lines += ["", *render_verdict(report)]
    return "\n".join(lines) + "\n"


def render_verdict(report: Report) -> list[str]:
    """How each attempt ended, which faults never came, and what was violated."""
    names = ("with faults", "after healing")
    lines = [
        f"{names[evidence.attempt_index]:14}{evidence.ending.value} {evidence.error}".rstrip()
        for evidence in report.evidences
    ]
    lines += [
        f"never came: {fault.render()}"
        for fault in report.script.faults
        if fault not in report.triggered
    ]
    if not report.violations:
        return [*lines, "no violation"]
    return [*lines, *(f"VIOLATION {violation.render()}" for violation in report.violations)]


def _render_entry(entry: LogEntry, last_ns: int) -> str:
    passed = seconds_text(entry.at_ns - last_ns) if entry.at_ns > last_ns else ""
    text = entry.text if len(entry.text) <= _TEXT_COLUMNS else entry.text[:_TEXT_COLUMNS] + "…"
    return f"{entry.at_ns / 1e9:12.6f} {passed:>9}  {entry.lane.value:6} {text}"
