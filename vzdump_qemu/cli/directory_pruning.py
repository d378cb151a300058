"""What the verb ``prune`` does in a directory: finds the archives, decides, removes.

Owns the order of these; the decisions are `plan.retention`'s, removal is `engine.removal`'s.
Source: host behaviour, sections 2.6 to 2.8.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

from vzdump_qemu import events
from vzdump_qemu.cli.log_line import Level
from vzdump_qemu.cli.pruning import FAILED_HINT, FoundRule, PrunePlan, Tell
from vzdump_qemu.cli.render_vzdump import LINES_OF_TODAY
from vzdump_qemu.engine.removal import PRUNING_FAILED, ArchiveRemoval
from vzdump_qemu.errors import TargetError
from vzdump_qemu.plan.retention import (
    LocalTime,
    decide_retention,
    local_time_as_named,
    read_entries,
    spare_last_whole,
)
from vzdump_qemu.stores.archive_directory import ArchiveDirectory
from vzdump_qemu.stores.dump_directory import DumpDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryPlace:
    """Archives in a directory; a `PrunePlace`.

    Attributes:
        storage_id: empty for a plain directory.
    """

    directory: str
    storage_id: str
    found: FoundRule

    @property
    def label(self) -> str:
        """See `PrunePlace.label`."""
        return self.directory

    @property
    def size_note(self) -> str:
        """See `PrunePlace.size_note`."""
        return ""

    @property
    def local_time(self) -> LocalTime:
        """See `PrunePlace.local_time`."""
        return local_time_as_named

    def plan(self, vmids: Collection[int], *, verify: bool) -> PrunePlan:
        """See `PrunePlace.plan`; else an archive's beginning, end and log are looked at."""
        directory = DumpDirectory(self.directory)
        stored = directory.list_archives()
        entries = read_entries(
            (item.name for item in stored),
            protected=frozenset(item.name for item in stored if item.is_protected),
        )
        if vmids:
            entries = [entry for entry in entries if entry.vmid in vmids]
        decisions = spare_last_whole(
            decide_retention(entries, self.found.rule, local_time=local_time_as_named),
            is_whole=directory.is_whole if verify else directory.looks_whole,
        )
        going = {decision.name for decision in decisions if not decision.keep}
        return PrunePlan(
            decisions=decisions,
            freed_bytes=sum(item.size_bytes for item in stored if item.name in going),
            vmids_without_archives=tuple(sorted(set(vmids) - {entry.vmid for entry in entries})),
        )

    def remove(self, plan: PrunePlan, *, tell: Tell, complain: Tell) -> int:
        """See `PrunePlace.remove`."""

        def emit(event: events.Event) -> None:
            for line in LINES_OF_TODAY[type(event)](event):
                if line.level is Level.INFO:
                    tell(line.text)
                else:
                    complain(line.render())

        removal = ArchiveRemoval(
            ArchiveDirectory(), emit, directory=self.directory, storage_id=self.storage_id
        )
        names = [decision.name for decision in reversed(plan.going)]
        removed_count = asyncio.run(removal.remove_all(names))
        if removed_count < len(names):
            raise TargetError(PRUNING_FAILED, hint=FAILED_HINT)
        return removed_count
