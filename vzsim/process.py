"""A simulated QEMU or storage daemon as a process of its own.

Owns daemonizing as QEMU does (the parent ends only when sockets listen and the pid file is
written), the pid file, and the end by a signal. Source: host behaviour, sections 7.1 and 7.2.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from dataclasses import dataclass

from vzsim.serve import Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels:
    """Where a process can be reached, and how it says that it is up (`daemonize`)."""

    monitor_paths: tuple[str, ...]
    agent_path: str = ""
    idle_paths: tuple[str, ...] = ()
    pid_file: str = ""
    ready_fd: int = -1


async def serve_process(service: Service, channels: Channels) -> int:
    """Serve until the end; the exit status. Raises: OSError."""
    service.listen(channels.monitor_paths, channels.agent_path, channels.idle_paths)
    if channels.pid_file:
        _write_pid_file(channels.pid_file)
    _tell_parent(channels.ready_fd)
    end = await service.run()
    if end.signal_name:
        _die(signal.Signals[end.signal_name])
    if channels.pid_file:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(channels.pid_file)
    return 0


def _write_pid_file(path: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")


def _die(number: signal.Signals) -> None:
    """A crash: no clean-up, the pid file and the sockets stay behind."""
    if number is not signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), number)


def daemonize() -> int:
    """Fork away; the parent waits for word and ends. Returns the descriptor to give word on."""
    read_fd, write_fd = os.pipe()
    if os.fork():
        os.close(write_fd)
        word = os.read(read_fd, 1)
        os._exit(0 if word == b"\0" else 1)
    os.close(read_fd)
    os.setsid()
    if os.fork():
        os._exit(0)
    return write_fd


def _tell_parent(ready_fd: int) -> None:
    """Everything is up: the parent may end, and standard streams are let go."""
    if ready_fd < 0:
        return
    null_fd = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null_fd, fd)
    os.close(null_fd)
    os.write(ready_fd, b"\0")
    os.close(ready_fd)
