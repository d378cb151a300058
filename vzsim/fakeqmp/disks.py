"""Disks of a simulated machine: bytes that can be read and written at any offset.

Owns the `Disk` port and the two plain kinds, in memory and a raw file. qcow2 lives in `qcow2`.
Sizes are whole sectors as QEMU sees them: a raw file of 1000 bytes is a disk of 1024.
"""

from __future__ import annotations

import errno
import os
from typing import Protocol

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.units import SECTOR_BYTES, round_up


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


def peek(disk: Disk, offset_bytes: int, length_bytes: int) -> Bytes:
    """As `Disk.read`, without a copy where there need be none.

    For those who let go of it before anything is written or resized.
    """
    if isinstance(disk, MemoryDisk):
        return disk.view(offset_bytes, length_bytes)
    return disk.read(offset_bytes, length_bytes)


class MemoryDisk:
    """A disk held in memory.

    Args:
        size_bytes: of a disk of zeroes, in place of a content.
    """

    def __init__(self, content: bytes | bytearray = b"", *, size_bytes: int = 0) -> None:
        # Zeroes that are made in place need no copy.
        self._data = bytearray(content) if content else bytearray(size_bytes)
        self._data.extend(bytes(round_up(len(self._data), SECTOR_BYTES) - len(self._data)))

    @property
    def size_bytes(self) -> int:
        return len(self._data)

    @property
    def allocated_bytes(self) -> int:
        return len(self._data)

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        return bytes(self.view(offset_bytes, length_bytes))

    def view(self, offset_bytes: int, length_bytes: int) -> memoryview:
        """The disk's own bytes; it cannot be resized while anybody holds them."""
        return memoryview(self._data)[offset_bytes : offset_bytes + length_bytes]

    def write(self, offset_bytes: int, data: bytes) -> None:
        self._data[offset_bytes : offset_bytes + len(data)] = data

    def resize(self, size_bytes: int) -> None:
        if size_bytes < len(self._data):
            del self._data[size_bytes:]
        else:
            self._data.extend(bytes(size_bytes - len(self._data)))

    def close(self) -> None:
        """Nothing is held open."""


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
