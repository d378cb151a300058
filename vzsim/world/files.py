"""A file system in memory that may forget what was not synced when the power goes.

Owns names, contents and their durability. Bytes are durable after `fsync` of their file; a name
that was made, moved or removed is after `fsync_directory`. What was not synced is lost or kept in
any combination, as chance has it: file systems differ, and none promises more. Faults come in by
the `fault` hook.
"""

from __future__ import annotations

import enum
import errno
import posixpath
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

FaultHook = Callable[[str, str], None]
"""Gets operation and path before each act; raises OSError to make it fail."""


@dataclass(slots=True)
class SimulatedFile:
    """Content as read now; the first `synced_bytes` of it outlive a power loss."""

    content: bytearray = field(default_factory=bytearray)
    synced_bytes: int = 0


class _Other(enum.Enum):
    """What a name stands for if not for a file."""

    DIRECTORY = enum.auto()


_Entry = SimulatedFile | _Other
_Change = Mapping[str, _Entry | None]
"""Names and what they stand for from now on, together or not at all; None: nothing."""


# More than there can be in memory.
_BOUNDLESS_BYTES = 1 << 50
# Nothing below is on a disk at all.
_IN_MEMORY = ("/run/", "/var/run/")


class PartialWrite(OSError):
    """Raised by a fault hook: half of the bytes are written, then the error is reported."""


class SimulatedFiles:
    """One file system. Directories are sets of names; paths are absolute and normal."""

    def __init__(self, capacity_bytes: int = _BOUNDLESS_BYTES) -> None:
        self.capacity_bytes = capacity_bytes
        self.fault: FaultHook = lambda operation, path: None
        self.files: dict[str, SimulatedFile] = {}
        self.directories: set[str] = {"/"}
        # As the names would be read after a power loss, and what is not sure to be among them.
        self._durable: dict[str, _Entry] = {"/": _Other.DIRECTORY}
        # Each with the directories of its names.
        self._unsynced: list[tuple[frozenset[str], _Change]] = []

    def make_directories(self, path: str) -> None:
        """As ``mkdir -p``; durable at once (the world at the start)."""
        while path not in self.directories:
            self.directories.add(path)
            self._durable[path] = _Other.DIRECTORY
            path = posixpath.dirname(path)

    def create_directory(self, path: str) -> None:
        """One level; the parent must exist."""
        self.fault("mkdir", path)
        if posixpath.dirname(path) not in self.directories:
            raise OSError(errno.ENOENT, "No such file or directory", path)
        if path in self.directories or path in self.files:
            raise OSError(errno.EEXIST, "File exists", path)
        self.directories.add(path)
        self._change({path: _Other.DIRECTORY})

    def create(self, path: str) -> SimulatedFile:
        """A new, empty file; the directory must exist."""
        self.fault("create", path)
        if posixpath.dirname(path) not in self.directories:
            raise OSError(errno.ENOENT, "No such file or directory", path)
        if path in self.files:
            raise OSError(errno.EEXIST, "File exists", path)
        self.files[path] = SimulatedFile()
        self._change({path: self.files[path]})
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
        has_bound = self.capacity_bytes < _BOUNDLESS_BYTES
        if has_bound and self.used_bytes() + len(data) > self.capacity_bytes:
            raise OSError(errno.ENOSPC, "No space left on device", path)
        self.files[path].content += data

    def read(self, path: str) -> bytes:
        """The whole content."""
        if path not in self.files:
            raise OSError(errno.ENOENT, "No such file or directory", path)
        return bytes(self.files[path].content)

    def list_names(self, path: str) -> list[str]:
        """Names in one directory, sorted."""
        if path not in self.directories:
            raise OSError(errno.ENOENT, "No such file or directory", path)
        names = (name for name in (*self.files, *self.directories) if name != "/")
        return sorted(posixpath.basename(name) for name in names if posixpath.dirname(name) == path)

    def fsync(self, path: str) -> None:
        """Make the content durable."""
        self.fault("fsync", path)
        self.files[path].synced_bytes = len(self.files[path].content)

    def fsync_directory(self, path: str) -> None:
        """Make the names in one directory durable."""
        self.fault("fsync-directory", path)
        kept = []
        for noted in self._unsynced:
            directories, change = noted
            if path in directories:
                self._make_durable(change)
            else:
                kept.append(noted)
        self._unsynced = kept

    def rename(self, old: str, new: str) -> None:
        """Rename without replacing."""
        self.fault("rename", old)
        if new in self.files:
            raise OSError(errno.EEXIST, "File exists", new)
        self.files[new] = self.files.pop(old)
        self._change({old: None, new: self.files[new]})

    def unlink(self, path: str) -> None:
        """Remove a name; a missing one is ENOENT."""
        self.fault("unlink", path)
        if path not in self.files:
            raise OSError(errno.ENOENT, "No such file or directory", path)
        del self.files[path]
        self._change({path: None})

    def remove_tree(self, path: str) -> None:
        """Remove a directory with all it holds; a missing one is no error."""
        self.fault("remove-tree", path)
        inside = path.rstrip("/") + "/"
        files = [name for name in self.files if name.startswith(inside)]
        for name in files:
            del self.files[name]
        gone = {name for name in self.directories if name == path or name.startswith(inside)}
        self.directories -= gone
        for name in (*files, *sorted(gone, reverse=True)):
            self._change({name: None})

    # -- power ---------------------------------------------------------------------------------

    def settle(self) -> None:
        """Everything is durable: it has been there for long."""
        for _, change in self._unsynced:
            self._make_durable(change)
        self._unsynced.clear()
        for file in self.files.values():
            file.synced_bytes = len(file.content)

    def is_durable(self, path: str) -> bool:
        """Whether a file would be there, whole, after a power loss now."""
        file = self.files[path]
        is_whole = file.synced_bytes == len(file.content)
        return is_whole and self._durable.get(path) is file

    def lose_power(self, stream: random.Random) -> None:
        """What is durable is left, and of the rest whatever chance says."""
        in_order = stream.random() < 0.5
        kept_count = stream.randint(0, len(self._unsynced))
        for index, (_, change) in enumerate(self._unsynced):
            # A file system with a journal keeps the changes of names in their order.
            if index < kept_count if in_order else stream.random() < 0.5:
                self._make_durable(change)
        self._unsynced.clear()
        found = {
            name: entry
            for name, entry in self._durable.items()
            if entry is _Other.DIRECTORY or not name.startswith(_IN_MEMORY)
        }
        self.directories = {name for name in found if found[name] is _Other.DIRECTORY}
        self._durable = {name: entry for name, entry in found.items() if self._has_way(name)}
        self.directories &= self._durable.keys()
        self.files = {
            name: entry for name, entry in self._durable.items() if isinstance(entry, SimulatedFile)
        }
        for file in self.files.values():
            _cut(file, stream)

    def _has_way(self, name: str) -> bool:
        while name != "/":
            name = posixpath.dirname(name)
            if name not in self.directories:
                return False
        return True

    def _change(self, change: _Change) -> None:
        self._unsynced.append((frozenset(map(posixpath.dirname, change)), change))

    def _make_durable(self, change: _Change) -> None:
        for name, entry in change.items():
            if entry is None:
                self._durable.pop(name, None)
            else:
                self._durable[name] = entry


def _cut(file: SimulatedFile, stream: random.Random) -> None:
    """Of what was not synced a beginning is left, perhaps followed by zeros up to the old size."""
    full_bytes = len(file.content)
    if file.synced_bytes < full_bytes:
        kept_bytes = stream.choice(
            (file.synced_bytes, full_bytes, stream.randint(file.synced_bytes, full_bytes))
        )
        del file.content[kept_bytes:]
        if stream.random() < 0.25:
            file.content.extend(bytes(full_bytes - kept_bytes))
    file.synced_bytes = len(file.content)
