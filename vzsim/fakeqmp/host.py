"""A machine's outside on a real system: asyncio's clock, real files and descriptors.

Descriptors handed over are made non-blocking, as QEMU does; the flag sits on the shared open file
description, so the sender's copy changes too.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import subprocess
import time
import uuid
from collections.abc import Callable

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.units import MIB
from vzsim.fakeqmp.disks import Disk, RawFileDisk
from vzsim.fakeqmp.outside import Timer
from vzsim.fakeqmp.qcow2 import Qcow2Disk

_PIPE_LINGER_S = 5.0


class LoopTimebase:
    """Time of an asyncio loop, shown as seconds since the epoch."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._offset_s = time.time() - loop.time()

    def now_s(self) -> float:
        return self._loop.time() + self._offset_s

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        if delay_s <= 0:
            return self._loop.call_soon(callback)
        return self._loop.call_later(delay_s, callback)


class FdSink:
    """A descriptor that a backup is written to."""

    def __init__(
        self,
        fd: int,
        loop: asyncio.AbstractEventLoop,
        *,
        process: subprocess.Popen[bytes] | None = None,
    ) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._loop = loop
        self._process = process

    def write(self, data: memoryview) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0

    def when_writable(self, callback: Callable[[], None]) -> None:
        def ready() -> None:
            self._loop.remove_writer(self._fd)
            callback()

        try:
            self._loop.add_writer(self._fd, ready)
        except PermissionError:
            # A regular file cannot be waited for and never needs to be.
            self._loop.call_soon(callback)

    def close(self) -> None:
        if self._fd < 0:
            return
        self._loop.remove_writer(self._fd)
        os.close(self._fd)
        self._fd = -1
        if self._process is not None:
            # Its exit status is ignored, as the real one does.
            self._process.wait(timeout=_PIPE_LINGER_S)


class RealHost:
    """Files and descriptors of this process."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def new_uuid(self) -> uuid.UUID:
        return uuid.uuid4()

    def read_file(self, path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    def open_disk(self, path: str, *, format_name: str, read_only: bool) -> Disk:
        if format_name == "qcow2":
            return Qcow2Disk(path, read_only=read_only)
        if format_name not in ("raw", "file", "host_device"):
            raise ConfigError(f"{path}: images of format '{format_name}' are not simulated")
        return RawFileDisk(path, read_only=read_only)

    def open_target(self, path: str) -> FdSink:
        if path.startswith("exec:"):
            process = subprocess.Popen(
                ["/bin/sh", "-c", path.removeprefix("exec:")], stdin=subprocess.PIPE
            )
            if process.stdin is None:
                raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))
            fd = os.dup(process.stdin.fileno())
            process.stdin.close()
            return FdSink(fd, self._loop, process=process)
        if _is_fifo(path):
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            fd = os.open(path, flags, 0o644)
        return FdSink(fd, self._loop)

    def remove_target(self, path: str) -> None:
        if not _is_fifo(path):
            os.unlink(path)

    def fd_sink(self, fd: int, *, keep_open: bool) -> FdSink:
        return FdSink(os.dup(fd) if keep_open else fd, self._loop)

    def close_fd(self, fd: int) -> None:
        os.close(fd)

    def keep_disk(self, directory: str, device_id: str, disk: Disk) -> None:
        os.makedirs(directory, exist_ok=True)
        with open(os.path.join(directory, f"{device_id}.raw"), "wb") as file:
            for offset in range(0, disk.size_bytes, MIB):
                data = bytes(disk.read(offset, min(MIB, disk.size_bytes - offset)))
                if data.strip(b"\0"):
                    file.seek(offset)
                    file.write(data)
            file.truncate(disk.size_bytes)


def _is_fifo(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except FileNotFoundError:
        return False
