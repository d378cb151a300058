"""The chunks of a datastore: one file for each digest.

Owns their paths, what happens to a chunk that is there already, chunks set aside as bad, and which
ones garbage collection takes. Unlike a real datastore, this one has a directory of chunks only
once a chunk lies in it. Source: PBS formats, section 10.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from vzdump_qemu.formats.pbs.data_blob import DataBlob
from vzsim.fakepbs.files import DatastoreFiles, render_os_error
from vzsim.fakepbs.requests import ApiError

CHUNK_DIRECTORY: Final = ".chunks"
_NAME = re.compile(r"[a-f0-9]{64}")
_BAD_NAME = re.compile(r"[a-f0-9]{64}\.[0-9]+\.bad")
_BAD_COUNT_MAX: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Inserted:
    """How a chunk went in: its length on disk, and whether it had been there."""

    stored_bytes: int
    is_duplicate: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a garbage collection found and took."""

    removed_count: int
    removed_bytes: int
    pending_count: int
    kept_count: int
    removed_bad_count: int


class ChunkStore:
    """All chunks of one datastore.

    Args:
        store_name: for the texts of errors.
        root: path of the datastore as the texts of errors show it.
    """

    def __init__(self, files: DatastoreFiles, *, store_name: str, root: str) -> None:
        self._files = files
        self._store_name = store_name
        self._root = root

    def insert(self, digest: bytes, encoded: bytes) -> Inserted:
        """Keep a chunk, or the one that is there already.

        Raises:
            ApiError: it may not replace the one that is there, or the disk failed.
        """
        path = _path(digest)
        facts = self._files.facts(path)
        try:
            if facts is not None and facts.size_bytes:
                return self._merge(digest, encoded, facts.size_bytes)
            self._files.write(path, encoded)
        except OSError as error:
            raise ApiError(
                f"inserting chunk on store '{self._store_name}' failed for {digest.hex()} - "
                f"{render_os_error(error)}"
            ) from error
        return Inserted(stored_bytes=len(encoded), is_duplicate=False)

    def _merge(self, digest: bytes, encoded: bytes, old_bytes: int) -> Inserted:
        path = _path(digest)
        if old_bytes != len(encoded):
            new = DataBlob.parse(encoded).kind
            old = DataBlob.parse(self._files.read(path)).kind
            where = f"chunk '{digest.hex()}' on store '{self._store_name}'"
            if new.is_encrypted and not old.is_encrypted:
                raise ApiError(
                    f"Overwriting unencrypted {where} with encrypted chunk with same digest "
                    "not allowed!"
                )
            if old.is_encrypted and not (old.is_compressed or new.is_compressed):
                raise ApiError(
                    f"Overwriting existing (encrypted) {where} is not allowed. "
                    f"(size {old_bytes} != {len(encoded)})"
                )
            if not old.is_encrypted and len(encoded) < old_bytes:
                self._files.write(path, encoded)
                return Inserted(stored_bytes=len(encoded), is_duplicate=True)
        self._files.touch(path)
        return Inserted(stored_bytes=old_bytes, is_duplicate=True)

    def read(self, digest: bytes) -> bytes:
        """The encoded chunk.

        Raises:
            ApiError: it is not there.
        """
        try:
            return self._files.read(_path(digest))
        except OSError as error:
            raise ApiError(
                f'reading file "{self._root}/{_path(digest)}" failed: {render_os_error(error)}'
            ) from error

    def touch(self, digest: bytes) -> None:
        """Note that a chunk is in use, if it is there."""
        if self._files.facts(_path(digest)) is not None:
            self._files.touch(_path(digest))

    def set_aside(self, digest: bytes) -> None:
        """Take a bad chunk out of use; a second upload can then heal what names it."""
        path = _path(digest)
        if self._files.facts(path) is None:
            return
        for number in range(_BAD_COUNT_MAX):
            bad_path = f"{path}.{number}.bad"
            if self._files.facts(bad_path) is None:
                self._files.rename(path, bad_path)
                return

    def replace(self, digest: bytes, encoded: bytes) -> None:
        """Put other bytes in the place of a chunk: damage, for a test."""
        self._files.write(_path(digest), encoded)

    def remove(self, digest: bytes) -> None:
        """Lose a chunk, for a test."""
        self._files.remove(_path(digest))

    def digests(self) -> Iterator[bytes]:
        """Every chunk that is there, in order."""
        for _, name in self._walk():
            if _NAME.fullmatch(name):
                yield bytes.fromhex(name)

    def used_bytes(self) -> int:
        """What all chunks take."""
        return sum(
            facts.size_bytes
            for path, _ in self._walk()
            if (facts := self._files.facts(path)) is not None
        )

    def collect(self, *, used_before_s: float, marked_since_s: float) -> Collected:
        """Remove every chunk that was not in use since a moment.

        Args:
            used_before_s: the moment.
            marked_since_s: when everything that indexes name was touched; what was used between
                the two is no longer needed and waits for a later collection.
        """
        removed_count = removed_bytes = pending_count = kept_count = bad_count = 0
        for path, name in list(self._walk()):
            facts = self._files.facts(path)
            if facts is None:
                continue
            if facts.used_s < used_before_s:
                self._files.remove(path)
                removed_bytes += facts.size_bytes
                if _BAD_NAME.fullmatch(name):
                    bad_count += 1
                else:
                    removed_count += 1
            elif facts.used_s < marked_since_s:
                pending_count += 1
            else:
                kept_count += 1
        return Collected(
            removed_count=removed_count,
            removed_bytes=removed_bytes,
            pending_count=pending_count,
            kept_count=kept_count,
            removed_bad_count=bad_count,
        )

    def _walk(self) -> Iterator[tuple[str, str]]:
        for prefix in self._files.names(CHUNK_DIRECTORY):
            for name in self._files.names(f"{CHUNK_DIRECTORY}/{prefix}"):
                yield f"{CHUNK_DIRECTORY}/{prefix}/{name}", name


def _path(digest: bytes) -> str:
    text = digest.hex()
    return f"{CHUNK_DIRECTORY}/{text[:4]}/{text}"
