"""One module per guarantee; each looks at one run's evidence and says what was violated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vzsim.checkers import (
    archive_whole,
    backup_server,
    bounded_waits,
    clock_sense,
    endurance,
    first_cause,
    foreign_things,
    guest_consistency,
    guest_freeze,
    guest_writes,
    hooks,
    left_overs,
    next_run,
    older_archives,
    power_state,
    retention,
    secrets,
    told,
)
from vzsim.evidence import Evidence

__all__ = ["CHECKERS", "Violation", "judge"]

Checker = Callable[[Evidence], list[str]]
CHECKERS: Mapping[str, Checker] = MappingProxyType(
    {
        "guest-freeze": guest_freeze.check,
        "power-state": power_state.check,
        "guest-writes": guest_writes.check,
        "archive-whole": archive_whole.check,
        "backup-server": backup_server.check,
        "guest-consistency": guest_consistency.check,
        "older-archives": older_archives.check,
        "foreign-things": foreign_things.check,
        "left-overs": left_overs.check,
        "bounded-waits": bounded_waits.check,
        "clock-sense": clock_sense.check,
        "first-cause": first_cause.check,
        "endurance": endurance.check,
        "secrets": secrets.check,
        "told": told.check,
        "hooks": hooks.check,
        "retention": retention.check,
        "next-run": next_run.check,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Violation:
    """One guarantee that did not hold."""

    checker: str
    text: str

    def render(self) -> str:
        """``CHECKER: TEXT``."""
        return f"{self.checker}: {self.text}"


def judge(evidence: Evidence) -> list[Violation]:
    """All violations in one attempt, in the order of the checkers."""
    return [
        Violation(checker=name, text=text)
        for name, check in CHECKERS.items()
        for text in check(evidence)
    ]
