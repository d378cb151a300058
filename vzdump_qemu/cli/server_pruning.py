"""What the verb ``prune`` does at a backup server.

Owns that the server's own rule decides, and the promise on top of it: the last whole backup of a
VM stays. So backups are removed one by one, each only if nothing speaks against it. Source: host
behaviour, sections 2.6, 2.7 and 5.8.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from vzdump_qemu.cli.pruning import (
    FAILED_HINT,
    FoundRule,
    PrunePlan,
    Tell,
)
from vzdump_qemu.engine.pbs_keeping import FORBIDDEN, PERMISSION_HINT
from vzdump_qemu.engine.removal import PRUNING_FAILED
from vzdump_qemu.errors import PbsCorrupt, PbsError, PbsRefused, PbsUnreachable, TargetError
from vzdump_qemu.formats.pbs import BackupGroup, BackupRef
from vzdump_qemu.pbs_ports import PbsPruned, PbsStored
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.plan.retention import LocalTime, RetentionDecision, spare_last_whole
from vzdump_qemu.plan.retention_at_server import ServerEntry, decide_at_server
from vzdump_qemu.plan.retention_rule import positive_counts
from vzdump_qemu.stores.pbs.server_backup import ServerBackup
from vzdump_qemu.stores.pbs.uploads import make_management
from vzdump_qemu.stores.system import SystemClock

_VMID = re.compile(r"[1-9][0-9]{2,8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPlace:
    """Backups in one namespace of a server; a `PrunePlace`."""

    target: PbsTarget
    found: FoundRule

    @property
    def label(self) -> str:
        """See `PrunePlace.label`."""
        target = self.target
        place = target.storage_id or target.repository.render()
        return place if target.namespace.is_root else f"{place}:{target.namespace}"

    @property
    def size_note(self) -> str:
        """See `PrunePlace.size_note`."""
        return " as they restore; room comes with the server's garbage collection"

    @property
    def local_time(self) -> LocalTime:
        """See `PrunePlace.local_time`: this machine's zone."""
        return datetime.fromtimestamp

    def plan(self, vmids: Collection[int], *, verify: bool) -> PrunePlan:
        """See `PrunePlace.plan`; else the server's own word counts: final, and not found damaged.

        Raises: PbsRefused also for a dry run where the token may not prune.
        """
        stored, going = asyncio.run(self._ask(vmids))
        by_name = {one.backup.path: one for one in stored}
        decisions = decide_at_server(
            [_entry(one) for one in stored],
            self.found.rule,
            going=going,
            local_time=self.local_time,
        )
        whole = {name for name, one in by_name.items() if one.is_finished and not one.is_damaged}
        decisions = spare_last_whole(
            decisions,
            is_whole=lambda name: (
                name in whole and (not verify or self._is_proved(by_name[name].backup))
            ),
        )
        return PrunePlan(
            decisions=decisions,
            freed_bytes=sum(by_name[one.name].size_bytes for one in decisions if not one.keep),
            vmids_without_archives=tuple(sorted(set(vmids) - {one.vmid for one in decisions})),
        )

    def remove(self, plan: PrunePlan, *, tell: Tell, complain: Tell) -> int:
        """See `PrunePlace.remove`; a server that is gone ends it at once."""
        return asyncio.run(self._remove(plan.going, tell=tell, complain=complain))

    async def _ask(self, vmids: Collection[int]) -> tuple[Sequence[PbsStored], set[str]]:
        """What there is, and the names of what the server would remove."""
        server = make_management(self.target, clock=SystemClock())
        wanted = {str(vmid) for vmid in vmids}
        stored = [
            one
            for one in await server.list_backups()
            if not wanted or one.backup.backup_group.backup_id in wanted
        ]
        groups = {one.backup.backup_group: None for one in stored}
        counts = positive_counts(self.found.rule)
        going: set[str] = set()
        for group in groups if counts else ():
            if _vmid_of(group) is not None:
                pruned = await _with_hint(server.prune(group, counts, is_dry_run=True))
                going |= {one.backup.path for one in pruned if not one.is_kept}
        return stored, going

    async def _remove(
        self, going: Sequence[RetentionDecision], *, tell: Tell, complain: Tell
    ) -> int:
        server = make_management(self.target, clock=SystemClock())
        prefix = f"{self.target.storage_id}:backup/" if self.target.storage_id else ""
        removed_count, hint = 0, FAILED_HINT
        for decision in reversed(going):
            label = f"{prefix}{decision.name}"
            tell(f"removing backup '{label}'")
            try:
                await server.remove(BackupRef.parse(decision.name))
            except PbsError as error:
                complain(f"ERROR: error when removing backup '{label}' - {error}")
                if isinstance(error, PbsUnreachable):
                    break
                if isinstance(error, PbsRefused) and error.status == FORBIDDEN:
                    hint = PERMISSION_HINT
            else:
                removed_count += 1
        if removed_count < len(going):
            raise TargetError(PRUNING_FAILED, hint=hint)
        return removed_count

    def _is_proved(self, backup: BackupRef) -> bool:
        """Whether a backup is whole to its last chunk; reads all of it."""
        proof = ServerBackup(
            *(self.target, backup.backup_group, backup.backup_time_s),
            name=backup.path,
            clock=SystemClock(),
        )
        try:
            proof.verify()
        except PbsCorrupt:
            return False
        return True


def _vmid_of(group: BackupGroup) -> int | None:
    return int(group.backup_id) if _VMID.fullmatch(group.backup_id) else None


def _entry(stored: PbsStored) -> ServerEntry:
    backup = stored.backup
    return ServerEntry(
        name=backup.path,
        vmid=_vmid_of(backup.backup_group),
        time_s=backup.backup_time_s,
        is_finished=stored.is_finished,
        is_protected=stored.is_protected,
    )


async def _with_hint(pruning: Awaitable[Sequence[PbsPruned]]) -> Sequence[PbsPruned]:
    try:
        return await pruning
    except PbsRefused as error:
        if error.status != FORBIDDEN:
            raise
        raise PbsRefused(error.message, status=error.status, hint=PERMISSION_HINT) from error
