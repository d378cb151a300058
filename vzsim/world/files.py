"""A file system in memory that forgets what was not synced when the power goes.

Owns names, contents and their durability: written bytes are durable after `fsync` of the file,
created, renamed and removed names after `fsync_directory`. Faults come in by the `fault` hook.
"""

from __future__ import annotations

import errno
import posixpath
from collections.abc import Callable
from dataclasses import dataclass, field

FaultHook = Callable[[str, str], None]
"""Gets operation and path before each act; raises OSError to make it fail."""


@dataclass(slots=True)
class SimulatedFile:
    """Content as read now, and as it would be read after a power loss."""

    content: bytearray = field(default_factory=bytearray)
    synced: bytes = b""


class PartialWrite(OSError):
    """Raised by a fault hook: half of the bytes are written, then the error is reported."""


class SimulatedFiles:
    """One file system. Directories are sets of names; paths are absolute and normal."""

    def __init__(self, capacity_bytes: int = 1 << 50) -> None:
        self.capacity_bytes = capacity_bytes
        self.fault: FaultHook = lambda operation, path: None
        self.files: dict[str, SimulatedFile] = {}
        self.directories: set[str] = {"/"}
        self._durable_files: dict[str, SimulatedFile] = {}

    def make_directories(self, path: str) -> None:
        """As ``mkdir -p``; durable at once (the world at the start)."""
        while path not in self.directories:
            self.directories.add(path)
            path = posixpath.dirname(path)

    def create_directory(self, path: str) -> None:
        """One level; the parent must exist."""
        self.fault("mkdir", path)
        if posixpath.dirname(path) not in self.directories:
            raise OSError(errno.ENOENT, "No such file or directory", path)
        if path in self.directories or path in self.files:
            raise OSError(errno.EEXIST, "File exists", path)
        self.directories.add(path)

    def create(self, path: str) -> SimulatedFile:
        """A new, empty file; the directory must exist."""
        self.fault("create", path)
        if posixpath.dirname(path) not in self.directories:
            raise OSError(errno.ENOENT, "No such file or directory", path)
        if path in self.files:
            raise OSError(errno.EEXIST, "File exists", path)
        self.files[path] = SimulatedFile()
        return self.files[path]

    def used_bytes(self) -> int:
        """Sum of all contents."""
        return sum(len(file.content) for file in self.files.values())

    def append(self, path: str, data: bytes | memoryview) -> None:
        """Write at the end; ENOSPC where the capacity ends."""
        try:
            self.fault("write", path)
        except PartialWrite:
            self.files[path].content += data[: len(data) // 2]
            raise
        if self.used_bytes() + len(data) > self.capacity_bytes:
            raise OSError(errno.ENOSPC, "No space left on device", path)
        self.files[path].content += data

    def read(self, path: str) -> bytes:
        """The whole content."""
        if path not in self.files:
            raise OSError(errno.ENOENT, "No such file or directory", path)
        return bytes(self.files[path].content)

    def fsync(self, path: str) -> None:
        """Make the content durable."""
        self.fault("fsync", path)
        self.files[path].synced = bytes(self.files[path].content)

    def fsync_directory(self, path: str) -> None:
        """Make the names in one directory durable."""
        self.fault("fsync-directory", path)
        for durable in [p for p in self._durable_files if posixpath.dirname(p) == path]:
            del self._durable_files[durable]
        for name, file in self.files.items():
            if posixpath.dirname(name) == path:
                self._durable_files[name] = file

    def rename(self, old: str, new: str) -> None:
        """Rename without replacing."""
        self.fault("rename", old)
        if new in self.files:
            raise OSError(errno.EEXIST, "File exists", new)
        self.files[new] = self.files.pop(old)

    def unlink(self, path: str) -> None:
        """Remove a name; a missing one is ENOENT."""
        self.fault("unlink", path)
        if path not in self.files:
            raise OSError(errno.ENOENT, "No such file or directory", path)
        del self.files[path]

    def remove_tree(self, path: str) -> None:
        """Remove a directory with all it holds; a missing one is no error."""
        self.fault("remove-tree", path)
        inside = path.rstrip("/") + "/"
        for name in [name for name in self.files if name.startswith(inside)]:
            del self.files[name]
        self.directories = {
            name for name in self.directories if name != path and not name.startswith(inside)
        }

    def lose_power(self) -> None:
        """Only durable names and contents are left."""
        self.files = dict(self._durable_files)
        for file in self.files.values():
            file.content = bytearray(file.synced)
