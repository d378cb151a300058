"""The `PbsManagement` port on our own client.

Owns the port's values and what an older server does not know; the calls are `management`'s.
Source: host behaviour, section 5.8; PBS formats, section 11.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from vzdump_qemu.errors import PbsError, PbsRefused
from vzdump_qemu.formats.pbs import BackupGroup, BackupRef, BackupType
from vzdump_qemu.pbs_ports import PbsPruned, PbsStored
from vzdump_qemu.stores.pbs.key_loading import BackupKey
from vzdump_qemu.stores.pbs.management import DatastoreCalls, KeepCounts, ListedBackup

_NOT_FOUND = 404
_VERIFY_FAILED = "failed"


class ClientManagement:
    """`vzdump_qemu.pbs_ports.PbsManagement`, spoken by our own client.

    Args:
        find_key: has the key that logs are encrypted with, None for plain ones.
    """

    def __init__(
        self, calls: DatastoreCalls, *, find_key: Callable[[], Awaitable[BackupKey | None]]
    ) -> None:
        self._calls = calls
        self._find_key = find_key

    async def list_backups(self, group: BackupGroup | None = None) -> Sequence[PbsStored]:
        """As the port says."""
        return [
            _stored(one)
            for one in await self._calls.list_backups(group)
            if one.backup.backup_group.backup_type is BackupType.VM
        ]

    async def write_notes(self, backup: BackupRef, notes: str) -> None:
        """As the port says."""
        await self._calls.write_notes(backup, notes)

    async def protect(self, backup: BackupRef) -> None:
        """As the port says."""
        try:
            await self._calls.set_protected(backup, is_protected=True)
        except PbsRefused as error:
            if error.status != _NOT_FOUND:
                raise
            raise PbsError("Server is not recent enough to support feature 'protected'") from error

    async def prune(
        self, group: BackupGroup, counts: Mapping[str, int], *, is_dry_run: bool = False
    ) -> Sequence[PbsPruned]:
        """As the port says."""
        keep = KeepCounts(**{name.removeprefix("keep-"): count for name, count in counts.items()})
        pruned = await self._calls.prune(group, keep, is_dry_run=is_dry_run)
        # What an older server tells of protected ones beside `keep` is that they stay.
        return [
            PbsPruned(backup=one.backup, is_kept=one.is_kept or one.is_protected) for one in pruned
        ]

    async def remove(self, backup: BackupRef) -> None:
        """As the port says."""
        await self._calls.forget(backup)

    async def upload_log(self, backup: BackupRef, log: bytes) -> None:
        """As the port says."""
        key = await self._find_key()
        await self._calls.upload_log(backup, log, key=None if key is None else key.key)


def _stored(listed: ListedBackup) -> PbsStored:
    return PbsStored(
        backup=listed.backup,
        is_finished=listed.size_bytes is not None,
        is_protected=listed.is_protected,
        is_damaged=listed.verify_state == _VERIFY_FAILED,
        size_bytes=listed.size_bytes or 0,
    )
