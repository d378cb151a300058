"""Packing raw files or block devices into an archive.

Owns finding holes, reading and writing in constant memory; the format is `formats.vma`'s.
Source: VMA format, sections 5 and 10.
"""

from __future__ import annotations

import errno
import os
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Final, TypeAlias

from vzdump_qemu.errors import InternalError, StorageError, TargetError
from vzdump_qemu.formats.vma import Buffer, ConfigBlob, VmaDevice, VmaWriter, layout
from vzdump_qemu.stores.system import start_thread
from vzdump_qemu.units import ceil_div

_BUFFER_BYTES: Final = layout.SLOTS_WRITTEN_PER_EXTENT * layout.VMA_CLUSTER_BYTES
# 64 GiB of hole per step: 9 MiB of extent headers in memory at a time.
_HOLE_CLUSTER_COUNT_MAX: Final = 1 << 20
_BUFFERS_PER_WRITE_MAX: Final = 1024
# One is read into, one is written, one waits for whichever side is quicker.
_BUFFER_COUNT: Final = 3
_NO_HOLES: Final = (errno.EINVAL, errno.ENOTSUP, errno.ESPIPE)

_Ready: TypeAlias = tuple[list[Buffer], memoryview]


@dataclass(frozen=True, slots=True, kw_only=True)
class RawDisk:
    """A disk to pack.

    Attributes:
        name: its device id.
        fd: open for reading and seeking; its position is not kept.
        size_bytes: a multiple of 512; what the file lacks of it counts as zeroes.
    """

    name: str
    fd: int
    size_bytes: int


def pack_disks(
    target_fd: int,
    configs: Sequence[ConfigBlob],
    disks: Sequence[RawDisk],
    *,
    uuid: bytes,
    ctime_s: int,
) -> int:
    """Write a plain archive of whole disks, one after the other; its length in bytes.

    Raises:
        VmaError: VMA cannot hold this.
        StorageError: a disk cannot be read.
        TargetError: the target cannot be written.
    """
    devices = [
        VmaDevice(vma_dev_id=vma_dev_id, name=disk.name, size_bytes=disk.size_bytes)
        for vma_dev_id, disk in enumerate(disks, start=1)
    ]
    writer = VmaWriter(uuid, ctime_s, configs, devices)
    with _WriteBehind(target_fd) as output:
        output.put([writer.header_bytes()])
        for device, disk in zip(devices, disks, strict=True):
            _pack_disk(writer, device, disk, output)
        output.put(writer.finish())
        return output.finish()


class _WriteBehind:
    """Writes in a thread of its own while the next data is read and looked at.

    Owns a few buffers; `buffer` is the one to read into. What was put may lie in it, so it is
    exchanged for a free one by every `put`, which waits while none is free.
    """

    def __init__(self, target_fd: int) -> None:
        self._target_fd = target_fd
        self._free: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[_Ready | None] = queue.SimpleQueue()
        for _ in range(_BUFFER_COUNT - 1):
            self._free.put(memoryview(bytearray(_BUFFER_BYTES)))
        self.buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._end: Future[int] = start_thread(self._run, name="vma-writer")

    def __enter__(self) -> _WriteBehind:
        return self

    def __exit__(self, *_: object) -> None:
        self._ready.put(None)
        wait([self._end])

    def put(self, buffers: list[Buffer]) -> None:
        """Hand over what is ready, with the buffer it lies in. Raises TargetError."""
        self._ready.put((buffers, self.buffer))
        buffer = self._free.get()
        if buffer is None:
            self._end.result()
            raise InternalError("the writer ended before its input did")
        self.buffer = buffer

    def finish(self) -> int:
        """Wait for the last write; all bytes written. Raises TargetError."""
        self._ready.put(None)
        return self._end.result()

    def _run(self) -> int:
        written_bytes = 0
        try:
            while (item := self._ready.get()) is not None:
                buffers, buffer = item
                written_bytes += write_buffers(self._target_fd, buffers)
                self._free.put(buffer)
        finally:
            # Whoever waits for a free buffer learns that there will be none.
            self._free.put(None)
        return written_bytes


def write_buffers(fd: int, buffers: Sequence[Buffer]) -> int:
    """Write all buffers in order, in few calls; their length in bytes. Raises TargetError."""
    written_bytes = 0
    for begin in range(0, len(buffers), _BUFFERS_PER_WRITE_MAX):
        part = [
            memoryview(one).cast("B") for one in buffers[begin : begin + _BUFFERS_PER_WRITE_MAX]
        ]
        while part:
            try:
                count = os.writev(fd, part)
            except OSError as error:
                raise TargetError(f"write failed - {error.strerror}") from error
            written_bytes += count
            while part and count >= len(part[0]):
                count -= len(part.pop(0))
            if count:
                part[0] = part[0][count:]
    return written_bytes


def _pack_disk(writer: VmaWriter, device: VmaDevice, disk: RawDisk, output: _WriteBehind) -> None:
    for begin, end, has_data in _stretches(disk, device.vma_cluster_count):
        index = begin
        while index < end:
            if not has_data:
                count = min(end - index, _HOLE_CLUSTER_COUNT_MAX)
                ready = writer.add_zero_clusters(device.vma_dev_id, index, count)
            else:
                # What is pending lies in the buffer's front, so its slots tell where is room.
                count = min(end - index, writer.slots_free)
                at = _BUFFER_BYTES - writer.slots_free * layout.VMA_CLUSTER_BYTES
                offset = index * layout.VMA_CLUSTER_BYTES
                length = min(count * layout.VMA_CLUSTER_BYTES, disk.size_bytes - offset)
                part = output.buffer[at : at + length]
                _read_at(disk, offset, part)
                ready = writer.add_clusters(device.vma_dev_id, index, part)
            if ready:
                # A flush takes along all that is pending, so the buffer may go with it.
                output.put(ready)
            index += count


def _stretches(disk: RawDisk, cluster_count: int) -> Iterator[tuple[int, int, bool]]:
    """Half-open ranges of clusters, and whether they may hold data; gapless, ascending."""
    index = 0
    while index < cluster_count:
        offset = index * layout.VMA_CLUSTER_BYTES
        data_at = _seek(disk, offset, os.SEEK_DATA)
        if data_at is None:
            yield index, cluster_count, False
            return
        first = min(max(index, data_at // layout.VMA_CLUSTER_BYTES), cluster_count)
        if first > index:
            yield index, first, False
        if first == cluster_count:
            return
        hole_at = _seek(disk, max(data_at, offset), os.SEEK_HOLE)
        end = cluster_count
        if hole_at is not None:
            end = min(max(first + 1, ceil_div(hole_at, layout.VMA_CLUSTER_BYTES)), cluster_count)
        yield first, end, True
        index = end


def _seek(disk: RawDisk, offset_bytes: int, whence: int) -> int | None:
    """Where the next data or hole begins, or None if there is none."""
    try:
        return os.lseek(disk.fd, offset_bytes, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        if error.errno in _NO_HOLES:
            return offset_bytes if whence == os.SEEK_DATA else disk.size_bytes
        raise StorageError(f"can't read disk {disk.name} - {error.strerror}") from error


def _read_at(disk: RawDisk, offset_bytes: int, part: memoryview) -> None:
    while len(part):
        try:
            count = os.preadv(disk.fd, [part], offset_bytes)
        except OSError as error:
            raise StorageError(f"can't read disk {disk.name} - {error.strerror}") from error
        if not count:
            part[:] = bytes(len(part))
            return
        part = part[count:]
        offset_bytes += count
