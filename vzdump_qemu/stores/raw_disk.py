"""A raw image file or block device, read where it lies.

Owns finding holes and reading; nothing else may write to the disk meanwhile, which its caller
sees to. Leaves what to do with the bytes to `stores.disk_pump`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from vzdump_qemu.disk_ports import DiskOrigin, Extent, ExtentKind
from vzdump_qemu.errors import DiskReadError
from vzdump_qemu.units import SECTOR_BYTES, round_up

# Where holes cannot be asked for: block devices and a few file systems.
_NO_HOLES: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ESPIPE})


class RawDisk:
    """`vzdump_qemu.disk_ports.DiskReader` on a raw image file or block device.

    A file whose length is no whole number of sectors is a disk of the next one, as for QEMU; what
    the file lacks of it reads as zero.

    Args:
        origin: with `file_path` set.

    Raises:
        DiskReadError: it cannot be opened, is of another kind, or has another size.
    """

    def __init__(self, origin: DiskOrigin) -> None:
        self._name = origin.device_id
        self._size_bytes = origin.size_bytes
        self._is_ended = False
        try:
            # A FIFO would hold up the opening itself until somebody writes.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            self._fd = os.open(origin.file_path, flags)
        except OSError as error:
            raise self._error(f"cannot open '{origin.file_path}' - {error.strerror}") from error
        try:
            self._has_holes = self._check_kind(origin.file_path)
            self._file_bytes = self._current_bytes()
            self._check_size(origin.file_path)
        except DiskReadError:
            self.close()
            raise
        with suppress(OSError):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def extents(self, offset_bytes: int, length_bytes: int) -> Sequence[Extent]:
        """As the port says; the first data and the hole before it, at most."""
        end_bytes = min(offset_bytes + length_bytes, self._size_bytes)
        data_at = min(self._seek(offset_bytes, os.SEEK_DATA), end_bytes)
        extents = []
        if data_at > offset_bytes:
            extents.append(Extent(offset_bytes, data_at - offset_bytes, ExtentKind.ZERO))
        if data_at < end_bytes:
            hole_at = min(self._seek(data_at, os.SEEK_HOLE), end_bytes)
            # A hole behind the file's last partial sector is none of the disk's.
            length = max(hole_at, data_at + 1) - data_at
            extents.append(Extent(data_at, length, ExtentKind.DATA))
        return extents

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """As the port says. A device that stalls in the kernel cannot be interrupted."""
        while len(buffer):
            self._check_ended()
            try:
                count = os.preadv(self._fd, [buffer], offset_bytes)
            except OSError as error:
                raise self._error(f"{error.strerror} at byte {offset_bytes}") from error
            if not count:
                self._pad(offset_bytes, buffer)
                return
            buffer = buffer[count:]
            offset_bytes += count

    def interrupt(self) -> None:
        """As the port says, between two reads."""
        self._is_ended = True

    def close(self) -> None:
        """As the port says."""
        self._is_ended = True
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _check_ended(self) -> None:
        if self._is_ended:
            raise self._error("reading was ended")

    def _pad(self, offset_bytes: int, buffer: memoryview) -> None:
        # Only the rest of the last sector may be missing; a file that got shorter is no disk.
        if offset_bytes < self._file_bytes or self._current_bytes() != self._file_bytes:
            raise self._error("its file was made shorter meanwhile")
        buffer[:] = bytes(len(buffer))

    def _seek(self, offset_bytes: int, whence: int) -> int:
        """Where the next data or hole begins; the disk's end if there is none."""
        self._check_ended()
        if not self._has_holes:
            return offset_bytes if whence == os.SEEK_DATA else self._size_bytes
        try:
            return os.lseek(self._fd, offset_bytes, whence)
        except OSError as error:
            if error.errno in _NO_HOLES:
                self._has_holes = False
                return self._seek(offset_bytes, whence)
            if error.errno != errno.ENXIO:
                raise self._error(f"{error.strerror} at byte {offset_bytes}") from error
        # Behind the end of the file, so what is asked about is a hole, unless it got shorter.
        if self._current_bytes() != self._file_bytes:
            raise self._error("its file was made shorter or longer meanwhile")
        return self._size_bytes

    def _check_kind(self, path: str) -> bool:
        mode = os.fstat(self._fd).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise self._error(f"'{path}' is neither a file nor a block device")
        return stat.S_ISREG(mode)

    def _check_size(self, path: str) -> None:
        if round_up(self._file_bytes, SECTOR_BYTES) != self._size_bytes:
            raise self._error(
                f"'{path}' has {self._file_bytes} bytes instead of {self._size_bytes}"
            )

    def _current_bytes(self) -> int:
        try:
            # Also tells the size of a block device, of which stat knows nothing.
            return os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            raise self._error(f"its size cannot be told - {error.strerror}") from error

    def _error(self, message: str) -> DiskReadError:
        return DiskReadError(f"unable to read disk {self._name} - {message}")
