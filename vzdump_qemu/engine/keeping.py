"""What surrounds the backups of one VM at one place: room, notes, protection, pruning, the log.

Owns what a place of either kind does and says alike. Nothing is removed before a new backup has
its name, which it gets only once it was proved, and that one stays whatever the rule says: the
last whole backup of a VM never goes. Directories are `directory_keeping`'s, servers are
`pbs_keeping`'s. Source: host behaviour, sections 1.7 (steps 5, 22 to 24, 32), 2.6 and 2.11.
"""

from __future__ import annotations

from typing import Protocol

from vzdump_qemu.engine.context import EnginePorts
from vzdump_qemu.plan.notes import NotesFacts, expand_notes
from vzdump_qemu.plan.options import KeepOptions

COMPLETE_HINT = "the new backup itself is complete"


class Keeping(Protocol):
    """The backups of one VM at one place, as one run leaves them.

    A place that keeps nothing, as standard output, has nothing to do in any of these.
    """

    @property
    def is_pruning(self) -> bool:
        """Whether older backups are removed after the new one was published."""
        ...

    async def check_room(self) -> None:
        """Refuse a run whose backup would be one too many.

        Raises: ConfigError; TargetError, PbsError if that cannot be told.
        """
        ...

    async def mark(self, location: str, *, vm_name: str) -> None:
        """Write the notes, then protect the new backup.

        Raises: TargetError if it could not be protected; notes only cost a warning.
        """
        ...

    async def prune(self, location: str) -> None:
        """Remove older backups of this VM.

        Args:
            location: of the new, proved backup, which stays.
        Raises:
            TargetError: at the end, if any could not be removed.
        """
        ...

    async def hand_over_log(self, location: str, log_path: str) -> None:
        """Once all was told: leave the run's log where the backup is; problems are warnings."""
        ...


def has_limit(keep: KeepOptions) -> bool:
    """Whether it must be counted, before a run, what is there."""
    return keep.protected or (keep.retention.rule.limit_count > 0 and not keep.retention.remove)


def make_notes(ports: EnginePorts, keep: KeepOptions, *, vmid: int, vm_name: str) -> str:
    """The notes of a new backup. Raises ConfigError for a template that cannot be."""
    facts = NotesFacts(
        vmid=vmid,
        vm_name=vm_name,
        node_name=ports.node.name,
        cluster_name=keep.cluster_name,
    )
    return expand_notes(keep.notes_template, facts)
