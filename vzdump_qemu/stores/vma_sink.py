"""Disks into one VMA stream, written into an intake's pipe.

Owns: turning pieces into VmaExtents in whatever order they come, writing them without ever being
stuck, and opening all disks of an archive. The format is `formats.vma`'s, moving the pieces
`stores.disk_pump`'s, and proving the stream, as if somebody else had made it, the intake's.
Source: VMA format, sections 4, 5 and 10.
"""

from __future__ import annotations

import os
import select
import threading
from typing import Final

import numpy as np

from vzdump_qemu.errors import InternalError, TargetError
from vzdump_qemu.formats.vma import (
    Buffer,
    VmaWriter,
    layout,
    stored_blocks,
)

_BUFFERS_PER_WRITE_MAX: Final = 1024
# How soon a thread that waits for room in the pipe notices that it need not.
_WAKE_MS: Final = 100


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


def _cluster_index(offset_bytes: int) -> int:
    return offset_bytes // layout.VMA_CLUSTER_BYTES
