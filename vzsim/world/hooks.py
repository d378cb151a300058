"""The operator's hook script of a simulated node, as the `CommandRunner` port.

Owns what is remembered of its calls; how a call goes wrong is `vzsim.faults.programs`'. The script
itself says a line and succeeds. Source: host behaviour, section 2.4.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


class HookEnd(enum.Enum):
    """How one call of the script ended."""

    WELL = "well"
    BADLY = "badly"
    ENDED = "ended"  # by whoever had called it
    NEVER = "never"  # it still runs, or its caller is gone


@dataclass(slots=True, kw_only=True)
class HookSeen:
    """One call.

    Attributes:
        words: what follows the phase: mode and VM, or nothing.
        guest_stood: the guest was halted or off when the call began, and had been found running.
    """

    phase: str
    words: tuple[str, ...]
    environment: Mapping[str, str]
    began_s: float
    guest_stood: bool
    ended_s: float = 0.0
    end: HookEnd = HookEnd.NEVER

    @property
    def vmid(self) -> int:
        """0 for a call about the whole job."""
        return int(self.words[1]) if len(self.words) > 1 else 0

    @property
    def lasted_s(self) -> float:
        """0 for one that never ended."""
        return max(0.0, self.ended_s - self.began_s)


@dataclass(slots=True)
class SimulatedHooks:
    """All calls of the script, in order."""

    calls: list[HookSeen] = field(default_factory=list)

    def find(self, program: str) -> str | None:
        """Scripts have whole paths: there is nothing to find."""
        return None

    async def run(
        self,
        argv: Sequence[str],
        *,
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> tuple[int, Sequence[str]]:
        """One line, and success."""
        return 0, (f"this is {argv[1]}",)
