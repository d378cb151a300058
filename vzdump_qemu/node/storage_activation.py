"""Storages of files made ready on a host without the platform's library.

Owns what must hold of a directory before it is used: mounted where that is expected, there, and
not hanging. Nothing is mounted here. A file system that does not answer costs a bounded time and
a thread that waits for it; the process can end all the same. Source: host behaviour, section 5.3;
failure modes, row 43.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from vzdump_qemu.errors import ConfigError, StorageError
from vzdump_qemu.formats.property_string import parse_boolean
from vzdump_qemu.formats.storage_config import StorageSection
from vzdump_qemu.formats.storage_volumes import content_directory, storage_path
from vzdump_qemu.stores.system import start_thread

_T = TypeVar("_T")
# The platform's own limit for a look at a directory.
LOOK_TIMEOUT_S = 2.0
# Making directories on a busy network storage.
CHANGE_TIMEOUT_S = 30.0
MOUNTS_PATH = "/proc/self/mountinfo"
_OCTAL = re.compile(r"\\([0-7]{3})")
_NETWORK_TYPES = {
    "nfs": frozenset({"nfs", "nfs4"}),
    "cifs": frozenset({"cifs", "smb3"}),
    "cephfs": frozenset({"ceph", "fuse.ceph", "fuse.ceph-fuse"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One file system as the kernel lists it."""

    path: str
    type: str


def read_mounts(mounts_path: str = MOUNTS_PATH) -> tuple[Mount, ...]:
    """All mounts of this process, in the kernel's order. Raises StorageError."""
    try:
        with open(mounts_path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise StorageError(f"unable to read '{mounts_path}' - {error.strerror}") from error
    mounts = []
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(" "), after.split(" ")
        if len(fields) > 4:
            path = _OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[4])
            mounts.append(Mount(path=path, type=kinds[0]))
    return tuple(mounts)


async def within(timeout_s: float, call: Callable[[], _T]) -> _T:
    """The result of a call that may hang in the kernel. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        return await asyncio.wrap_future(start_thread(call, name="storage-look"))


class DirectoryActivation:
    """Makes directory storages of one node ready.

    Args:
        local_path: directory of the storage ``local``.
        mounts_path: the kernel's list.
        is_directory: the look that may hang.
    """

    def __init__(
        self,
        local_path: str,
        *,
        mounts_path: str = MOUNTS_PATH,
        is_directory: Callable[[str], bool] = os.path.isdir,
        look_timeout_s: float = LOOK_TIMEOUT_S,
    ) -> None:
        self._local_path = local_path
        self._mounts_path = mounts_path
        self._is_directory = is_directory
        self._look_timeout_s = look_timeout_s

    async def activate(self, section: StorageSection) -> None:
        """Show that a storage's directory can be used. Raises StorageError."""
        path = storage_path(section, self._local_path)
        await self._check_mounted(section, path)
        if _makes_base(section):
            await self._make(section, path)
        if not await self._look(section, path):
            raise _unreachable(section, path)
        if section.type == "btrfs":
            await self._check_btrfs(section, path)
        self._check_distinct(section)

    async def writable_directory(self, section: StorageSection, content: str) -> str:
        """The directory of one kind of content, made if missing, in an active storage.

        Raises: StorageError if it cannot be made or cannot be written to.
        """
        path = content_directory(section, content, self._local_path)
        if _makes_subdirectories(section):
            await self._make(section, path)
        if not await self._look(section, path):
            raise _unreachable(section, path)
        if await self._is_read_only(path):
            raise StorageError(
                f"storage '{section.storage_id}' cannot be written to: '{path}' is read-only",
                hint="be root; a file system with errors is made read-only: see dmesg",
            )
        return path

    async def _check_mounted(self, section: StorageSection, path: str) -> None:
        types = _NETWORK_TYPES.get(section.type)
        if types is not None:
            mount = await self._mount_at(path)
            if mount is None:
                raise _not_mounted(section, path, hint=_mount_hint(section, path))
            if mount.type not in types:
                raise _not_active(
                    section, f"'{path}' is mounted with a file system of type '{mount.type}'"
                )
            return
        expected = _expected_mount(section, path)
        if expected and await self._mount_at(expected) is None:
            raise _not_mounted(section, expected)

    async def _mount_at(self, path: str) -> Mount | None:
        """The mount at that very path; the list is the kernel's, so nothing can hang on it."""
        mounts = {mount.path: mount for mount in read_mounts(self._mounts_path)}
        found = mounts.get(os.path.normpath(path))
        if found is None:
            try:
                real_path = await within(self._look_timeout_s, lambda: os.path.realpath(path))
            except TimeoutError:
                return None
            found = mounts.get(real_path)
        return found

    async def _look(self, section: StorageSection, path: str) -> bool:
        try:
            return await within(self._look_timeout_s, lambda: self._is_directory(path))
        except TimeoutError:
            raise _unreachable(section, path) from None

    async def _make(self, section: StorageSection, path: str) -> None:
        # Looked at first: a directory that hangs would take the longer limit.
        if await self._look(section, path):
            return
        try:
            await within(CHANGE_TIMEOUT_S, lambda: os.makedirs(path, exist_ok=True))
        except TimeoutError:
            raise _unreachable(section, path) from None
        except OSError as error:
            raise _not_active(section, f"unable to create '{path}' - {error.strerror}") from error

    async def _is_read_only(self, path: str) -> bool:
        def look() -> bool:
            return bool(os.statvfs(path).f_flag & os.ST_RDONLY) or not os.access(path, os.W_OK)

        try:
            return await within(self._look_timeout_s, look)
        except (OSError, TimeoutError) as error:
            raise StorageError(f"unable to look at '{path}' - it does not answer") from error

    async def _check_btrfs(self, section: StorageSection, path: str) -> None:
        real_path = await within(self._look_timeout_s, lambda: os.path.realpath(path))
        mounts = [m for m in read_mounts(self._mounts_path) if _is_below(real_path, m.path)]
        # Of mounts at one path the last one covers the others.
        innermost = max(reversed(mounts), key=lambda mount: len(mount.path), default=None)
        if innermost is None or innermost.type != "btrfs":
            raise _not_active(section, f"'{path}' is not a btrfs file system")

    def _check_distinct(self, section: StorageSection) -> None:
        owners: dict[str, str] = {}
        for content in sorted(section.content - {"none"}):
            path = content_directory(section, content, self._local_path)
            if path in owners:
                raise _not_active(
                    section, f"'{owners[path]}' and '{content}' would share directory '{path}'"
                )
            owners[path] = content


def _is_below(path: str, mount_path: str) -> bool:
    return path == mount_path or path.startswith(mount_path.rstrip("/") + "/")


def _makes_base(section: StorageSection) -> bool:
    return section.has("create-base-path", default=section.has("mkdir", default=True))


def _makes_subdirectories(section: StorageSection) -> bool:
    return section.has("create-subdirs", default=section.has("mkdir", default=True))


def _expected_mount(section: StorageSection, path: str) -> str:
    """Where something must be mounted: the option is yes, no, or a path; empty for nowhere."""
    text = section.options.get("is_mountpoint", "no")
    try:
        return path if parse_boolean(text) else ""
    except ConfigError:
        return text


def _mount_hint(section: StorageSection, path: str) -> str:
    options = section.options
    match section.type:
        case "nfs":
            source = f"{_bracketed(options['server'])}:{options['export']}"
        case "cifs":
            source = f"//{_bracketed(options['server'])}/{options['share']}"
        case _:
            return f"mount the file system at '{path}'; only a PVE node mounts its storages"
    return f"mount -t {section.type} {source} {path}; only a PVE node mounts its storages"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _unreachable(section: StorageSection, path: str) -> StorageError:
    return _not_active(section, f"directory '{path}' does not exist or is unreachable")


def _not_mounted(section: StorageSection, path: str, *, hint: str = "") -> StorageError:
    text = f"directory is expected to be a mount point but is not mounted: '{path}'"
    return _not_active(section, text, hint=hint)


def _not_active(section: StorageSection, text: str, *, hint: str = "") -> StorageError:
    return StorageError(f"unable to activate storage '{section.storage_id}' - {text}", hint=hint)
