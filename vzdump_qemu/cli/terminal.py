"""What a terminal can do, and what may be written to one.

Owns the choice between drawing and plain lines, and the cleaning of foreign texts; what is drawn
is `render_live`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO

_WITHOUT_CURSOR = frozenset(("", "dumb", "unknown"))


def can_draw(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether lines on this stream can be drawn anew: a terminal that can move its cursor."""
    return stream.isatty() and environment.get("TERM", "") not in _WITHOUT_CURSOR


def printable(text: str) -> str:
    """The text in one line and without anything that a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
