"""The `VmaPacker` port on threads: opens disks, joins them with a sink, and lets the pump run.

Leaves reading to the readers, writing to `stores.vma_sink` and moving to `stores.disk_pump`.
"""

from __future__ import annotations

import asyncio
import fcntl
import uuid as uuids
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from typing import TypeAlias

from vzdump_qemu.disk_ports import DiskOrigin, DiskReader
from vzdump_qemu.formats.vma import ConfigBlob, VmaDevice
from vzdump_qemu.ports import Clock, DiskTransfer, VmaIntake
from vzdump_qemu.stores.raw_disk import RawDisk
from vzdump_qemu.stores.system import start_thread
from vzdump_qemu.units import SECTOR_BYTES

OpenReader: TypeAlias = Callable[[DiskOrigin], DiskReader]


class PumpedVmaPacker:
    """`vzdump_qemu.ports.VmaPacker` on threads.

    Args:
        open_nbd: opens an origin with an NBD socket. It blocks, and raises DiskReadError.
    """

    def __init__(self, *, clock: Clock, open_nbd: OpenReader) -> None:
        self._clock = clock
        self._open_nbd = open_nbd

    async def begin(
        self,
        origins: Sequence[DiskOrigin],
        intake: VmaIntake,
        *,
        uuid: str,
        configs: Sequence[tuple[str, bytes]],
        rate_limit_bytes_per_s: int,
    ) -> DiskTransfer:
        """As the port says. Raises VmaError too: VMA cannot hold this; nothing was written.

        Cancelled: nothing was written; disks that are being opened are let go of once they are.
        """
        # What works on data loads the array library: it is loaded when there is data.
        from vzdump_qemu.formats.vma import VmaWriter
        from vzdump_qemu.stores.disk_pump import DiskPump
        from vzdump_qemu.stores.vma_sink import VmaSink

        writer = VmaWriter(
            uuids.UUID(uuid).bytes,
            int(self._clock.wall_s()),
            [ConfigBlob(name=name, data=data) for name, data in configs],
            [
                VmaDevice(vma_dev_id=index, name=origin.device_id, size_bytes=origin.size_bytes)
                for index, origin in enumerate(origins, start=1)
            ],
        )
        opening = start_thread(lambda: self._open_all(origins), name="open-disks")
        try:
            readers = await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)
            raise
        # A copy of our own: the intake may close its one at any time, also while we write.
        fd = fcntl.fcntl(intake.write_fd, fcntl.F_DUPFD_CLOEXEC, 0)
        intake.close_write_end()
        return DiskPump(
            readers,
            VmaSink(fd, writer),
            clock=self._clock,
            rate_limit_bytes_per_s=rate_limit_bytes_per_s,
        )

    async def check_readable(self, origins: Sequence[DiskOrigin]) -> None:
        """As the port says."""
        await asyncio.wrap_future(start_thread(lambda: self._check(origins), name="check-disks"))

    def _check(self, origins: Sequence[DiskOrigin]) -> None:
        for reader in self._open_all(origins):
            try:
                reader.read_into(0, memoryview(bytearray(SECTOR_BYTES)))
            finally:
                reader.close()

    def _open_all(self, origins: Sequence[DiskOrigin]) -> list[DiskReader]:
        readers: list[DiskReader] = []
        with ExitStack() as undo:
            for origin in origins:
                reader = self._open_nbd(origin) if origin.nbd_socket else RawDisk(origin)
                undo.callback(reader.close)
                readers.append(reader)
            undo.pop_all()
        return readers


def _close_opened(opening: Future[list[DiskReader]]) -> None:
    if opening.exception() is None:
        for reader in opening.result():
            reader.close()
