"""Run journals as files: what a killed run would have to put back.

Owns one file per VM: JSON lines, synced before the act they stand for, locked by the living
owner, removed when nothing is open. What the reversals mean is left to the engine; who acts after
our death to `stores.guardian`. Source: architecture, section 6.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress

from vzdump_qemu.errors import ConfigError, VmLocked
from vzdump_qemu.journal_ports import Reversal, ReversalKind
from vzdump_qemu.stores.system import run_blocking, sync_directory

# A guardian may still be putting back what the run before left; it has limits of its own.
OWNER_TIMEOUT_S = 60.0
_RETRY_S = 0.1
_NAME = re.compile(r"([0-9]+)\.journal\Z")
Watch = Callable[[int], AbstractContextManager[Callable[[], None]]]
"""Has somebody watch over a VM's run; yields how to send them home."""


class FileJournal:
    """One open, owned journal; the `Journal` port.

    Raises ConfigError if `fd` holds anything but a journal; `path` only names it.

    Args:
        boot_id: tells this start of the host from every other.
    """

    def __init__(self, fd: int, path: str, boot_id: str = "") -> None:
        self._fd = fd
        self._boot_id = boot_id
        self._entries, self._next = _read_entries(fd, path, boot_id)

    @property
    def open_entries(self) -> Sequence[tuple[int, Reversal]]:
        """Noted and not struck, oldest first."""
        return tuple(sorted(self._entries.items()))

    async def note(self, reversal: Reversal) -> int:
        """Write and sync one line; return its index. Raises ConfigError."""
        index, self._next = self._next, self._next + 1
        line = {
            "note": index,
            "kind": reversal.kind.value,
            "names": list(reversal.names),
            "boot": self._boot_id,
        }
        try:
            await run_blocking(lambda: self._write(line, sync=True))
        except OSError as error:
            raise ConfigError(f"unable to write the run's journal - {error.strerror}") from error
        self._entries[index] = reversal
        return index

    def strike(self, index: int) -> None:
        """Write one line; losing it costs a second try, so nothing is synced."""
        self._entries.pop(index, None)
        with suppress(OSError):
            self._write({"strike": index}, sync=False)

    def _write(self, line: Mapping[str, object], *, sync: bool) -> None:
        data = json.dumps(line).encode() + b"\n"
        written_bytes = os.write(self._fd, data)
        if written_bytes != len(data):
            # The next line must not be joined to half a one: nobody could read either.
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - written_bytes)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if sync:
            os.fsync(self._fd)


class FileJournals:
    """The `Journals` port on a directory.

    Args:
        directory: made when needed, for root alone.
        watch: has somebody watch over our death while a journal is open; gets the VM's id.
        owner_timeout_s: how long a living owner is waited for.
        boot_id: tells this start of the host from every other; what a run of an earlier one
            left is gone as far as it was processes.
    """

    def __init__(
        self,
        directory: str,
        watch: Watch | None = None,
        *,
        owner_timeout_s: float = OWNER_TIMEOUT_S,
        boot_id: str = "",
    ) -> None:
        self._directory = directory
        self._watch = watch or (lambda vmid: nullcontext(lambda: None))
        self._owner_timeout_s = owner_timeout_s
        self._boot_id = boot_id

    @asynccontextmanager
    async def open(self, vmid: int) -> AsyncIterator[FileJournal]:
        """Own one VM's journal. Raises VmLocked, ConfigError on entering."""
        path = os.path.join(self._directory, f"{vmid}.journal")
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            fd = await _own(path, vmid, timeout_s=self._owner_timeout_s)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(f"unable to keep a journal in '{path}' - {reason}") from error
        try:
            journal = FileJournal(fd, path, self._boot_id)
            with self._watch(vmid) as send_home:
                try:
                    yield journal
                finally:
                    # Inside the watch: a journal is forgotten before its guardian is sent home,
                    # and one with something left is what the guardian goes on with.
                    if not journal.open_entries:
                        send_home()
                        with suppress(OSError):
                            os.unlink(path)
        finally:
            os.close(fd)

    async def list_vmids(self) -> Sequence[int]:
        """VMs with a journal, ascending. Raises ConfigError."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return ()
        except OSError as error:
            text = f"unable to look for journals in '{self._directory}' - {error.strerror}"
            raise ConfigError(text) from error
        return sorted(int(found[1]) for name in names if (found := _NAME.match(name)))


async def _own(path: str, vmid: int, *, timeout_s: float) -> int:
    """Open and lock the file; wait, bounded, while a living process owns it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                fd = os.open(path, flags, 0o600)
                if _lock(fd) and _is_still(path, fd):
                    sync_directory(os.path.dirname(path))
                    return fd
                os.close(fd)
                await asyncio.sleep(_RETRY_S)
    except TimeoutError as error:
        raise VmLocked(
            f"another backup of VM {vmid} is running", hint=f"its journal is '{path}'"
        ) from error


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            os.close(fd)
            raise
        return False
    return True


def _is_still(path: str, fd: int) -> bool:
    """Whether the name still means the file that was locked: its owner may have removed it."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _read_entries(fd: int, path: str, boot_id: str) -> tuple[dict[int, Reversal], int]:
    """Open entries and the next index. A line cut by a death was never acted upon."""
    raw = os.pread(fd, os.fstat(fd).st_size, 0)
    whole = raw.rfind(b"\n") + 1
    if whole != len(raw):
        os.ftruncate(fd, whole)
    entries: dict[int, Reversal] = {}
    following = 1
    for text in raw[:whole].splitlines():
        try:
            line = json.loads(text)
            if "strike" in line:
                entries.pop(int(line["strike"]), None)
                continue
            index = int(line["note"])
            names = tuple(str(name) for name in line["names"])
            kind = ReversalKind(line["kind"])
            if kind.outlives_reboot or str(line["boot"]) == boot_id:
                entries[index] = Reversal(kind=kind, names=names)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"the journal '{path}' of a killed run cannot be read",
                hint="look at it and remove it",
            ) from error
        following = max(following, index + 1)
    return entries, following
