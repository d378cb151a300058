"""A machine's outside in memory: virtual time, disks, files, and targets that can stall or fail.

Nothing here waits: time moves when `VirtualTimebase.advance_to` is called. For simulations and
tests; `host` is the real counterpart.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import os
import random
import uuid
from collections.abc import Callable

from vzsim.fakeqmp.disks import Disk, FormatMismatch, MemoryDisk


class VirtualTimer:
    """A call that is due at some virtual time."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self._callback = None

    def fire(self) -> None:
        """Call, unless cancelled."""
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class VirtualTimebase:
    """Virtual time; calls due at the same time come in the order in which they were asked for."""

    def __init__(self, start_s: float = 1_700_000_000.0) -> None:
        self._now_s = start_s
        self._serial = itertools.count()
        self._due: list[tuple[float, int, VirtualTimer]] = []

    def now_s(self) -> float:
        return self._now_s

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> VirtualTimer:
        timer = VirtualTimer(callback)
        due = (self._now_s + max(delay_s, 0.0), next(self._serial), timer)
        heapq.heappush(self._due, due)
        return timer

    def next_deadline_s(self) -> float | None:
        """When the next call is due, or None."""
        return self._due[0][0] if self._due else None

    def advance_to(self, time_s: float) -> None:
        """Make all calls due until then, each at its own time."""
        while self._due and self._due[0][0] <= time_s:
            due_s, _, timer = heapq.heappop(self._due)
            self._now_s = max(self._now_s, due_s)
            timer.fire()
        self._now_s = max(self._now_s, time_s)


class MemorySink:
    """A target of a backup held in memory.

    Args:
        allowance_bytes: how much the reader takes before it stalls; None means all.
        errno_code: every write fails with it.
        capacity_bytes: room on the target; beyond it ENOSPC.
    """

    def __init__(
        self,
        *,
        allowance_bytes: int | None = None,
        errno_code: int = 0,
        capacity_bytes: int | None = None,
    ) -> None:
        self.data = bytearray()
        self.is_closed = False
        self._allowance_bytes = allowance_bytes
        self._errno_code = errno_code
        self._capacity_bytes = capacity_bytes
        self._waiting: Callable[[], None] | None = None

    def write(self, data: memoryview) -> int:
        if self._errno_code:
            raise OSError(self._errno_code, os.strerror(self._errno_code))
        count = len(data)
        if self._capacity_bytes is not None:
            count = min(count, self._capacity_bytes - len(self.data))
            if count == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._allowance_bytes is not None:
            count = min(count, self._allowance_bytes - len(self.data))
        self.data += data[:count]
        return count

    def when_writable(self, callback: Callable[[], None]) -> None:
        self._waiting = callback

    def close(self) -> None:
        self.is_closed = True

    def read_on(self, allowance_bytes: int | None = None) -> None:
        """The reader takes data again."""
        self._allowance_bytes = allowance_bytes
        self._wake()

    def break_off(self, errno_code: int = errno.EPIPE) -> None:
        """The reader is gone."""
        self._errno_code = errno_code
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting()


class MemoryHost:
    """Files, disks and descriptors as plain tables.

    Attributes:
        files, disks: content by path.
        sinks: what a descriptor number, or a path or command, leads to.
        raw_paths: images that are refused as qcow2.
        open_errors: errno with which the opening of a target fails.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self.files: dict[str, bytes] = {}
        self.disks: dict[str, Disk] = {}
        self.sinks: dict[int | str, MemorySink] = {}
        self.existing_paths: set[str] = set()
        self.raw_paths: set[str] = set()
        self.open_errors: dict[str, int] = {}
        self.closed_fds: list[int] = []
        self.kept_disks: dict[str, bytes] = {}

    def new_uuid(self) -> uuid.UUID:
        return uuid.UUID(bytes=self._random.randbytes(16), version=4)

    def read_file(self, path: str) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self.files[path]

    def open_disk(self, path: str, *, format_name: str, read_only: bool) -> Disk:
        if path not in self.disks:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if format_name == "qcow2" and path in self.raw_paths:
            raise FormatMismatch(f"{path}: not a qcow2 image")
        return self.disks[path]

    def open_target(self, path: str) -> MemorySink:
        if path in self.existing_paths:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        if path in self.open_errors:
            code = self.open_errors[path]
            raise OSError(code, os.strerror(code), path)
        if path not in self.sinks:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if not path.startswith("exec:"):
            self.existing_paths.add(path)
        return self.sinks[path]

    def remove_target(self, path: str) -> None:
        self.existing_paths.discard(path)

    def fd_sink(self, fd: int, *, keep_open: bool) -> MemorySink:
        return self.sinks[fd]

    def close_fd(self, fd: int) -> None:
        self.closed_fds.append(fd)

    def keep_disk(self, directory: str, device_id: str, disk: Disk) -> None:
        self.kept_disks[f"{directory}/{device_id}.raw"] = bytes(disk.read(0, disk.size_bytes))

    def add_disk(self, path: str, size_bytes: int) -> MemoryDisk:
        """A disk of bytes that are not zero."""
        disk = MemoryDisk(self._random.randbytes(4096) * (size_bytes // 4096 + 1))
        disk.resize(size_bytes)
        self.disks[path] = disk
        return disk
