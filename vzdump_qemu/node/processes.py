"""Is the VM running here, and ending its process without hitting another one's.

Owns the reading of pid files and of ``/proc`` and signals by process descriptor; when to end a
process is left to `launcher`. Source: host behaviour, section 7.1.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
from contextlib import suppress
from dataclasses import dataclass

# A pid file holds one number; whatever is longer is no pid file.
_PID_FILE_BYTES_MAX = 64
_CMDLINE_BYTES_MAX = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessTable:
    """A view of ``/proc``.

    Attributes:
        proc_path: where it is mounted.
        any_program: whatever bears the pid file in its arguments counts, be it a stand-in run by
            an interpreter; for nodes whose processes are all started by our own launcher.
    """

    proc_path: str = "/proc"
    any_program: bool = False

    def find_qemu(self, pid_file: str) -> int | None:
        """Process id of the QEMU that owns that pid file, or None for anything else."""
        pid = _read_pid(pid_file)
        if pid is None or self._is_zombie(pid):
            return None
        return pid if self._owns(self._argv(pid), pid_file) else None

    def is_starting(self, pid_file: str) -> bool:
        """Whether any process lives that is, or is about to become, the owner of that file.

        A QEMU that is being started has written no pid file yet; its starter may be dead.
        """
        for name in os.listdir(self.proc_path):
            if name.isdigit() and self._owns(self._argv(int(name)), pid_file):
                return not self._is_zombie(int(name))
        return False

    def _owns(self, argv: list[str], pid_file: str) -> bool:
        if not self._is_qemu(argv):
            return False
        for option, value in itertools.pairwise(argv):
            if option in ("-pidfile", "--pidfile"):
                return value == pid_file
        return False

    def _is_qemu(self, argv: list[str]) -> bool:
        if not argv:
            return False
        return (
            self.any_program
            or argv[0].endswith("kvm")
            or os.path.basename(argv[0]).startswith("qemu-")
        )

    def _argv(self, pid: int) -> list[str]:
        try:
            with open(f"{self.proc_path}/{pid}/cmdline", "rb") as file:
                data = file.read(_CMDLINE_BYTES_MAX)
        except OSError:
            return []
        return [os.fsdecode(part) for part in data.split(b"\0")][:-1]

    def _is_zombie(self, pid: int) -> bool:
        try:
            with open(f"{self.proc_path}/{pid}/stat", "rb") as file:
                stat = file.read(4096)
        except OSError:
            return True
        # The program's name, in parentheses, may itself hold blanks and parentheses.
        state = stat.rpartition(b")")[2].split()
        return not state or state[0] in (b"Z", b"X")


def _read_pid(pid_file: str) -> int | None:
    try:
        with open(pid_file, "rb") as file:
            first_line = file.read(_PID_FILE_BYTES_MAX).split(b"\n", 1)[0]
    except OSError:
        return None
    return int(first_line) if re.fullmatch(rb"[0-9]{1,10}", first_line) else None


class ProcessHandle:
    """One process, held by a descriptor: its number cannot pass to another meanwhile."""

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd

    @classmethod
    def open(cls, table: ProcessTable, pid_file: str) -> ProcessHandle | None:
        """Hold the QEMU that owns that pid file; None if there is none."""
        pid = table.find_qemu(pid_file)
        if pid is None:
            return None
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        # Looked at again: the number may have changed hands before the descriptor was made.
        if table.find_qemu(pid_file) != pid:
            os.close(pidfd)
            return None
        return cls(pidfd)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; a process that is gone is no error."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    async def wait(self, timeout_s: float) -> bool:
        """Whether the process ended within that time."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(self._pidfd, ended.set)
        try:
            async with asyncio.timeout(timeout_s):
                await ended.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._pidfd)
        return True

    def close(self) -> None:
        """Let go of the descriptor; idempotent."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
