"""The job that runs on a node, as the pid file beside the global lock tells.

Owns asking it to end. Source: host behaviour, section 1.5.
"""

from __future__ import annotations

import asyncio
import os
import signal

from vzdump_qemu.errors import BackupError, ConfigError
from vzdump_qemu.node.upid import parse_upid, read_start_ticks

STOP_TIMEOUT_S = 15.0
# Far longer than any name of a task.
_UPID_BYTES_MAX = 4096


async def stop_running_job(pid_file: str, *, timeout_s: float = STOP_TIMEOUT_S) -> bool:
    """Let the job that the pid file names end in order; return whether there was one.

    A file that was left behind is normal: it counts only with its very process.

    Raises:
        BackupError: it goes on after that time, or must not be ended by us.
    """
    upid = parse_upid(_read_text(pid_file))
    if upid is None:
        return False
    try:
        # From here on the number cannot come to mean another process.
        pidfd = os.pidfd_open(upid.process_id)
    except OSError:
        return False
    try:
        if read_start_ticks(upid.process_id) != upid.start_ticks:
            return False
        text = f"stopping backup process {upid.process_id} failed"
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        except ProcessLookupError:
            return True
        except OSError as error:
            raise BackupError(f"{text} - {error.strerror}") from error
        try:
            async with asyncio.timeout(timeout_s):
                await _ended(pidfd)
        except TimeoutError as error:
            raise BackupError(
                text, hint="it was asked to end, and may still be putting its guests back"
            ) from error
    finally:
        os.close(pidfd)
    return True


async def _ended(pidfd: int) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)


def _read_text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(_UPID_BYTES_MAX).decode("utf-8", errors="replace").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigError(f"unable to read '{path}' - {error.strerror}") from error
