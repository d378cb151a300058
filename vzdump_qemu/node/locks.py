"""Locks that other tools on the node know too: flock files and atomic rewrites under them.

Owns waiting for a flock without blocking the event loop, and replacing a file whole; what the
``lock:`` line looks like is left to `formats.vm_config`. Source: host behaviour, 1.4, 3.4, 4.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

from vzdump_qemu.errors import VmLocked

VM_LOCK_TIMEOUT_S = 10.0
# A blocking flock cannot be given up by a cancelled task, so it is tried in intervals.
_RETRY_INTERVAL_S = 0.05


@asynccontextmanager
async def hold_flock(path: str, *, timeout_s: float, busy_text: str) -> AsyncIterator[None]:
    """Hold an exclusive flock on that file, which is created if missing.

    The first try does not wait. Raises VmLocked with `busy_text` if it was not had in time.
    Cancelled: the lock is not held.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        try:
            async with asyncio.timeout(timeout_s if timeout_s > 0 else None):
                while not _try_flock(fd):
                    if timeout_s <= 0:
                        raise VmLocked(busy_text)
                    await asyncio.sleep(_RETRY_INTERVAL_S)
        except TimeoutError as error:
            raise VmLocked(busy_text) from error
        yield
    finally:
        os.close(fd)


def _try_flock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def hold_vm_flock(path: str) -> AbstractAsyncContextManager[None]:
    """The VM's flock, held only while its configuration is changed."""
    return hold_flock(
        path, timeout_s=VM_LOCK_TIMEOUT_S, busy_text=f"can't lock file '{path}' - got timeout"
    )


def hold_global_flock(path: str, *, timeout_s: float) -> AbstractAsyncContextManager[None]:
    """The lock that allows one backup job per node."""
    reason = " - got timeout" if timeout_s > 0 else " (wait = 0)"
    return hold_flock(path, timeout_s=timeout_s, busy_text=f"can't acquire lock '{path}'{reason}")


def replace_file(path: str, data: bytes, *, process_id: int) -> None:
    """Write a file anew: whoever reads sees the old or the new content, whole.

    Raises OSError; then the old file is untouched and nothing is left beside it.
    """
    temp_path = f"{path}.tmp.{process_id}"
    with suppress(FileNotFoundError):
        os.unlink(temp_path)
    fd = os.open(temp_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            _sync(file.fileno())
        os.rename(temp_path, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temp_path)
        raise
    directory_fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync(directory_fd)
    finally:
        os.close(directory_fd)


def _sync(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        # The cluster file system keeps no such promise and may say so.
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise
