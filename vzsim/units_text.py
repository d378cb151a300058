"""Lengths of time as short text."""

from __future__ import annotations

from vzdump_qemu.units import NS_PER_S

_NS_PER_MS = 1_000_000


def seconds_text(length_ns: int) -> str:
    """``+3.2s`` or ``+12ms`` or ``+40µs``, whichever reads best."""
    if length_ns >= NS_PER_S:
        return f"+{length_ns / NS_PER_S:.1f}s"
    if length_ns >= _NS_PER_MS:
        return f"+{length_ns / _NS_PER_MS:.0f}ms"
    return f"+{length_ns / 1000:.0f}µs"
