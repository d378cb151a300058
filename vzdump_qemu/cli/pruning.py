"""What the verb ``prune`` knows of a place of backups: the rule that counts there, and a plan.

Owns these values; directories are `directory_pruning`'s, servers are `server_pruning`'s, which
place was meant is `prune_places`'. Source: host behaviour, sections 2.6 to 2.8.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from vzdump_qemu.plan.retention import LocalTime, RetentionDecision
from vzdump_qemu.plan.retention_rule import RetentionRule, RetentionSource, resolve_retention

Tell = Callable[[str], None]

FAILED_HINT = "mend what the lines above name and run the same command again"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRule:
    """The rule that counts at a place, and warnings of the settings that were read."""

    rule: RetentionRule
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePlan:
    """What becomes of every backup, and what it would give back.

    Attributes:
        freed_bytes: size of all backups that go.
        vmids_without_archives: of those that were asked for.
    """

    decisions: Sequence[RetentionDecision]
    freed_bytes: int
    vmids_without_archives: tuple[int, ...]

    @property
    def going(self) -> tuple[RetentionDecision, ...]:
        """The backups that go."""
        return tuple(decision for decision in self.decisions if not decision.keep)


class PrunePlace(Protocol):
    """Where backups are, and the rule that counts there."""

    @property
    def label(self) -> str:
        """The place in the operator's words."""
        ...

    @property
    def found(self) -> FoundRule: ...

    @property
    def size_note(self) -> str:
        """What must be said beside the size of what goes; empty for nothing."""
        ...

    @property
    def local_time(self) -> LocalTime:
        """What the times of its decisions are understood by."""
        ...

    def plan(self, vmids: Collection[int], *, verify: bool) -> PrunePlan:
        """Decide for the backups of a place; nothing is changed.

        Args:
            vmids: only these VMs; all if empty.
            verify: read backups to their end before they count as whole.
        Raises:
            ConfigError, TargetError, PbsError: what is there cannot be told.
        """
        ...

    def remove(self, plan: PrunePlan, *, tell: Tell, complain: Tell) -> int:
        """Remove what goes, oldest first; one that cannot be removed does not keep the others.

        Args:
            tell: gets a line before each removal.
            complain: gets a line for each failure and each side file that stayed.
        Returns:
            How many were removed.
        Raises:
            TargetError: at the end, if any could not be removed.
        """
        ...


def rule_of_command_line(prune_backups: str) -> FoundRule:
    """The rule where no other place says anything. Raises ConfigError."""
    source = RetentionSource(place="command line", prune_backups=prune_backups)
    settings = resolve_retention([source])
    return FoundRule(rule=settings.rule, warnings=settings.warnings)
