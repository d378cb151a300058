"""Where a datastore keeps its files: on disk, or in memory for a simulation.

Owns reading, whole-file replacement, renaming and times of use; what the files mean is in
`chunk_store` and `datastore`. Paths are relative, with slashes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What is known of a path without reading it; a directory has no size."""

    is_directory: bool
    size_bytes: int
    used_s: float


class DatastoreFiles(Protocol):
    """Files of one datastore; every act is atomic. What it cannot do raises OSError."""

    def read(self, path: str) -> bytes: ...

    def write(self, path: str, content: bytes) -> None:
        """Put a whole file there, making the directories above it."""
        ...

    def make_directory(self, path: str) -> None: ...

    def remove(self, path: str) -> None:
        """Remove a file, or a directory with all that is in it; absent is no error."""
        ...

    def rename(self, path: str, new_path: str) -> None: ...

    def names(self, path: str) -> list[str]:
        """Names in a directory in order; none if it is absent."""
        ...

    def facts(self, path: str) -> FileFacts | None: ...

    def touch(self, path: str) -> None:
        """Note that a file is in use; garbage collection goes by that."""
        ...


class DiskFiles:
    """Files under a directory of this machine, in the layout of a real datastore."""

    def __init__(self, root: Path, now_s: Callable[[], float]) -> None:
        self._root = root
        self._now_s = now_s
        root.mkdir(parents=True, exist_ok=True)

    def read(self, path: str) -> bytes:
        return (self._root / path).read_bytes()

    def write(self, path: str, content: bytes) -> None:
        target = self._root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{target.name}.tmp")
        try:
            temporary.write_bytes(content)
            self._stamp(temporary)
            temporary.replace(target)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def make_directory(self, path: str) -> None:
        (self._root / path).mkdir(parents=True, exist_ok=True)

    def remove(self, path: str) -> None:
        target = self._root / path
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)

    def rename(self, path: str, new_path: str) -> None:
        (self._root / path).replace(self._root / new_path)

    def names(self, path: str) -> list[str]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(os.listdir(self._root / path))
        return []

    def facts(self, path: str) -> FileFacts | None:
        target = self._root / path
        try:
            status = target.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        is_directory = target.is_dir()
        return FileFacts(
            is_directory=is_directory,
            size_bytes=0 if is_directory else status.st_size,
            used_s=status.st_atime,
        )

    def touch(self, path: str) -> None:
        self._stamp(self._root / path)

    def _stamp(self, target: Path) -> None:
        used_s = self._now_s()
        os.utime(target, (used_s, used_s))


@dataclass(slots=True)
class _MemoryFile:
    content: bytes
    used_s: float


class MemoryFiles:
    """Files in memory; an absent directory is as good as an empty one."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._root: dict[str, object] = {}

    def read(self, path: str) -> bytes:
        return self._file(path).content

    def write(self, path: str, content: bytes) -> None:
        directory, name = self._parent(path, make=True)
        directory[name] = _MemoryFile(bytes(content), self._now_s())

    def make_directory(self, path: str) -> None:
        directory, name = self._parent(path, make=True)
        directory.setdefault(name, {})

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            directory, name = self._parent(path)
            directory.pop(name, None)

    def rename(self, path: str, new_path: str) -> None:
        directory, name = self._parent(path)
        if name not in directory:
            raise _absent(path)
        new_directory, new_name = self._parent(new_path, make=True)
        new_directory[new_name] = directory.pop(name)

    def names(self, path: str) -> list[str]:
        found = self._find(path)
        return sorted(found) if isinstance(found, dict) else []

    def facts(self, path: str) -> FileFacts | None:
        match self._find(path):
            case None:
                return None
            case _MemoryFile(content, used_s):
                return FileFacts(is_directory=False, size_bytes=len(content), used_s=used_s)
            case _:
                return FileFacts(is_directory=True, size_bytes=0, used_s=0.0)

    def touch(self, path: str) -> None:
        self._file(path).used_s = self._now_s()

    def _find(self, path: str) -> object | None:
        found: object = self._root
        for part in filter(None, path.split("/")):
            if not isinstance(found, dict) or part not in found:
                return None
            found = found[part]
        return found

    def _file(self, path: str) -> _MemoryFile:
        found = self._find(path)
        if not isinstance(found, _MemoryFile):
            raise _absent(path)
        return found

    def _parent(self, path: str, *, make: bool = False) -> tuple[dict[str, object], str]:
        *above, name = path.split("/")
        directory = self._root
        for part in above:
            below = directory.setdefault(part, {}) if make else directory.get(part)
            if not isinstance(below, dict):
                raise _absent(path)
            directory = below
        return directory, name


class LimitedFiles:
    """Files on a disk that can be full.

    Attributes:
        free_bytes: what may still be written; None for no limit.
    """

    def __init__(self, inner: DatastoreFiles) -> None:
        self._inner = inner
        self.free_bytes: int | None = None
        self.read = inner.read
        self.make_directory = inner.make_directory
        self.remove = inner.remove
        self.rename = inner.rename
        self.names = inner.names
        self.facts = inner.facts
        self.touch = inner.touch

    def write(self, path: str, content: bytes) -> None:
        if self.free_bytes is not None:
            if len(content) > self.free_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            self.free_bytes -= len(content)
        self._inner.write(path, content)


def render_os_error(error: OSError) -> str:
    """As a server written in Rust says it."""
    return f"{error.strerror} (os error {error.errno})"


def _absent(path: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
