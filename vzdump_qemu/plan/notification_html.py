"""The HTML body of the message about a job, as mail programs show it; pure.

Owns markup and looks: tables and inline styles only, which every mail program understands. What
is told is `notification`'s. Source: host behaviour, section 1.14.
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
_CELL = "padding:6px 12px;border-bottom:1px solid #d0d7de;text-align:left;vertical-align:top"
_NUMBER = _CELL.replace("text-align:left", "text-align:right") + ";white-space:nowrap"
_MONOSPACED = "font-family:ui-monospace,Menlo,Consolas,monospace;font-size:12px"
_STATE_STYLES = {
    GuestState.OK: "color:#1a7f37",
    GuestState.FAILED: "color:#cf222e;font-weight:bold",
    GuestState.NOT_REACHED: "color:#9a6700",
}
_NUMBER_HEADINGS = ("VMID", "Time", "Size")


def render_html_body(outcome: JobOutcome) -> str:
    """The message as one HTML document without anything to be loaded."""
    heads = "".join(f'<th style="{_style(name)}">{name}</th>' for name in HEADINGS)
    rows = "\n".join(_render_row(guest) for guest in outcome.guests)
    error = ""
    if outcome.body_error:
        lines = escape(outcome.body_error).replace("\n", "<br>\n")
        error = f'<p style="color:#cf222e">{lines}</p>\n'
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(render_subject(outcome))}</title>\n</head>\n"
        f'<body style="{_FONT};font-size:14px;color:#1f2328;background:#ffffff">\n'
        f"{error}"
        "<h1>Details</h1>\n"
        f'<table style="border-collapse:collapse">\n<tr>{heads}</tr>\n{rows}\n</table>\n'
        f"<p>Total running time: {render_duration(outcome.duration_s)}<br>\n"
        f"Total size: {render_bytes(outcome.total_bytes)}</p>\n"
        "<h1>Logs</h1>\n"
        f'<pre style="{_MONOSPACED};white-space:pre-wrap">\n'
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
            style += f";{_MONOSPACED};word-break:break-all"
        cells.append(f'<td style="{style}">{escape(text)}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _style(heading: str) -> str:
    return _NUMBER if heading in _NUMBER_HEADINGS else _CELL
