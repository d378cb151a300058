"""Replay tokens: everything that determines a run, as one word that a shell leaves alone.

``SCENARIO/SEED/SCRIPT``, with the fault script's ``; `` as ``,`` and its spaces as ``+``.
"""

from __future__ import annotations

from dataclasses import dataclass

from vzdump_qemu.errors import ConfigError
from vzsim.faults import FaultScript


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Token:
    """One run of one revision."""

    scenario: str
    seed: int
    script: str

    @classmethod
    def parse(cls, text: str) -> Token:
        """Raises ConfigError for a word that is no token."""
        scenario, _, rest = text.partition("/")
        seed, _, script = rest.partition("/")
        if not scenario or not seed.isdigit():
            raise ConfigError(f"'{text}' is no replay token", hint="SCENARIO/SEED/SCRIPT")
        parsed = FaultScript.parse(script.replace(",", ";").replace("+", " "))
        return cls(scenario=scenario, seed=int(seed), script=parsed.render())

    def render(self) -> str:
        """The word that parses to this token."""
        script = self.script.replace("; ", ",").replace(": ", ":").replace(" ", "+")
        return f"{self.scenario}/{self.seed}/{script}"

    @property
    def faults(self) -> FaultScript:
        """The fault script as a value."""
        return FaultScript.parse(self.script)
