"""Points in time kept by copying: the filter in front of a disk, and the disks that read it back.

Owns which pieces have been copied. A piece is copied into the target before the first write to it
reaches the disk; the overlay (a fleecing image with the disk as its backing) and the snapshot view
show the disk as it was. Source: recorded sessions ``stock-pull-*``, ``stock-snapshot-access``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from vzdump_qemu.units import KIB, ceil_div
from vzsim.fakeqmp.disks import Disk

PIECE_BYTES = 64 * KIB


def piece_count(size_bytes: int) -> int:
    """How many pieces a disk has, the last one perhaps short."""
    return ceil_div(size_bytes, PIECE_BYTES)


def _split(offset_bytes: int, length_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Parts of a request by piece: (piece, offset, length)."""
    position, end = offset_bytes, offset_bytes + length_bytes
    while position < end:
        index = position // PIECE_BYTES
        count = min((index + 1) * PIECE_BYTES, end) - position
        yield index, position, count
        position += count


class CopyBeforeWrite:
    """The filter: copies old bytes away before they are overwritten.

    Args:
        breaks_guest_write: what a failed copy does: the guest's write fails, else the point in
            time is lost.
        on_copied: called with the bytes of each piece copied.
    """

    def __init__(
        self,
        source: Disk,
        target: Disk,
        *,
        breaks_guest_write: bool = True,
        on_copied: Callable[[int], None] = lambda _count: None,
    ) -> None:
        self._source = source
        self._target = target
        self._breaks_guest_write = breaks_guest_write
        self._on_copied = on_copied
        self.todo = set(range(piece_count(source.size_bytes)))
        self.done: set[int] = set()
        self.is_broken = False

    @property
    def size_bytes(self) -> int:
        """Size of the disk."""
        return self._source.size_bytes

    def before_write(self, offset_bytes: int, length_bytes: int) -> None:
        """Copy what a write is about to hit. Raises: OSError if the write must fail."""
        if self.is_broken:
            return
        for index, _, _ in _split(offset_bytes, length_bytes):
            if index not in self.todo:
                continue
            try:
                self.copy(index)
            except OSError:
                if self._breaks_guest_write:
                    raise
                self.is_broken = True
                return

    def copy(self, index: int) -> None:
        """Copy one piece. Raises: OSError."""
        self.write_piece(index, self.read_piece(index))

    def read_piece(self, index: int) -> bytes:
        """One piece of the disk. Raises: OSError."""
        offset = index * PIECE_BYTES
        length = min(PIECE_BYTES, self._source.size_bytes - offset)
        return bytes(self._source.read(offset, length))

    def write_piece(self, index: int, data: bytes) -> None:
        """Put one piece into the target. Raises: OSError."""
        if index * PIECE_BYTES + len(data) > self._target.size_bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._target.write(index * PIECE_BYTES, data)
        self.todo.discard(index)
        self.done.add(index)
        self._on_copied(len(data))

    def read(self, offset_bytes: int, length_bytes: int) -> bytearray:
        """Bytes as they were. Raises: OSError once the point in time is lost."""
        if self.is_broken:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        data = bytearray(length_bytes)
        for index, position, count in _split(offset_bytes, length_bytes):
            disk = self._target if index in self.done else self._source
            at = position - offset_bytes
            data[at : at + count] = disk.read(position, count)
        return data


class SnapshotDisk:
    """The point in time that a filter keeps, as a disk that cannot be written."""

    def __init__(self, kept: CopyBeforeWrite) -> None:
        self._kept = kept

    @property
    def size_bytes(self) -> int:
        return self._kept.size_bytes

    @property
    def allocated_bytes(self) -> int:
        return self._kept.size_bytes

    def read(self, offset_bytes: int, length_bytes: int) -> bytearray:
        return self._kept.read(offset_bytes, length_bytes)

    def write(self, offset_bytes: int, data: bytes) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def resize(self, size_bytes: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def close(self) -> None:
        """Nothing is held open."""


class OverlayDisk:
    """An image with a backing disk: what it does not hold itself is read from below.

    Args:
        held: pieces that the image holds already.
    """

    def __init__(self, top: Disk, backing: Disk, *, held: set[int]) -> None:
        self._top = top
        self._backing = backing
        self._held = held

    @property
    def size_bytes(self) -> int:
        return self._top.size_bytes

    @property
    def allocated_bytes(self) -> int:
        return self._top.allocated_bytes

    def read(self, offset_bytes: int, length_bytes: int) -> bytearray:
        data = bytearray(length_bytes)
        for index, position, count in _split(offset_bytes, length_bytes):
            disk = self._top if index in self._held else self._backing
            at = position - offset_bytes
            part = disk.read(position, count)
            data[at : at + len(part)] = part
        return data

    def write(self, offset_bytes: int, data: bytes) -> None:
        for index, position, count in _split(offset_bytes, len(data)):
            if index not in self._held and count < PIECE_BYTES:
                start = index * PIECE_BYTES
                length = min(PIECE_BYTES, self.size_bytes - start)
                self._top.write(start, bytes(self.read(start, length)))
            at = position - offset_bytes
            self._top.write(position, data[at : at + count])
            self._held.add(index)

    def resize(self, size_bytes: int) -> None:
        self._top.resize(size_bytes)

    def close(self) -> None:
        self._top.close()
