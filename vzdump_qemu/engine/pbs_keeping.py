"""What surrounds the backups of one VM at a server: room, notes, protection, pruning, the log.

Owns the order and what a failure means; which backups go is the server's to say, in its own zone,
as `proxmox-backup-client prune` has it. The new backup was made final and proved before, and is
the newest of its group, so any rule holds it. Source: host behaviour, sections 1.7 (steps 5, 23,
24, 32), 2.6, 2.7 and 5.8.
"""

from __future__ import annotations

from vzdump_qemu import events
from vzdump_qemu.engine.context import EnginePorts
from vzdump_qemu.engine.keeping import COMPLETE_HINT, has_limit, make_notes
from vzdump_qemu.engine.removal import PRUNING_FAILED
from vzdump_qemu.errors import BackupError, PbsError, PbsRefused, TargetError
from vzdump_qemu.formats.pbs import BackupGroup, BackupRef, BackupType
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.plan.options import KeepOptions
from vzdump_qemu.plan.retention_rule import (
    StoredCounts,
    check_backup_limit,
    positive_counts,
    render_rule,
)

FORBIDDEN = 403
PERMISSION_HINT = (
    "with Datastore.Backup alone nothing is pruned: give the user or token the role "
    "DatastorePowerUser, or leave pruning to a job of the server"
)


class ServerKeeping:
    """Backups in one group at a server; a `Keeping`."""

    def __init__(self, ports: EnginePorts, keep: KeepOptions, vmid: int, target: PbsTarget) -> None:
        self._ports = ports
        self._keep = keep
        self._vmid = vmid
        self._storage_id = target.storage_id
        self._group = BackupGroup(backup_type=BackupType.VM, backup_id=str(vmid))
        self._server = ports.pbs.manage(target)

    @property
    def is_pruning(self) -> bool:
        """See `Keeping.is_pruning`."""
        return self._keep.retention.remove

    async def check_room(self) -> None:
        """See `Keeping.check_room`; backups that are not final count as well."""
        keep = self._keep
        if not has_limit(keep):
            return
        stored = await self._server.list_backups(self._group)
        protected_count = sum(one.is_protected for one in stored)
        check_backup_limit(
            keep.retention,
            StoredCounts(
                protected_count=protected_count, unprotected_count=len(stored) - protected_count
            ),
            protect=keep.protected,
            protected_max=keep.protected_max,
            storage_id=self._storage_id,
        )

    async def mark(self, location: str, *, vm_name: str) -> None:
        """See `Keeping.mark`."""
        ports, keep, backup = self._ports, self._keep, BackupRef.parse(location)
        if keep.notes_template:
            ports.emit(events.NotesAdding())
            try:
                text = make_notes(ports, keep, vmid=self._vmid, vm_name=vm_name)
                await self._server.write_notes(backup, text)
            except BackupError as error:
                ports.emit(events.Warned(text=f"unable to add notes - {error}"))
        if keep.protected:
            ports.emit(events.BackupProtecting())
            try:
                await self._server.protect(backup)
            except PbsError as error:
                raise TargetError(
                    f"unable to set protected flag - {error}", hint=COMPLETE_HINT
                ) from error

    async def prune(self, location: str) -> None:
        """See `Keeping.prune`: one call, which the server carries out or refuses as a whole."""
        if not self.is_pruning:
            return
        emit, rule = self._ports.emit, self._keep.retention.rule
        emit(events.PruneStarted(rule_text=render_rule(rule)))
        emit(events.ServerPruning(group=self._group.path))
        try:
            pruned = await self._server.prune(self._group, positive_counts(rule))
        except PbsError as error:
            emit(events.ServerPruneFailed(group=self._group.path, text=str(error)))
            is_forbidden = isinstance(error, PbsRefused) and error.status == FORBIDDEN
            hint = f"{COMPLETE_HINT}; {PERMISSION_HINT}" if is_forbidden else COMPLETE_HINT
            raise TargetError(PRUNING_FAILED, hint=hint) from error
        emit(events.PruneEnded(removed_count=sum(not one.is_kept for one in pruned)))

    async def hand_over_log(self, location: str, log_path: str) -> None:
        """See `Keeping.hand_over_log`."""
        try:
            log = self._ports.read_log(log_path)
            if log is not None:
                await self._server.upload_log(BackupRef.parse(location), log)
        except BackupError as error:
            self._ports.emit(events.Warned(text=f"uploading backup task log failed: {error}"))
