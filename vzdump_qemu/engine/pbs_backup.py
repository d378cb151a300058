"""A backup server as the target of a run: what our own client sends disks with.

Owns the server's side of the reading path: what of the previous backup is built upon, and that
nothing is left at the server of a run that failed. The protocol is left to the port. Source:
architecture, section 4; failure modes 71 to 76.
"""

from __future__ import annotations

from collections.abc import Sequence

from vzdump_qemu import events
from vzdump_qemu.disk_ports import DiskOrigin
from vzdump_qemu.engine.change_tracking import IncrementalRequest
from vzdump_qemu.engine.context import EnginePorts, ProvedBackup, PublishedBackup
from vzdump_qemu.engine.pbs_published import tell_published
from vzdump_qemu.engine.undo import UndoStack
from vzdump_qemu.errors import BackupError
from vzdump_qemu.formats.pbs import BackupRef
from vzdump_qemu.formats.vma import ConfigBlob
from vzdump_qemu.pbs_ports import DiskSize, IndexReuse, PbsUpload
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.ports import DiskTransfer


class PbsSide:
    """One backup at a server as a `TargetSide`.

    Args:
        configs: in the order they are stored, under the names the server knows.
        rate_limit_bytes_per_s: of reading; 0 means unlimited.
    """

    def __init__(
        self,
        ports: EnginePorts,
        target: PbsTarget,
        backup: BackupRef,
        *,
        configs: Sequence[ConfigBlob],
        rate_limit_bytes_per_s: int,
    ) -> None:
        self._ports = ports
        self._target = target
        self._backup = backup
        self._configs = tuple((config.name, config.data) for config in configs)
        self._rate_limit_bytes_per_s = rate_limit_bytes_per_s
        self._upload: PbsUpload | None = None

    @property
    def _opened(self) -> PbsUpload:
        assert self._upload is not None
        return self._upload

    async def open(self, undo: UndoStack) -> IncrementalRequest | None:
        """Connect, and see what the server's last backup of this VM is good for."""
        undo.push_own("end the connection to the backup server", self._abort)
        self._upload = await self._ports.pbs.connect(self._target, self._backup)
        previous = self._upload.previous
        return IncrementalRequest(
            target_id=f"{self._target.identity}:{self._backup.backup_group.path}",
            base_id=previous.backup_id,
            refusal=previous.refusal,
        )

    async def announce(self, disks: Sequence[DiskSize]) -> Sequence[IndexReuse]:
        """Begin the indexes and send the configurations."""
        return await self._opened.begin_indexes(disks, self._configs)

    async def begin(self, origins: Sequence[DiskOrigin], *, uuid: str) -> DiskTransfer:
        """See `TargetSide.begin`."""
        return await self._opened.begin(
            origins, rate_limit_bytes_per_s=self._rate_limit_bytes_per_s
        )

    def failure(self) -> BackupError | None:
        """See `TargetSide.failure`."""
        return self._opened.failure()

    def give_up(self) -> None:
        """The transfer's own end lets nobody wait: it is the one that speaks to the server."""

    async def prove(self) -> ProvedBackup:
        """Every chunk was confirmed by its sum; what is left makes the backup visible."""
        return _PbsBackup(self._ports, self._opened, self._backup)

    async def _abort(self) -> None:
        if self._upload is not None:
            await self._upload.abort()


class _PbsBackup:
    """A backup whose chunks and indexes the server has confirmed; a `ProvedBackup`."""

    def __init__(self, ports: EnginePorts, upload: PbsUpload, backup: BackupRef) -> None:
        self._ports = ports
        self._upload = upload
        self._backup = backup

    async def publish(self) -> PublishedBackup:
        """See `ProvedBackup.publish`."""
        self._ports.emit(events.ServerFinishing())
        return tell_published(self._ports, self._backup, await self._upload.finish())
