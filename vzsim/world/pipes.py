"""Pipes of a simulated node: bounded, with back-pressure, with ends that can be gone.

Descriptors are numbers in one table, as between processes; the writing side never waits (it is a
`fakeqmp` sink), the reading side awaits.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable

CAPACITY_BYTES = 1 << 20


class SimulatedPipe:
    """One pipe; `write` takes what fits, `read` waits for something or the end."""

    def __init__(self, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self._capacity_bytes = capacity_bytes
        self._parts: deque[bytes] = deque()
        self._held_bytes = 0
        self._waiting: list[Callable[[], None]] = []
        self._readable = asyncio.Event()
        self.writer_count = 0
        self.has_reader = True

    def write(self, data: memoryview) -> int:
        """Take some of the bytes and say how many; 0 means full. EPIPE without a reader."""
        if not self.has_reader:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        taken = bytes(data[: self._capacity_bytes - self._held_bytes])
        if taken:
            self._parts.append(taken)
            self._held_bytes += len(taken)
            self._readable.set()
        return len(taken)

    def when_writable(self, callback: Callable[[], None]) -> None:
        """Call once as soon as `write` would take something or fail."""
        if not self.has_reader or self._held_bytes < self._capacity_bytes:
            asyncio.get_running_loop().call_soon(callback)
        else:
            self._waiting.append(callback)

    def close_writer(self) -> None:
        """One of the holders of the write end is gone."""
        self.writer_count -= 1
        if self.writer_count <= 0:
            self._readable.set()

    async def read(self, limit_bytes: int) -> bytes:
        """At least one byte, or nothing at the end of the stream."""
        while not self._parts:
            if self.writer_count <= 0:
                return b""
            self._readable.clear()
            await self._readable.wait()
        data = b"".join(self._parts)
        self._parts.clear()
        if len(data) > limit_bytes:
            self._parts.append(data[limit_bytes:])
            data = data[:limit_bytes]
        self._held_bytes -= len(data)
        self._wake_writers()
        return data

    def close_reader(self) -> None:
        """Nobody reads any more: writers get EPIPE."""
        self.has_reader = False
        self._parts.clear()
        self._held_bytes = 0
        self._wake_writers()

    def _wake_writers(self) -> None:
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            asyncio.get_running_loop().call_soon(callback)


class PipeSink:
    """One holder's write end."""

    def __init__(self, pipe: SimulatedPipe) -> None:
        self._pipe = pipe
        self._open = True
        pipe.writer_count += 1

    def write(self, data: memoryview) -> int:
        """As `SimulatedPipe.write`."""
        return self._pipe.write(data)

    def when_writable(self, callback: Callable[[], None]) -> None:
        """As `SimulatedPipe.when_writable`."""
        self._pipe.when_writable(callback)

    def close(self) -> None:
        """Idempotent."""
        if self._open:
            self._open = False
            self._pipe.close_writer()


class Descriptors:
    """Numbers of open write ends; a process that gets one passed holds its own."""

    def __init__(self) -> None:
        self._open: dict[int, PipeSink] = {}
        self._pipes: dict[int, SimulatedPipe] = {}
        self._next = 10

    def open(self, pipe: SimulatedPipe) -> int:
        """A new descriptor of this pipe's write end."""
        fd, self._next = self._next, self._next + 1
        self._open[fd] = PipeSink(pipe)
        self._pipes[fd] = pipe
        return fd

    def duplicate(self, fd: int) -> int:
        """As passing it to another process does."""
        return self.open(self._pipes[fd])

    def duplicate_all(self) -> list[int]:
        """As a process that forks without closing on exec: one more of each that is open."""
        return [self.duplicate(fd) for fd in list(self._open)]

    def sink(self, fd: int) -> PipeSink:
        """The end behind a descriptor."""
        return self._open[fd]

    def close(self, fd: int) -> None:
        """Close one holder's end; closing twice is harmless here."""
        if fd in self._open:
            self._open.pop(fd).close()
            del self._pipes[fd]

    def open_count(self) -> int:
        """How many ends are open; 0 at rest."""
        return len(self._open)
