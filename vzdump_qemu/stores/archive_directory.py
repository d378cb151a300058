"""Where VMA archives go on this host: a directory, or standard output.

Owns: which program compresses, opening intakes, and the small files and directories around an
archive. Leaves the stream to `vzdump_qemu.stores.vma_intake` and every name to the caller.
Follows host behaviour 1.7 (steps 8, 9, 30) and 2.9. No file call runs on the event loop: the
directory may be a network mount that stalls (failure modes, row 43).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress

from vzdump_qemu.errors import CompressorError, TargetError
from vzdump_qemu.ports import ArchiveTarget, VmaIntake
from vzdump_qemu.stores import builtin_compressor
from vzdump_qemu.stores.archive_output import TargetFiles
from vzdump_qemu.stores.guardian import Guardian
from vzdump_qemu.stores.system import run_blocking, start_thread, sync_directory
from vzdump_qemu.stores.vma_intake import RelayedIntake

DISCARD_TIMEOUT_S = 30.0
# A disk that has to spin up first, on a server that is busy; a mount that is gone takes for ever.
LOOK_TIMEOUT_S = 60.0
# Copies of VM configurations hold passwords; QEMU and the tools run as root.
_DIRECTORY_MODE = 0o700
_FILE_MODE = 0o640


class ArchiveDirectory:
    """`vzdump_qemu.ports.ArchiveStore` on the local file tree.

    Args:
        stdout_fd: where an archive without a final path goes; stays the caller's.
        files: the file system calls of an intake.
        find_program: path of a program, or None.
        discard_timeout_s: how long a discarded intake waits for its writer to close.
        look_timeout_s: how long a look at a name may take.
        guardian: keeps the stream's read end open beyond our death; None for none.
    """

    def __init__(
        self,
        *,
        stdout_fd: int = 1,
        files: TargetFiles | None = None,
        find_program: Callable[[str], str | None] = shutil.which,
        discard_timeout_s: float = DISCARD_TIMEOUT_S,
        look_timeout_s: float = LOOK_TIMEOUT_S,
        guardian: Guardian | None = None,
    ) -> None:
        self._guardian = guardian
        self._stdout_fd = stdout_fd
        self._files = files or TargetFiles()
        self._find_program = find_program
        self._discard_timeout_s = discard_timeout_s
        self._look_timeout_s = look_timeout_s

    async def open_intake(self, target: ArchiveTarget) -> VmaIntake:
        """Open the way of one VMA stream.

        Raises:
            CompressorError: no such program; nothing was touched.
            TargetError: the temporary file cannot be made; nothing is left behind.
        Cancelled: what is being opened is closed and removed as soon as it is open.
        """
        argv = self._compressor_argv(target.compressor)

        def open_it() -> RelayedIntake:
            return RelayedIntake(
                target,
                argv=argv,
                files=self._files,
                stdout_fd=self._stdout_fd,
                discard_timeout_s=self._discard_timeout_s,
                guardian=self._guardian.of_vm(target.vmid) if self._guardian else None,
            )

        opening = start_thread(open_it, name="open-intake")
        try:
            intake = await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_abandon)
            raise
        return intake

    async def create_directory(self, path: str) -> None:
        """Create one directory level, empty, mode 0700, replacing a left-over.

        Raises:
            TargetError: with the reason as the hint.
        """

        def create() -> None:
            _remove_tree(path)
            os.mkdir(path, _DIRECTORY_MODE)

        try:
            await run_blocking(create)
        except OSError as error:
            raise TargetError(
                f"unable to create temporary directory '{path}'", hint=str(error.strerror)
            ) from error

    async def write_file(self, path: str, data: bytes) -> None:
        """Write a whole file durably, mode 0640; a failed one is removed. Raises TargetError."""
        try:
            await run_blocking(lambda: _write_file(path, data))
        except OSError as error:
            raise TargetError(f"unable to write '{path}' - {error.strerror}") from error

    async def remove_tree(self, path: str) -> None:
        """Remove a directory with all it holds; a missing one is no error. Raises TargetError."""
        try:
            await run_blocking(lambda: _remove_tree(path))
        except OSError as error:
            raise TargetError(f"unable to remove '{path}' - {error.strerror}") from error

    async def remove_file(self, path: str) -> None:
        """Remove a file; a missing one is no error. Raises TargetError."""

        try:
            await run_blocking(lambda: _remove_file(path))
        except OSError as error:
            raise TargetError(f"unable to remove '{path}' - {error.strerror}") from error

    async def exists(self, path: str) -> bool:
        """Whether the name is taken, be it by a dangling link.

        Raises: TargetError if that cannot be told: a wrong "no" may cost a protected archive.
        """
        try:
            async with asyncio.timeout(self._look_timeout_s):
                await run_blocking(lambda: os.lstat(path))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except TimeoutError:
            raise TargetError(f"unable to look for '{path}' - it does not answer") from None
        except OSError as error:
            raise TargetError(f"unable to look for '{path}' - {error.strerror}") from error
        return True

    async def list_names(self, path: str) -> Sequence[str]:
        """Names in a directory, in no order. Raises TargetError."""
        try:
            return await run_blocking(lambda: os.listdir(path))
        except OSError as error:
            raise TargetError(f"unable to list '{path}' - {error.strerror}") from error

    def _compressor_argv(self, compressor: tuple[str, ...]) -> tuple[str, ...]:
        if not compressor:
            return ()
        program = self._find_program(compressor[0])
        if program is not None:
            return (program, *compressor[1:])
        if compressor[0] in builtin_compressor.PROGRAMS:
            return (sys.executable, "-m", builtin_compressor.__name__, *compressor)
        raise CompressorError(
            f"compressor '{compressor[0]}' not found",
            hint=f"install '{compressor[0]}', or choose zstd, gzip or no compression",
        )


def _abandon(opening: Future[RelayedIntake]) -> None:
    if opening.exception() is None:
        start_thread(opening.result().abandon, name="abandon-intake")


def _remove_file(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
        sync_directory(os.path.dirname(path))


def _remove_tree(path: str) -> None:
    with suppress(FileNotFoundError):
        try:
            is_link = stat.S_ISLNK(os.lstat(path).st_mode)
        except NotADirectoryError:
            # What stands above is a file: nothing can be below it.
            return
        if is_link:
            os.unlink(path)
        else:
            shutil.rmtree(path)
        # Whoever is told that it is gone forgets it: a power loss must not bring it back.
        sync_directory(os.path.dirname(path))


def _write_file(path: str, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    fd = os.open(path, flags, _FILE_MODE)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
    except OSError:
        with suppress(OSError):
            os.unlink(path)
        raise
