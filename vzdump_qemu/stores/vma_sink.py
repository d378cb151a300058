"""Disks into one VMA stream, written into an intake's pipe.

Owns: turning pieces into VmaExtents in whatever order they come, writing them without ever being
stuck, and opening all disks of an archive. The format is `formats.vma`'s, moving the pieces
`stores.disk_pump`'s, and proving the stream, as if somebody else had made it, the intake's.
Source: VMA format, sections 4, 5 and 10.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import threading
import uuid as uuids
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Final, TypeAlias

import numpy as np

from vzdump_qemu.disk_ports import DiskOrigin, DiskReader
from vzdump_qemu.errors import InternalError, TargetError
from vzdump_qemu.formats.vma import (
    Buffer,
    ConfigBlob,
    VmaDevice,
    VmaWriter,
    layout,
    stored_blocks,
)
from vzdump_qemu.ports import Clock, VmaIntake
from vzdump_qemu.stores.disk_pump import DiskPump
from vzdump_qemu.stores.raw_disk import RawDisk
from vzdump_qemu.stores.system import start_thread
from vzdump_qemu.units import SECTOR_BYTES

_BUFFERS_PER_WRITE_MAX: Final = 1024
# How soon a thread that waits for room in the pipe notices that it need not.
_WAKE_MS: Final = 100

OpenReader: TypeAlias = Callable[[DiskOrigin], DiskReader]


class VmaSink:
    """`vzdump_qemu.disk_ports.DiskSink` that writes a VMA stream into a pipe or file.

    Args:
        fd: written to; owned from now on, and switched to non-blocking.
        writer: a fresh one, whose device numbers are the disk indexes plus 1.
    """

    def __init__(self, fd: int, writer: VmaWriter) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._writer = writer
        self._unwritten: list[Buffer] = [writer.header_bytes()]
        self._lock = threading.Lock()
        self._is_interrupted = False

    def put(self, disk_index: int, offset_bytes: int, data: memoryview) -> int:
        """As the port says. Raises TargetError, VmaError."""
        # The costly look at the data needs no order, so other threads may write meanwhile.
        stored = stored_blocks(data)
        with self._lock:
            ready = self._writer.add_examined_clusters(
                disk_index + 1, _cluster_index(offset_bytes), data, stored
            )
            # What is pending lies in the caller's buffer, which is the caller's again.
            self._write(ready + self._writer.flush())
        zero_count = len(stored) - int(np.count_nonzero(stored))
        return min(zero_count * layout.VMA_BLOCK_BYTES, len(data))

    def put_zeroes(self, disk_index: int, offset_bytes: int, length_bytes: int) -> None:
        """As the port says. Raises TargetError, VmaError."""
        count = -(-length_bytes // layout.VMA_CLUSTER_BYTES)
        with self._lock:
            self._write(
                self._writer.add_zero_clusters(disk_index + 1, _cluster_index(offset_bytes), count)
            )

    def put_unchanged(self, disk_index: int, offset_bytes: int, length_bytes: int) -> None:
        """There is no base that an archive could refer to. Raises InternalError."""
        raise InternalError("a vma archive cannot leave out what did not change")

    def finish(self) -> None:
        """As the port says. Raises TargetError, VmaError."""
        with self._lock:
            self._write(self._writer.finish())

    def interrupt(self) -> None:
        """As the port says; the stream ends where it stands."""
        self._is_interrupted = True
        self.close()

    def close(self) -> None:
        """As the port says."""
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)

    def _write(self, ready: list[Buffer]) -> None:
        """Write all of it in order, the lock held."""
        buffers = [memoryview(one).cast("B") for one in (*self._unwritten, *ready)]
        self._unwritten = []
        buffers.reverse()
        while buffers:
            if self._is_interrupted:
                raise TargetError("writing the archive stream was ended")
            part = buffers[: -_BUFFERS_PER_WRITE_MAX - 1 : -1]
            try:
                count = os.writev(self._fd, part)
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll(_WAKE_MS)
                continue
            except OSError as error:
                # Nobody may write behind a part that is missing.
                self._is_interrupted = True
                raise TargetError(
                    f"unable to write to the archive stream - {error.strerror}"
                ) from error
            while count:
                if count < len(buffers[-1]):
                    buffers[-1] = buffers[-1][count:]
                    break
                count -= len(buffers.pop())


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
    ) -> DiskPump:
        """As the port says. Raises VmaError too: VMA cannot hold this; nothing was written.

        Cancelled: nothing was written; disks that are being opened are let go of once they are.
        """
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


def _cluster_index(offset_bytes: int) -> int:
    return offset_bytes // layout.VMA_CLUSTER_BYTES
