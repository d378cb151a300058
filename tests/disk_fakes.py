"""A disk reader and a sink in memory, for the tests of what lies between them."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from vzdump_qemu.disk_ports import Extent, ExtentKind
from vzdump_qemu.errors import BackupError, DiskReadError


class MemoryReader:
    """`DiskReader` of given extents; data is told by its offset.

    Attributes:
        held: reads wait until it is set, or until they are interrupted.
        fails_at: offset whose reading fails, or None.
        reads: (offset, length) of every read.
    """

    def __init__(self, *extents: tuple[int, ExtentKind], content: bytes = b"") -> None:
        self._extents: list[Extent] = []
        at = 0
        for length, kind in extents:
            self._extents.append(Extent(at, length, kind))
            at += length
        self._size_bytes = at
        self._content = content
        self.held = threading.Event()
        self.held.set()
        self.fails_at: int | None = None
        self.reads: list[tuple[int, int]] = []
        self.is_interrupted = self.is_closed = False

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def extents(self, offset_bytes: int, length_bytes: int) -> Sequence[Extent]:
        found = []
        end = offset_bytes + length_bytes
        for extent in self._extents:
            begin = max(extent.offset_bytes, offset_bytes)
            stop = min(extent.end_bytes, end)
            if begin < stop:
                found.append(Extent(begin, stop - begin, extent.kind))
        return found

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        assert not self.is_closed
        self.held.wait(20)
        if self.is_interrupted:
            raise DiskReadError("reading was ended")
        if self.fails_at is not None and offset_bytes <= self.fails_at < offset_bytes + len(buffer):
            raise DiskReadError(f"broken at {self.fails_at}")
        self.reads.append((offset_bytes, len(buffer)))
        data = self._content[offset_bytes : offset_bytes + len(buffer)]
        buffer[: len(data)] = data
        buffer[len(data) :] = bytes(len(buffer) - len(data))

    def interrupt(self) -> None:
        self.is_interrupted = True
        self.held.set()

    def close(self) -> None:
        self.is_closed = True


class MemorySink:
    """`DiskSink` that keeps what it is given.

    Attributes:
        pieces: data by (disk index, offset).
        known: (disk index, offset, length, kind) of what was not read.
        failure: raised by the next call, if set.
    """

    def __init__(self) -> None:
        self.pieces: dict[tuple[int, int], bytes] = {}
        self.known: list[tuple[int, int, int, ExtentKind]] = []
        self.failure: BackupError | None = None
        self.is_finished = self.is_interrupted = self.is_closed = False
        self._lock = threading.Lock()

    def put(self, disk_index: int, offset_bytes: int, data: memoryview) -> int:
        self._check()
        with self._lock:
            assert (disk_index, offset_bytes) not in self.pieces
            self.pieces[disk_index, offset_bytes] = bytes(data)
        return bytes(data).count(0)

    def put_zeroes(self, disk_index: int, offset_bytes: int, length_bytes: int) -> None:
        self._check()
        self.known.append((disk_index, offset_bytes, length_bytes, ExtentKind.ZERO))

    def put_unchanged(self, disk_index: int, offset_bytes: int, length_bytes: int) -> None:
        self._check()
        self.known.append((disk_index, offset_bytes, length_bytes, ExtentKind.UNCHANGED))

    def finish(self) -> None:
        self._check()
        self.is_finished = True

    def interrupt(self) -> None:
        self.is_interrupted = True

    def close(self) -> None:
        self.is_closed = True

    def _check(self) -> None:
        assert not self.is_closed
        assert not self.is_finished
        if self.failure is not None:
            raise self.failure
