"""A VMA archive as the target of a run: what packs disks into it, and what publishes it.

Owns the archive's side of the reading path, and the step from a proved stream to a name that every
data path of an archive ends with. Source: architecture, section 4; failure modes 61 to 65.
"""

from __future__ import annotations

from collections.abc import Sequence

from vzdump_qemu import events
from vzdump_qemu.disk_ports import DiskOrigin
from vzdump_qemu.engine.change_tracking import IncrementalRequest
from vzdump_qemu.engine.context import EnginePorts, ProvedBackup, PublishedBackup
from vzdump_qemu.engine.intake import open_noted_intake
from vzdump_qemu.engine.undo import UndoStack
from vzdump_qemu.errors import BackupError, VmaError
from vzdump_qemu.formats.vma import ConfigBlob
from vzdump_qemu.pbs_ports import DiskSize, IndexReuse
from vzdump_qemu.ports import ArchiveTarget, DiskTransfer, VmaExpectation, VmaIntake

# After the last byte only what the pipe still holds and the compressor's tail are missing.
STREAM_END_TIMEOUT_S = 3600.0


class VmaBackup:
    """An archive that was proved on its way; a `ProvedBackup`."""

    def __init__(self, ports: EnginePorts, intake: VmaIntake, target: ArchiveTarget) -> None:
        self._ports = ports
        self._intake = intake
        self._target = target

    async def publish(self) -> PublishedBackup:
        """See `ProvedBackup.publish`."""
        size_bytes = await self._intake.publish()
        location = self._target.final_path
        if location:
            self._ports.emit(events.ArchivePublished(archive_path=location, size_bytes=size_bytes))
        return PublishedBackup(location=location, size_bytes=size_bytes)


async def prove_archive(
    ports: EnginePorts, intake: VmaIntake, target: ArchiveTarget, expectation: VmaExpectation
) -> ProvedBackup:
    """Wait for the end of the stream and of the compressor, and tell what was shown.

    Raises: VmaError, CompressorError, TargetError.
    """
    proof = await intake.finish(expectation, timeout_s=STREAM_END_TIMEOUT_S)
    ports.emit(
        events.ArchiveProved(
            stream_bytes=proof.stream_bytes,
            vma_cluster_count=proof.vma_cluster_count,
            stored_bytes=proof.stored_bytes,
        )
    )
    return VmaBackup(ports, intake, target)


class VmaSide:
    """One archive as a `TargetSide`.

    Args:
        configs: in the order they are stored.
        device_ids: of all disks.
        rate_limit_bytes_per_s: of reading; 0 means unlimited.
    """

    def __init__(
        self,
        ports: EnginePorts,
        target: ArchiveTarget,
        *,
        configs: Sequence[ConfigBlob],
        device_ids: Sequence[str],
        rate_limit_bytes_per_s: int,
    ) -> None:
        self._ports = ports
        self._target = target
        self._configs = tuple((config.name, config.data) for config in configs)
        self._device_ids = tuple(device_ids)
        self._rate_limit_bytes_per_s = rate_limit_bytes_per_s
        self._intake: VmaIntake | None = None
        self._uuid = ""

    @property
    def _opened(self) -> VmaIntake:
        assert self._intake is not None
        return self._intake

    async def open(self, undo: UndoStack) -> IncrementalRequest | None:
        """Open the intake; an archive stands for itself and takes up nothing."""
        self._intake = await open_noted_intake(self._ports, self._target, undo)
        return None

    async def announce(self, disks: Sequence[DiskSize]) -> Sequence[IndexReuse]:
        """Nothing is built upon."""
        return ()

    async def begin(self, origins: Sequence[DiskOrigin], *, uuid: str) -> DiskTransfer:
        """See `TargetSide.begin`."""
        self._uuid = uuid
        return await self._ports.packer.begin(
            origins,
            self._opened,
            uuid=uuid,
            configs=self._configs,
            rate_limit_bytes_per_s=self._rate_limit_bytes_per_s,
        )

    def failure(self) -> BackupError | None:
        """See `TargetSide.failure`; a stream that broke off follows from our reading."""
        failure = self._opened.failure()
        if failure is None or isinstance(failure, VmaError):
            return None
        return failure if isinstance(failure, BackupError) else BackupError(str(failure))

    def give_up(self) -> None:
        """See `TargetSide.give_up`."""
        self._opened.drain()

    async def prove(self) -> ProvedBackup:
        """See `TargetSide.prove`."""
        expectation = VmaExpectation(uuid=self._uuid, device_ids=self._device_ids)
        return await prove_archive(self._ports, self._opened, self._target, expectation)
