"""The reading path: disks of any source on their way to any target.

Owns the order between a source and a target, and what counts as the first cause; where the disks
come from is left to a `DiskSource`, what is made of them to a `TargetSide`. See architecture,
section 4.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from vzdump_qemu.disk_ports import DiskOrigin
from vzdump_qemu.engine.change_tracking import IncrementalRequest
from vzdump_qemu.engine.context import EnginePorts, ProvedBackup, PublishedBackup
from vzdump_qemu.engine.disk_source import DiskSource
from vzdump_qemu.engine.run_state import GuestLook
from vzdump_qemu.engine.undo import UndoStack
from vzdump_qemu.errors import BackupError, DiskReadError, TargetError
from vzdump_qemu.pbs_ports import DiskSize, IndexReuse
from vzdump_qemu.ports import DiskTransfer, JobProgress, JobStatus

# What was read is in buffers of ours by then, and the target has taken data until a moment ago.
TRANSFER_END_TIMEOUT_S = 3600.0

MakeSource: TypeAlias = Callable[[IncrementalRequest | None], DiskSource]


class TargetSide(Protocol):
    """One kind of target, as the reading path fills it."""

    async def open(self, undo: UndoStack) -> IncrementalRequest | None:
        """Before anything is attached to the guest; what of an earlier backup can be used."""
        ...

    async def announce(self, disks: Sequence[DiskSize]) -> Sequence[IndexReuse]:
        """The disks that will come; which of them cannot build upon the earlier backup."""
        ...

    async def begin(self, origins: Sequence[DiskOrigin], *, uuid: str) -> DiskTransfer:
        """Open the disks and begin to move them. Raises DiskReadError."""
        ...

    def failure(self) -> BackupError | None:
        """What went wrong at the target so far; not what only follows from our reading."""
        ...

    def give_up(self) -> None:
        """Take no more, so that no reader waits for the target. Idempotent."""
        ...

    async def prove(self) -> ProvedBackup:
        """All was moved: wait until the target's side is shown to be whole."""
        ...


class ReadingPath:
    """One run's disks on their way to one target; a `DataPath`.

    Args:
        make_source: given what the target can take up of an earlier backup.
    """

    def __init__(self, ports: EnginePorts, make_source: MakeSource, side: TargetSide) -> None:
        self._ports = ports
        self._make_source = make_source
        self._side = side
        self._source: DiskSource | None = None
        self._transfer: DiskTransfer | None = None
        self._undo: UndoStack | None = None
        self._uuid = ""

    async def prepare(self, undo: UndoStack) -> None:
        """Open the target, then let the source attach what it needs."""
        self._undo = undo
        request = await self._side.open(undo)
        source = self._source = self._make_source(request)
        await source.prepare(undo)
        for reuse in await self._side.announce(source.disk_sizes):
            if reuse.refusal:
                source.refuse_reuse(reuse.device_id, reuse.refusal)

    async def start(self) -> str:
        """Let the source fix the point in time; the backup's uuid is ours to choose."""
        self._uuid = self._ports.ids.uuid()
        await self._opened.fix()
        return self._uuid

    async def guest_silent(self) -> GuestLook:
        """See `DataPath.guest_silent`."""
        return await self._opened.guest_silent()

    async def started(self) -> None:
        """The window is over: show the disks and begin to read them."""
        assert self._undo is not None
        origins = await self._opened.expose()
        self._undo.push_own("stop reading the disks", self._stop)
        try:
            self._transfer = await self._side.begin(origins, uuid=self._uuid)
        except DiskReadError as error:
            raise await self._opened.explain(error) from error

    async def progress(self) -> JobProgress:
        """One look at the transfer; raises its first cause."""
        assert self._transfer is not None
        failure = self._transfer.failure()
        if failure is not None:
            raise await self._first_cause(failure)
        await self._opened.check()
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
        """What went wrong at the target."""
        return self._side.failure()

    async def finish(self) -> ProvedBackup:
        """Wait until all was read, let the guest go, then wait for the target."""
        assert self._transfer is not None
        try:
            async with asyncio.timeout(TRANSFER_END_TIMEOUT_S):
                await self._transfer.finish()
        except TimeoutError as error:
            raise TargetError(
                f"the target took no data for {TRANSFER_END_TIMEOUT_S:g} seconds"
            ) from error
        except BackupError as error:
            raise await self._first_cause(error) from error
        await self._opened.release()
        return _BackupOfSource(await self._side.prove(), self._opened)

    @property
    def _opened(self) -> DiskSource:
        assert self._source is not None
        return self._source

    async def _first_cause(self, error: BackupError) -> BackupError:
        of_target = self._side.failure()
        return of_target if of_target is not None else await self._opened.explain(error)

    async def _stop(self) -> None:
        # A reader that waits for a stalled target would not hear us.
        self._side.give_up()
        if self._transfer is not None:
            await self._transfer.cancel()


class _BackupOfSource:
    """A proved backup whose source counts the changes from it on, once it is published."""

    def __init__(self, backup: ProvedBackup, source: DiskSource) -> None:
        self._backup = backup
        self._source = source

    async def publish(self) -> PublishedBackup:
        published = await self._backup.publish()
        if published.backup_id:
            await self._source.keep_changes(published.backup_id)
        return published
