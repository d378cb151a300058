"""What surrounds the archives of one VM in a directory: room, notes, protection, removal.

Owns the order and what a failure means; which archives go is `plan.retention`'s.
Source: host behaviour, sections 1.7 (steps 5, 22 to 24), 2.6 and 2.8.
"""

from __future__ import annotations

from vzdump_qemu import events
from vzdump_qemu.engine.context import EnginePorts
from vzdump_qemu.engine.keeping import COMPLETE_HINT, has_limit, make_notes
from vzdump_qemu.engine.removal import PRUNING_FAILED, ArchiveRemoval
from vzdump_qemu.errors import BackupError, TargetError
from vzdump_qemu.plan.names import notes_name, protection_name
from vzdump_qemu.plan.options import BackupOptions
from vzdump_qemu.plan.retention import (
    RetentionEntry,
    decide_retention,
    local_time_as_named,
    read_entries,
    spare_new,
)
from vzdump_qemu.plan.retention_rule import StoredCounts, check_backup_limit, render_rule


class DirectoryKeeping:
    """Archives in one directory; a `Keeping`.

    Args:
        directory: empty for standard output.
    """

    def __init__(
        self, ports: EnginePorts, options: BackupOptions, vmid: int, directory: str
    ) -> None:
        self._ports = ports
        self._keep = options.keep
        self._storage_id = options.target.storage_id
        self._vmid = vmid
        self._directory = directory

    @property
    def is_pruning(self) -> bool:
        """See `Keeping.is_pruning`."""
        return bool(self._directory) and self._keep.retention.remove

    async def check_room(self) -> None:
        """See `Keeping.check_room`."""
        keep = self._keep
        if not (self._directory and has_limit(keep)):
            return
        entries = await self._list_entries()
        check_backup_limit(
            keep.retention,
            StoredCounts(
                protected_count=sum(entry.is_protected for entry in entries),
                # Without a storage only what bears a standard name counts as a backup.
                unprotected_count=sum(
                    not entry.is_protected and (bool(self._storage_id) or entry.time_s is not None)
                    for entry in entries
                ),
            ),
            protect=keep.protected,
            protected_max=keep.protected_max,
            storage_id=self._storage_id,
        )

    async def mark(self, location: str, *, vm_name: str) -> None:
        """See `Keeping.mark`; only archives of a storage have notes and protection."""
        if not (self._directory and self._storage_id):
            return
        ports, keep = self._ports, self._keep
        if keep.notes_template:
            ports.emit(events.NotesAdding())
            try:
                text = make_notes(ports, keep, vmid=self._vmid, vm_name=vm_name)
                await ports.store.write_file(notes_name(location), text.encode())
            except BackupError as error:
                ports.emit(events.Warned(text=f"unable to add notes - {error}"))
        if keep.protected:
            ports.emit(events.BackupProtecting())
            try:
                await ports.store.write_file(protection_name(location), b"")
            except BackupError as error:
                raise TargetError(
                    f"unable to set protected flag - {error}", hint=COMPLETE_HINT
                ) from error

    async def prune(self, location: str) -> None:
        """See `Keeping.prune`: oldest first; one that stays does not keep the others."""
        if not self.is_pruning:
            return
        rule = self._keep.retention.rule
        ports = self._ports
        ports.emit(events.PruneStarted(rule_text=render_rule(rule)))
        decisions = decide_retention(
            await self._list_entries(), rule, local_time=local_time_as_named
        )
        decisions = spare_new(decisions, location.rpartition("/")[2])
        going = [decision.name for decision in reversed(decisions) if not decision.keep]
        removal = ArchiveRemoval(
            ports.store, ports.emit, directory=self._directory, storage_id=self._storage_id
        )
        removed_count = await removal.remove_all(going)
        if removed_count < len(going):
            raise TargetError(PRUNING_FAILED, hint=COMPLETE_HINT)
        ports.emit(events.PruneEnded(removed_count=removed_count))

    async def hand_over_log(self, location: str, log_path: str) -> None:
        """Whoever writes the log leaves a copy beside the archive, of failed runs too."""

    async def _list_entries(self) -> list[RetentionEntry]:
        names = await self._ports.store.list_names(self._directory)
        present = frozenset(names)
        protected = [name for name in names if protection_name(name) in present]
        entries = read_entries(names, protected=protected)
        return [entry for entry in entries if entry.vmid == self._vmid]
