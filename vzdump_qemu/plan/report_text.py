"""Words and figures of the report page, safe to stand in HTML; pure.

Owns escaping and how amounts, lengths and times of day read on the page; which of them stand
where is left to the page's parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from html import escape

from vzdump_qemu.plan.batch_record import RunRecord
from vzdump_qemu.units import KIB, MIB, render_bytes, render_duration

LocalTime = Callable[[float], datetime]
"""Turns seconds since the epoch into the node's local time."""

DASH = "–"
NONE = '<span class="none">–</span>'
TEXT_CHARS_MAX = 2000
_HOUR_S = 3600
# What HTML forbids even escaped, and halves of characters that no encoding carries.
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def esc(text: str) -> str:
    """Any text, whoever wrote it, as HTML text or as a quoted attribute; long ones are cut."""
    if len(text) > TEXT_CHARS_MAX:
        text = f"{text[:TEXT_CHARS_MAX]} …"
    return escape(_FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text))


def lines(text: str) -> str:
    """Text of several lines, escaped."""
    return esc(text.strip("\n")).replace("\n", "<br>")


def size(amount_bytes: float) -> str:
    """Like ``1.4 GiB``, three figures that count."""
    if amount_bytes < KIB:
        return render_bytes(amount_bytes)
    whole = float(amount_bytes)
    while whole >= KIB:
        whole /= KIB
    return render_bytes(amount_bytes, 2 if whole < 10 else 1 if whole < 100 else 0)


def rate(bytes_per_s: float | None) -> str:
    """Like ``410 MiB/s``; a dash for what has none."""
    return DASH if bytes_per_s is None else f"{size(bytes_per_s)}/s"


def round_rate(bytes_per_s: float) -> str:
    """Like ``200 MiB/s``, for the round steps of an axis."""
    value, unit = render_bytes(bytes_per_s, 1).split(" ")
    return f"{float(value):g} {unit}/s"


def round_length(seconds: float) -> str:
    """Like ``10 s``, for the round steps of an axis."""
    return f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:g} s"


def length(seconds: float) -> str:
    """Like ``340 ms``, ``3.2 s``, ``4m 12s``, ``1h 44m``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    return render_duration(seconds if seconds < _HOUR_S else round(seconds / 60) * 60)


def freeze_length(seconds: float) -> str:
    """Like ``12.4 ms``: guests feel tenths of it."""
    return f"{seconds * 1000:.1f} ms" if seconds < 0.9995 else length(seconds)


def count(number: int, one: str, many: str = "") -> str:
    """Like ``1 warning``, ``2 warnings``."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def clock(moment: datetime) -> str:
    """Like ``20:04:31``."""
    return f"{moment:%H:%M:%S}"


def day(moment: datetime) -> str:
    """Like ``2026-11-23``."""
    return f"{moment:%Y-%m-%d}"


def span(begin: datetime, end: datetime) -> str:
    """From one time to another; the second day only where it is another one."""
    until = clock(end) if day(begin) == day(end) else f"{day(end)} {clock(end)}"
    return f"{day(begin)} {clock(begin)} {DASH} {until}"


def vm_title(run: RunRecord) -> str:
    """Number and name of a VM, as plain text."""
    return f"{run.vmid} {run.vm_name}".rstrip()


def vm_link(run: RunRecord) -> str:
    """Number and name of a VM, as HTML that leads to its details if it has some."""
    return f'<a href="#vm-{run.vmid}">{vm_label(run)}</a>' if run.phases else vm_label(run)


def vm_label(run: RunRecord) -> str:
    """Number and name of a VM, as HTML."""
    name = f' <span class="name">{esc(run.vm_name)}</span>' if run.vm_name else ""
    return f'<span class="vmid">{run.vmid}</span>{name}'


def nice_rate_step(bytes_per_s: float, *, count_max: int) -> float:
    """A round step with which an axis up to this rate has no more lines than that."""
    unit = 1.0
    while unit * KIB * count_max < bytes_per_s and unit < MIB * MIB:
        unit *= KIB
    for factor in (1, 2, 5, 10, 20, 50, 100, 200, 256, 512, 1024):
        if factor * unit * count_max >= bytes_per_s:
            return factor * unit
    return bytes_per_s / count_max
