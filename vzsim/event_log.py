"""What happened in one simulated run, as lines that are equal byte for byte if the run is.

Owns the form of the log and nothing else: who speaks (the lane), when (virtual nanoseconds), what.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from vzdump_qemu.units import NS_PER_S


class Lane(enum.Enum):
    """Whose line it is; also the columns of a timeline."""

    TOOL = "tool"
    QEMU = "qemu"
    GUEST = "guest"
    AGENT = "agent"
    FILES = "files"
    FAULT = "fault"
    CHECK = "check"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One line: `at_ns` since the start of the simulation."""

    at_ns: int
    lane: Lane
    text: str

    def render(self) -> str:
        """``SECONDS LANE TEXT``, all digits of the nanoseconds."""
        seconds, rest_ns = divmod(self.at_ns, NS_PER_S)
        return f"{seconds}.{rest_ns:09d} {self.lane.value} {self.text}"


class EventLog:
    """The lines of one run, in the order they were told."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self.entries: list[tuple[int, Lane, str]] = []

    def tell(self, lane: Lane, text: str) -> None:
        """Add one line at this instant."""
        self.entries.append((self._now_ns(), lane, text))

    def read(self) -> list[LogEntry]:
        """All lines as values."""
        return [LogEntry(at_ns=at, lane=lane, text=text) for at, lane, text in self.entries]

    def render(self) -> str:
        """The whole log, one line each, with a line end after the last."""
        return "".join(entry.render() + "\n" for entry in self.read())
