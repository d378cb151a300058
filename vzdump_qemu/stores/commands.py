"""External programs: run to their end, or standing in a stream as a filter.

Owns: starting, bounding, ending and reaping child processes. Leaves the meaning of an exit
status to the callers. Children get the C locale, none of our descriptors (failure modes, row
63) and a process group of their own, so that a terminal's Ctrl-C reaches us first and the
undo happens in our order.
"""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

from vzdump_qemu.stores.system import start_thread

# A chatty child must not fill our memory; its last words are what explains a failure.
OUTPUT_BYTES_MAX = 256 * 1024
_STDERR_BYTES_MAX = 16 * 1024
_READ_BYTES = 64 * 1024
# The largest pipe, in reads: a grandchild that goes on printing is not followed.
_PIPE_READS_MAX = 16
# Between the polite signal and the one that cannot be ignored.
_TERM_GRACE_S = 5.0
# What a shell reports for a program that is missing or cannot be run.
_STATUS_NOT_FOUND = 127
_STATUS_NOT_RUNNABLE = 126


def _child_environment(environment: Mapping[str, str] | None) -> dict[str, str]:
    inherited = dict(os.environ if environment is None else environment)
    inherited["LC_ALL"] = "C"
    return inherited


def _signal_group(process_id: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process_id, number)


class SystemCommandRunner:
    """`vzdump_qemu.ports.CommandRunner` on child processes of ours.

    Args:
        environment: the children's environment instead of ours; ``LC_ALL=C`` is added.
        term_grace_s: how long a cancelled program may take to end by itself.
    """

    def __init__(
        self,
        *,
        environment: Mapping[str, str] | None = None,
        term_grace_s: float = _TERM_GRACE_S,
    ) -> None:
        self._environment = _child_environment(environment)
        self._term_grace_s = term_grace_s

    async def run(
        self,
        argv: Sequence[str],
        *,
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> tuple[int, Sequence[str]]:
        """Run a program to its end and return its exit status and what it printed.

        Standard output and error are one list of lines, of which the last `OUTPUT_BYTES_MAX`
        bytes are kept. The status is negative if a signal ended the program. One that cannot be
        started gives status 127 (missing) or 126 and one line, as a shell does.

        Args:
            pass_fds: descriptors the program keeps, under the same numbers.
            environment: variables besides those of every child.
        Cancelled: the program's group gets SIGTERM, then SIGKILL, and is reaped.
        """
        output = _Output()
        try:
            try:
                process = await asyncio.create_subprocess_exec(
                    *argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output.write_fd,
                    stderr=asyncio.subprocess.STDOUT,
                    env={**self._environment, **(environment or {})},
                    pass_fds=tuple(pass_fds),
                    process_group=0,
                )
            except OSError as error:
                missing = isinstance(error, FileNotFoundError)
                status = _STATUS_NOT_FOUND if missing else _STATUS_NOT_RUNNABLE
                return status, [f"cannot run '{argv[0]}': {error.strerror}"]
            try:
                status = await process.wait()
            finally:
                if process.returncode is None:
                    await self._end(process)
            return status, output.lines()
        finally:
            output.close()

    def find(self, program: str) -> str | None:
        """Path of a program as the children's ``PATH`` gives it, or None."""
        return shutil.which(program, path=self._environment.get("PATH"))

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        _signal_group(process.pid, signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), self._term_grace_s)
        except TimeoutError:
            pass
        finally:
            # Also reached by a second cancellation: nobody may skip the kill.
            if process.returncode is None:
                _signal_group(process.pid, signal.SIGKILL)
                await process.wait()


class _Output:
    """A pipe for what a program prints, read by the running event loop.

    Not asyncio's own: with that the end of a program also waits for the end of its pipes, which
    a grandchild (a daemon it started) may hold open for ever.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._kept = bytearray()
        self._read_fd, self.write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        self._loop.add_reader(self._read_fd, self._read)

    def lines(self) -> list[str]:
        """What was printed, once the program has ended: all of it is in the pipe by then."""
        for _ in range(_PIPE_READS_MAX):
            if not self._read():
                break
        return self._kept.decode(errors="replace").splitlines()

    def close(self) -> None:
        self._loop.remove_reader(self._read_fd)
        os.close(self._read_fd)
        os.close(self.write_fd)

    def _read(self) -> bool:
        try:
            data = os.read(self._read_fd, _READ_BYTES)
        except BlockingIOError:
            return False
        self._kept += data
        del self._kept[:-OUTPUT_BYTES_MAX]
        return bool(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterExit:
    """How a filter ended.

    Attributes:
        status: exit status, 0 if a signal ended it.
        signal_number: that signal, or 0.
        last_words: the last line it wrote to standard error; empty if none.
    """

    status: int
    signal_number: int
    last_words: str

    @property
    def is_clean(self) -> bool:
        """Whether the filter says that it did its work."""
        return self.status == 0 and self.signal_number == 0


class FilterProcess:
    """A program between two descriptors, e.g. a compressor, watched by a thread.

    Args:
        argv: program and arguments; no shell.
        stdin_fd: what it reads; ours stays open.
        stdout_fd: what it writes; ours stays open.

    Raises:
        OSError: it could not be started; nothing is left behind.
    """

    def __init__(self, argv: Sequence[str], *, stdin_fd: int, stdout_fd: int) -> None:
        self._lock = threading.Lock()
        self._reaped = False
        self._process = subprocess.Popen(
            argv,
            stdin=stdin_fd,
            stdout=stdout_fd,
            stderr=subprocess.PIPE,
            env=_child_environment(None),
            close_fds=True,
            process_group=0,
        )
        try:
            self._process_fd = os.pidfd_open(self._process.pid)
        except OSError:
            self._process.kill()
            self._process.communicate()
            raise
        self.ended: Future[FilterExit] = start_thread(self._watch, name="filter-watch")

    def kill(self) -> None:
        """Kill -9 its process group, unless it has ended. Idempotent, returns at once."""
        with self._lock:
            # Unreaped, the id is surely still this process's and never a stranger's.
            if not self._reaped:
                _signal_group(self._process.pid, signal.SIGKILL)

    def _watch(self) -> FilterExit:
        words = self._read_stderr_until_exit()
        os.close(self._process_fd)
        with self._lock:
            code = self._process.wait()
            self._reaped = True
        lines = words.decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return FilterExit(
            status=max(code, 0), signal_number=max(-code, 0), last_words=said[-1] if said else ""
        )

    def _read_stderr_until_exit(self) -> bytearray:
        # The exit counts, not the end of standard error, which a grandchild may keep open.
        stream = self._process.stderr
        assert stream is not None
        words = bytearray()
        with stream:
            os.set_blocking(stream.fileno(), False)
            poll = select.poll()
            poll.register(stream.fileno(), select.POLLIN)
            poll.register(self._process_fd, select.POLLIN)
            while True:
                ready = {fd for fd, _ in poll.poll()}
                if stream.fileno() in ready:
                    data = os.read(stream.fileno(), _READ_BYTES)
                    words += data
                    del words[:-_STDERR_BYTES_MAX]
                    if data:
                        continue
                    poll.unregister(stream.fileno())
                if self._process_fd in ready:
                    return words
