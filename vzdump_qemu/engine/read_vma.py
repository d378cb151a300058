"""The reading path into a VMA archive: disks of any source, packed by our own writer.

Owns the order between source, packer and intake, and what counts as the first cause; where the
disks come from is left to a `DiskSource`. See architecture, section 4.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from vzdump_qemu.engine.context import EnginePorts
from vzdump_qemu.engine.disk_source import DiskSource
from vzdump_qemu.engine.intake import open_noted_intake
from vzdump_qemu.engine.run_state import GuestLook
from vzdump_qemu.engine.undo import UndoStack
from vzdump_qemu.errors import BackupError, DiskReadError, TargetError, VmaError
from vzdump_qemu.formats.vma import ConfigBlob
from vzdump_qemu.ports import (
    ArchiveTarget,
    DiskTransfer,
    JobProgress,
    JobStatus,
    VmaExpectation,
    VmaIntake,
    VmaProof,
)

# After the last read only what the pipe still holds and the compressor's tail are missing.
STREAM_END_TIMEOUT_S = 3600.0


class ReadingVmaPath:
    """One run's disks on their way into one archive; a `DataPath`.

    Args:
        configs: in the order they are stored.
        device_ids: of all disks.
        rate_limit_bytes_per_s: of reading; 0 means unlimited.
    """

    def __init__(
        self,
        ports: EnginePorts,
        source: DiskSource,
        target: ArchiveTarget,
        *,
        configs: Sequence[ConfigBlob],
        device_ids: Sequence[str],
        rate_limit_bytes_per_s: int,
    ) -> None:
        self._ports = ports
        self._source = source
        self._target = target
        self._configs = tuple((config.name, config.data) for config in configs)
        self._device_ids = tuple(device_ids)
        self._rate_limit_bytes_per_s = rate_limit_bytes_per_s
        self._intake: VmaIntake | None = None
        self._transfer: DiskTransfer | None = None
        self._undo: UndoStack | None = None
        self._uuid = ""

    @property
    def intake(self) -> VmaIntake:
        assert self._intake is not None
        return self._intake

    async def prepare(self, undo: UndoStack) -> None:
        """Open the target, then let the source attach what it needs."""
        self._undo = undo
        self._intake = await open_noted_intake(self._ports, self._target, undo)
        await self._source.prepare(undo)

    async def start(self) -> str:
        """Let the source fix the point in time; the archive's uuid is ours to choose."""
        self._uuid = self._ports.ids.uuid()
        await self._source.fix()
        return self._uuid

    async def guest_silent(self) -> GuestLook:
        """See `DataPath.guest_silent`."""
        return await self._source.guest_silent()

    async def started(self) -> None:
        """The window is over: show the disks and begin to read them."""
        assert self._undo is not None
        origins = await self._source.expose()
        self._undo.push_own("stop reading the disks", self._stop)
        try:
            self._transfer = await self._ports.packer.begin(
                origins,
                self.intake,
                uuid=self._uuid,
                configs=self._configs,
                rate_limit_bytes_per_s=self._rate_limit_bytes_per_s,
            )
        except DiskReadError as error:
            raise await self._source.explain(error) from error

    async def progress(self) -> JobProgress:
        """One look at the transfer; raises its first cause."""
        assert self._transfer is not None
        failure = self._transfer.failure()
        if failure is not None:
            raise await self._first_cause(failure)
        await self._source.check()
        seen = self._transfer.progress()
        is_done = seen.done_bytes >= seen.total_bytes
        return JobProgress(
            status=JobStatus.DONE if is_done else JobStatus.ACTIVE,
            uuid=self._uuid,
            total_bytes=seen.total_bytes,
            dirty_bytes=seen.total_bytes,
            transferred_bytes=seen.done_bytes,
            zero_bytes=seen.zero_bytes,
            reused_bytes=seen.reused_bytes,
        )

    def failure(self) -> BackupError | None:
        """What went wrong at the target; a stream that broke off follows from our reading."""
        failure = self.intake.failure()
        if failure is None or isinstance(failure, VmaError):
            return None
        return failure if isinstance(failure, BackupError) else BackupError(str(failure))

    async def finish(self) -> VmaProof:
        """Wait until all was read, let the guest go, then wait for the target."""
        assert self._transfer is not None
        try:
            async with asyncio.timeout(STREAM_END_TIMEOUT_S):
                await self._transfer.finish()
        except TimeoutError as error:
            raise TargetError(
                f"the target took no data for {STREAM_END_TIMEOUT_S:g} seconds"
            ) from error
        except BackupError as error:
            raise await self._first_cause(error) from error
        await self._source.release()
        return await self.intake.finish(
            VmaExpectation(uuid=self._uuid, device_ids=self._device_ids),
            timeout_s=STREAM_END_TIMEOUT_S,
        )

    async def _first_cause(self, error: BackupError) -> BackupError:
        of_target = self.failure()
        return of_target if of_target is not None else await self._source.explain(error)

    async def _stop(self) -> None:
        # A reader that waits for a stalled target would not hear us.
        self.intake.drain()
        if self._transfer is not None:
            await self._transfer.cancel()
