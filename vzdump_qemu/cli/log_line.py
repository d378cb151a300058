"""One line of a task log, and what every renderer of such lines has in common.

Owns levels and their prefixes; which texts an event has is left to the renderers, where lines go
to `console` and `run_log`. Source: host behaviour, section 1.12.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from vzdump_qemu.events import Event

LocalTime = Callable[[float], datetime]
"""Turns seconds since the epoch into the node's local time."""


class Level(enum.Enum):
    """Severity of a line; PLAIN lines bear no prefix."""

    INFO = "INFO"
    WARN = "WARN"
    ERROR = "ERROR"
    PLAIN = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line, without its end."""

    level: Level
    text: str

    def render(self) -> str:
        """The line as a task log shows it."""
        return f"{self.level.value}: {self.text}" if self.level.value else self.text


class LineRenderer(Protocol):
    """Turns one event into the lines it has in one style; most have one, some none."""

    def render(self, event: Event) -> tuple[LogLine, ...]: ...


def lines(level: Level, *texts: str) -> tuple[LogLine, ...]:
    """Split texts at line ends, as vzdump does; empty ones are dropped."""
    return tuple(
        LogLine(level=level, text=line) for text in texts for line in text.splitlines() if line
    )


def info(*texts: str) -> tuple[LogLine, ...]:
    """Lines of level INFO."""
    return lines(Level.INFO, *texts)


def warn(*texts: str) -> tuple[LogLine, ...]:
    """Lines of level WARN; each counts as a warning of the job."""
    return lines(Level.WARN, *texts)


def error(*texts: str) -> tuple[LogLine, ...]:
    """Lines of level ERROR."""
    return lines(Level.ERROR, *texts)


def render_clock_time(moment: datetime) -> str:
    """Render like ``2026-01-02 03:04:05``."""
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def render_clock_length(length_s: float) -> str:
    """Render like ``00:01:07``: hours, minutes, seconds."""
    whole_s = int(length_s)
    return f"{whole_s // 3600:02d}:{whole_s % 3600 // 60:02d}:{whole_s % 60:02d}"
