"""What surrounds the archives of one VM in a directory: room, notes, protection, removal.

Owns the order and what a failure means; which archives go is `plan.retention`'s. Nothing is
removed before a new archive has its name, which it gets only once it was proved, and that one
stays whatever the rule says: the last whole archive of a VM never goes. Source: host behaviour,
sections 1.7 (steps 5, 22 to 24), 2.6 and 2.8.
"""

from __future__ import annotations

from vzdump_qemu import events
from vzdump_qemu.engine.context import EnginePorts
from vzdump_qemu.errors import BackupError, ConfigError, TargetError
from vzdump_qemu.plan.names import notes_name, protection_name, side_log_name
from vzdump_qemu.plan.notes import NotesFacts, expand_notes
from vzdump_qemu.plan.options import BackupOptions, KeepOptions
from vzdump_qemu.plan.retention import (
    RetentionDecision,
    RetentionEntry,
    decide_retention,
    local_time_as_named,
    read_entries,
    spare_new,
)
from vzdump_qemu.plan.retention_rule import StoredCounts, check_backup_limit, render_rule

_COMPLETE_HINT = "the new backup itself is complete"


def refuse_at_server(keep: KeepOptions) -> None:
    """Raise ConfigError for what is not done with backups at a backup server."""
    asked = {
        "notes-template": bool(keep.notes_template),
        "protected": keep.protected,
        "prune-backups": not keep.retention.rule.keeps_all,
    }
    for name, is_asked in asked.items():
        if is_asked:
            raise ConfigError(
                f"option '{name}' is not supported with a Proxmox Backup Server",
                hint="the server does that by itself: see its prune jobs, notes and protection",
            )


class Keeping:
    """The archives of one VM in one directory, as one run leaves them.

    Args:
        directory: empty for standard output or a server: then there is nothing to do.
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
        """Whether older archives are removed after the new one was published."""
        return bool(self._directory) and self._keep.retention.remove

    async def check_room(self) -> None:
        """Refuse a run whose archive would be one too many.

        Raises: ConfigError; TargetError if the directory cannot be read.
        """
        keep = self._keep
        has_limit = keep.protected or keep.retention.rule.limit_count > 0
        if not self._directory or not has_limit or (self.is_pruning and not keep.protected):
            return
        entries = await self._list_entries()
        protected_count = sum(entry.is_protected for entry in entries)
        check_backup_limit(
            keep.retention,
            StoredCounts(
                protected_count=protected_count,
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

    async def mark(self, archive_path: str, *, vm_name: str) -> None:
        """Write the notes, then the mark of protection; only archives of a storage have them.

        Raises: TargetError if the archive could not be protected; notes only cost a warning.
        """
        if not (self._directory and self._storage_id):
            return
        if self._keep.notes_template:
            self._ports.emit(events.NotesAdding())
            try:
                await self._write_notes(archive_path, vm_name)
            except BackupError as error:
                self._ports.emit(events.Warned(text=f"unable to add notes - {error}"))
        if self._keep.protected:
            self._ports.emit(events.BackupProtecting())
            try:
                await self._ports.store.write_file(protection_name(archive_path), b"")
            except BackupError as error:
                raise TargetError(
                    f"unable to set protected flag - {error}", hint=_COMPLETE_HINT
                ) from error

    async def prune(self, archive_path: str) -> None:
        """Remove older archives of this VM, oldest first; one that stays does not keep the others.

        Args:
            archive_path: of the new, proved archive.
        Raises:
            TargetError: at the end, if any could not be removed.
        """
        if not self.is_pruning:
            return
        rule = self._keep.retention.rule
        emit = self._ports.emit
        emit(events.PruneStarted(rule_text=render_rule(rule)))
        decisions = decide_retention(
            await self._list_entries(), rule, local_time=local_time_as_named
        )
        decisions = spare_new(decisions, archive_path.rpartition("/")[2])
        going = [decision for decision in reversed(decisions) if not decision.keep]
        removed_count = 0
        for decision in going:
            removed_count += await self._remove(decision)
        if removed_count < len(going):
            raise TargetError("error pruning backups - check log", hint=_COMPLETE_HINT)
        emit(events.PruneEnded(removed_count=removed_count))

    async def _write_notes(self, archive_path: str, vm_name: str) -> None:
        facts = NotesFacts(
            vmid=self._vmid,
            vm_name=vm_name,
            node_name=self._ports.node.name,
            cluster_name=self._keep.cluster_name,
        )
        text = expand_notes(self._keep.notes_template, facts)
        await self._ports.store.write_file(notes_name(archive_path), text.encode())

    async def _list_entries(self) -> list[RetentionEntry]:
        names = await self._ports.store.list_names(self._directory)
        present = frozenset(names)
        protected = [name for name in names if protection_name(name) in present]
        entries = read_entries(names, protected=protected)
        return [entry for entry in entries if entry.vmid == self._vmid]

    async def _remove(self, decision: RetentionDecision) -> bool:
        store, emit = self._ports.store, self._ports.emit
        name, path = decision.name, f"{self._directory}/{decision.name}"
        emit(events.BackupRemoving(storage_id=self._storage_id, name=name, path=path))
        label = f"{self._storage_id}:backup/{name}" if self._storage_id else path
        try:
            # Looked at again right before: an operator may have protected it meanwhile.
            if await store.exists(protection_name(path)):
                raise TargetError(f"cannot remove protected archive '{path}'")
            await store.remove_file(path)
        except TargetError as error:
            emit(events.BackupRemovalFailed(name=label, text=str(error)))
            return False
        for side_path in (f"{self._directory}/{side_log_name(name)}", notes_name(path)):
            try:
                await store.remove_file(side_path)
            except TargetError as error:
                emit(events.Warned(text=str(error)))
        return True
