"""Time, chance, processors and blocking calls of this host.

Owns: the one place where clocks, random UUIDs and worker threads come from. Leaves every
decision about them to the callers. Follows host behaviour 2.9 (processor count) and row 43 of
the failure modes: a file call on a dead network mount may never return, so neither the event
loop nor the end of the process may wait for it.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar

_T = TypeVar("_T")


class SystemClock:
    """`vzdump_qemu.ports.Clock` on the host's clocks."""

    def now_ns(self) -> int:
        """Monotonic nanoseconds; only differences mean anything."""
        return time.monotonic_ns()

    def wall_s(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def local_time(self, wall_s: float) -> datetime:
        """The host's local time at that moment, without a zone."""
        return datetime.fromtimestamp(wall_s)

    async def sleep(self, seconds: float) -> None:
        """Let other tasks run for that long."""
        await asyncio.sleep(seconds)


class SystemIds:
    """`vzdump_qemu.ports.Ids` on the kernel's random numbers."""

    def uuid(self) -> str:
        """A fresh random UUID, lower case with hyphens."""
        return str(uuid.uuid4())

    def process_id(self) -> int:
        """The id of this process."""
        return os.getpid()


def read_boot_id(path: str = "/proc/sys/kernel/random/boot_id") -> str:
    """What tells this start of the host from every other; empty if the kernel does not say."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def sync_directory(path: str) -> None:
    """Make the names in a directory durable. Raises OSError."""
    fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def cpu_count(cpuinfo_path: str = "/proc/cpuinfo") -> int:
    """Count the ``processor`` entries of the kernel's list; 1 if it cannot be read.

    Source: host behaviour 2.9, which sizes the compressors by it.
    """
    try:
        with open(cpuinfo_path, encoding="utf-8", errors="replace") as cpuinfo:
            count = sum(line.split(":", 1)[0].strip() == "processor" for line in cpuinfo)
    except OSError:
        return 1
    return max(count, 1)


def start_thread(function: Callable[[], _T], *, name: str) -> Future[_T]:
    """Run a function in a thread of its own and return where its outcome will be.

    The thread never keeps the process alive. The future is running from the start: cancelling
    a wait for it changes neither the future nor the function.
    """
    future: Future[_T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = function()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


async def run_blocking(function: Callable[[], _T]) -> _T:
    """Run a blocking call without holding up the event loop.

    Not `asyncio.to_thread`: that executor's threads are joined when the loop and the process
    end, which a call stuck in the kernel would turn into a hang.
    Cancelled: the call goes on to its end; its outcome is lost.
    """
    return await asyncio.wrap_future(start_thread(function, name="blocking-call"))


async def wait_done(future: Future[Any]) -> None:
    """Wait until a thread's future has an outcome, whatever it is, and leave it there.

    Cancelled: nothing happened to the future.
    """
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def settle() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def wake(_: Future[Any]) -> None:
        # The loop may be closed by the time a stuck call returns.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle)

    future.add_done_callback(wake)
    await waiter
