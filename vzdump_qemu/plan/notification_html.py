"""The HTML body of the message about a job, as mail programs show it; pure.

Owns markup and looks: tables and inline styles, which every mail program understands. The rules
for narrow screens go further than that: who does not follow them shows the whole table. What is
told is `notification`'s. Source: host behaviour, section 1.14.
"""

from __future__ import annotations

from html import escape

from vzdump_qemu.plan.notification import (
    HEADINGS,
    GuestOutcome,
    GuestState,
    JobOutcome,
    guest_row,
    render_logs,
    render_subject,
)
from vzdump_qemu.units import render_bytes, render_duration

_FONT = "font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif"
_CELL = "padding:7px 0 7px 16px;border-bottom:1px solid #d0d7de;text-align:left;vertical-align:top"
_NUMBER = _CELL.replace("text-align:left", "text-align:right") + ";white-space:nowrap"
_FIRST = _CELL.replace("7px 16px", "7px 0")
_TABLE = "border-collapse:collapse;font-variant-numeric:tabular-nums"
_HEAD = "font-size:12px;font-weight:normal;color:#57606a"
_HEADING = "font-size:18px;font-weight:600;line-height:1.3;margin:28px 0 8px"
_MONOSPACED = "font-family:ui-monospace,Menlo,Consolas,monospace;font-size:12px;line-height:1.5"
# On a telephone: one line of figures a VM, its file name below.
_NARROW = """
@media (max-width: 600px) {
  table, tbody { display: block }
  tr { display: flex; flex-wrap: wrap; border-bottom: 1px solid #d0d7de }
  th, td { display: block; border: 0 !important; padding: 6px 0 !important; flex: 0 0 auto }
  td:nth-child(1), th:nth-child(1) { width: 13%; overflow-wrap: anywhere }
  td:nth-child(2), th:nth-child(2) { width: 34%; overflow-wrap: anywhere }
  td:nth-child(3), th:nth-child(3) { width: 13%; text-indent: 6px }
  td:nth-child(4), th:nth-child(4), td:nth-child(5), th:nth-child(5) { width: 20% }
  td:nth-child(6) { width: 100%; padding-top: 0 !important }
  th:nth-child(6), td:nth-child(6):empty { display: none }
}
"""
_STATE_STYLES = {
    GuestState.OK: "color:#1a7f37",
    GuestState.FAILED: "color:#cf222e;font-weight:bold",
    GuestState.NOT_REACHED: "color:#9a6700",
}
_NUMBER_HEADINGS = ("Time", "Size")


def render_html_body(outcome: JobOutcome) -> str:
    """The message as one HTML document without anything to be loaded."""
    heads = "".join(f'<th style="{_style(name)};{_HEAD}">{name}</th>' for name in HEADINGS)
    rows = "\n".join(_render_row(guest) for guest in outcome.guests)
    error = ""
    if outcome.body_error:
        lines = escape(outcome.body_error).replace("\n", "<br>\n")
        error = f'<p style="color:#cf222e;margin:24px 0 0">{lines}</p>\n'
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(render_subject(outcome))}</title>\n<style>{_NARROW}</style>\n</head>\n"
        f'<body style="{_FONT};font-size:14px;line-height:1.5;color:#1f2328;background:#ffffff;'
        'margin:0;padding:0 16px 24px">\n'
        f"{error}"
        f'<h1 style="{_HEADING}">Details</h1>\n'
        f'<table style="{_TABLE}">\n<tr>{heads}</tr>\n{rows}\n</table>\n'
        f"<p>Total running time: {render_duration(outcome.duration_s)}<br>\n"
        f"Total size: {render_bytes(outcome.total_bytes)}</p>\n"
        f'<h1 style="{_HEADING}">Logs</h1>\n'
        f'<pre style="{_MONOSPACED};white-space:pre-wrap;overflow-wrap:anywhere">\n'
        f"{escape(render_logs(outcome))}</pre>\n"
        "</body>\n</html>\n"
    )


def _render_row(guest: GuestOutcome) -> str:
    cells = []
    for name, text in zip(HEADINGS, guest_row(guest), strict=True):
        style = _style(name)
        if name == "Status":
            style += f";{_STATE_STYLES[guest.state]}"
        if name == "Filename":
            style += f";{_MONOSPACED};overflow-wrap:anywhere"
        cells.append(f'<td style="{style}">{escape(text)}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _style(heading: str) -> str:
    if heading == HEADINGS[0]:
        return _FIRST
    return _NUMBER if heading in _NUMBER_HEADINGS else _CELL
