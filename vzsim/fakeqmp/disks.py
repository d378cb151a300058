"""Disks of a simulated machine: bytes that can be read and written at any offset.

Owns the `Disk` port and the two plain kinds, in memory and a raw file. qcow2 lives in `qcow2`.
Sizes are whole sectors as QEMU sees them: a raw file of 1000 bytes is a disk of 1024.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Protocol

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.units import SECTOR_BYTES, ceil_div, round_up


class FormatMismatch(ConfigError):
    """An image is not of the format that it is opened as."""


Bytes = bytes | bytearray | memoryview


class Disk(Protocol):
    """One disk image. Errors are OSError, as from the file below it."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def allocated_bytes(self) -> int:
        """What the image takes on its storage."""

    def read(self, offset_bytes: int, length_bytes: int) -> Bytes:
        """Exactly that many bytes; what lies behind the end of a file reads as zero."""

    def write(self, offset_bytes: int, data: bytes) -> None: ...

    def resize(self, size_bytes: int) -> None: ...

    def close(self) -> None: ...


BLOCK_BYTES = 4096
_ZERO_BLOCK = bytes(BLOCK_BYTES)


class DiskContent:
    """What a disk held at one instant, with a look that takes no copy of what is not looked at.

    Args:
        blocks: those that are not all zero, by their index.
    """

    __slots__ = ("_blocks", "_size_bytes")

    def __init__(self, blocks: Mapping[int, bytes], size_bytes: int) -> None:
        self._blocks = blocks
        self._size_bytes = size_bytes

    def __len__(self) -> int:
        return self._size_bytes

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """That many bytes, or fewer where the disk ends."""
        if offset_bytes + length_bytes > self._size_bytes:
            length_bytes = max(self._size_bytes - offset_bytes, 0)
        return _read(self._blocks, offset_bytes, length_bytes)

    def __getitem__(self, part: slice) -> bytes:
        begin, end, step = part.indices(self._size_bytes)
        return _read(self._blocks, begin, max(end - begin, 0))[::step]

    def __bytes__(self) -> bytes:
        return _read(self._blocks, 0, self._size_bytes)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, DiskContent):
            return self._size_bytes == other._size_bytes and self._blocks == other._blocks
        if isinstance(other, bytes | bytearray):
            return len(other) == self._size_bytes and bytes(self) == other
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]


class MemoryDisk:
    """A disk held in memory, as its blocks that are not all zero.

    Args:
        size_bytes: of a disk of zeroes, in place of a content.
    """

    def __init__(self, content: Bytes = b"", *, size_bytes: int = 0) -> None:
        self._size_bytes = round_up(len(content) or size_bytes, SECTOR_BYTES)
        # Never changed in place, so that they can be shared with whoever looked at them.
        self._blocks: dict[int, bytes] = {}
        self.write(0, content)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def allocated_bytes(self) -> int:
        return self._size_bytes

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        left_bytes = max(self._size_bytes - offset_bytes, 0)
        return _read(self._blocks, offset_bytes, min(length_bytes, left_bytes))

    def content(self) -> DiskContent:
        """What it holds now, whatever is written later."""
        return DiskContent(self._blocks.copy(), self._size_bytes)

    def blocks(self, first_index: int, count: int) -> dict[int, bytes]:
        """Those of the blocks that are not all zero, by their distance from the first."""
        blocks = self._blocks
        return {
            index - first_index: blocks[index]
            for index in range(first_index, first_index + count)
            if index in blocks
        }

    def write(self, offset_bytes: int, data: Bytes) -> None:
        length_bytes = len(data)
        if offset_bytes + length_bytes > self._size_bytes:
            self._size_bytes = offset_bytes + length_bytes
        index, within = divmod(offset_bytes, BLOCK_BYTES)
        if within + length_bytes <= BLOCK_BYTES:
            self._put(index, within, data)
            return
        at = BLOCK_BYTES - within
        self._put(index, within, data[:at])
        while at < length_bytes:
            index += 1
            self._put(index, 0, data[at : at + BLOCK_BYTES])
            at += BLOCK_BYTES

    def _put(self, index: int, within: int, data: Bytes) -> None:
        length_bytes = len(data)
        if length_bytes == BLOCK_BYTES:
            block = bytes(data)
        else:
            old = self._blocks.get(index, _ZERO_BLOCK)
            block = b"".join((old[:within], data, old[within + length_bytes :]))
        if block == _ZERO_BLOCK:
            self._blocks.pop(index, None)
        else:
            self._blocks[index] = block

    def resize(self, size_bytes: int) -> None:
        if size_bytes < self._size_bytes:
            kept_count, rest_bytes = divmod(size_bytes, BLOCK_BYTES)
            rest = self._blocks.get(kept_count, b"")[:rest_bytes]
            self._blocks = {at: data for at, data in self._blocks.items() if at < kept_count}
            self._put(kept_count, 0, rest)
        self._size_bytes = size_bytes

    def close(self) -> None:
        """Nothing is held open."""


def _read(blocks: Mapping[int, bytes], offset_bytes: int, length_bytes: int) -> bytes:
    index, within = divmod(offset_bytes, BLOCK_BYTES)
    end = within + length_bytes
    if end <= BLOCK_BYTES:
        return blocks.get(index, _ZERO_BLOCK)[within:end]
    count = ceil_div(end, BLOCK_BYTES)
    data = b"".join([blocks.get(at, _ZERO_BLOCK) for at in range(index, index + count)])
    return data[within:end]


def content_of(disk: Disk) -> DiskContent:
    """What any disk holds now. Raises OSError."""
    if not isinstance(disk, MemoryDisk):
        disk = MemoryDisk(disk.read(0, disk.size_bytes))
    return disk.content()


class RawFileDisk:
    """A raw image file.

    Raises: OSError, at the constructor too.
    """

    def __init__(self, path: str, *, read_only: bool = False) -> None:
        self._fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        self._size_bytes = round_up(os.lseek(self._fd, 0, os.SEEK_END), SECTOR_BYTES)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def allocated_bytes(self) -> int:
        return os.fstat(self._fd).st_blocks * SECTOR_BYTES

    def read(self, offset_bytes: int, length_bytes: int) -> bytes | bytearray:
        data = os.pread(self._fd, length_bytes, offset_bytes)
        if len(data) < length_bytes:
            padded = bytearray(length_bytes)
            padded[: len(data)] = data
            return padded
        return data

    def write(self, offset_bytes: int, data: bytes) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], offset_bytes + done)

    def resize(self, size_bytes: int) -> None:
        os.ftruncate(self._fd, size_bytes)
        self._size_bytes = size_bytes

    def close(self) -> None:
        os.close(self._fd)


class LimitedDisk:
    """The beginning of a larger image (the ``size`` option of QEMU's raw driver)."""

    def __init__(self, inner: Disk, size_bytes: int) -> None:
        self._inner = inner
        self._size_bytes = size_bytes

    @property
    def size_below_bytes(self) -> int:
        """Size of the larger image."""
        return self._inner.size_bytes

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def allocated_bytes(self) -> int:
        return self._inner.allocated_bytes

    def read(self, offset_bytes: int, length_bytes: int) -> Bytes:
        return self._inner.read(offset_bytes, length_bytes)

    def write(self, offset_bytes: int, data: bytes) -> None:
        self._inner.write(offset_bytes, data)

    def resize(self, size_bytes: int) -> None:
        self._inner.resize(size_bytes)
        self._size_bytes = size_bytes

    def close(self) -> None:
        self._inner.close()


class FaultyDisk:
    """A disk of which one sector cannot be read (what QEMU's blkdebug driver does)."""

    def __init__(self, inner: Disk, *, bad_sector: int, errno_code: int) -> None:
        self._inner = inner
        self._bad_offset = bad_sector * SECTOR_BYTES
        self._errno_code = errno_code

    @property
    def size_bytes(self) -> int:
        return self._inner.size_bytes

    @property
    def allocated_bytes(self) -> int:
        return self._inner.allocated_bytes

    def read(self, offset_bytes: int, length_bytes: int) -> Bytes:
        if offset_bytes <= self._bad_offset < offset_bytes + length_bytes:
            raise OSError(self._errno_code, os.strerror(self._errno_code))
        return self._inner.read(offset_bytes, length_bytes)

    def write(self, offset_bytes: int, data: bytes) -> None:
        self._inner.write(offset_bytes, data)

    def resize(self, size_bytes: int) -> None:
        self._inner.resize(size_bytes)

    def close(self) -> None:
        self._inner.close()


class CrampedDisk:
    """An image on a file system with little room: new pieces take room until none is left.

    Attributes:
        room_bytes: how much may still be taken.
    """

    PIECE_BYTES = 65536

    def __init__(self, inner: Disk, *, room_bytes: int) -> None:
        self._inner = inner
        self.room_bytes = room_bytes
        self._taken: set[int] = set()

    @property
    def size_bytes(self) -> int:
        return self._inner.size_bytes

    @property
    def allocated_bytes(self) -> int:
        return len(self._taken) * self.PIECE_BYTES

    def read(self, offset_bytes: int, length_bytes: int) -> Bytes:
        return self._inner.read(offset_bytes, length_bytes)

    def write(self, offset_bytes: int, data: bytes) -> None:
        end = offset_bytes + len(data)
        first, last = offset_bytes // self.PIECE_BYTES, (end - 1) // self.PIECE_BYTES
        for index in range(first, last + 1):
            if index in self._taken:
                continue
            if self.room_bytes < self.PIECE_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.room_bytes -= self.PIECE_BYTES
            self._taken.add(index)
        self._inner.write(offset_bytes, data)

    def resize(self, size_bytes: int) -> None:
        self._inner.resize(size_bytes)

    def close(self) -> None:
        self._inner.close()
