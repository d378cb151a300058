"""A datastore: namespaces, groups, backups, their files, owners, notes and locks.

Owns the layout and the rules that hold whoever asks; who may ask is decided by `management` and
the sessions, `verification` and `retention` work on it. Source: PBS formats, sections 3 and 10.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from vzdump_qemu.errors import PbsError
from vzdump_qemu.formats.pbs.data_blob import BlobDecoder, BlobEncoder, DataBlob
from vzdump_qemu.formats.pbs.manifest import (
    Manifest,
    Unprotected,
    Verification,
    VerifyState,
    decode_manifest,
    encode_manifest,
)
from vzdump_qemu.formats.pbs.names import (
    CLIENT_LOG_NAME,
    MANIFEST_NAME,
    BackupGroup,
    BackupRef,
    BackupType,
    Namespace,
)
from vzdump_qemu.formats.pbs.times import parse_utc
from vzsim.fakepbs.chunk_store import ChunkStore
from vzsim.fakepbs.files import DatastoreFiles, LimitedFiles
from vzsim.fakepbs.locks import Locks
from vzsim.fakepbs.requests import ApiError

_PROTECTED_NAME: Final = ".protected"
_FILE_SUFFIXES: Final = (".blob", ".fidx", ".didx")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A group in a namespace."""

    namespace: Namespace
    group: BackupGroup

    @property
    def path(self) -> str:
        """Path under the datastore."""
        above = self.namespace.directory
        return f"{above}/{self.group.path}" if above else self.group.path

    def backup(self, backup_time_s: int) -> BackupRef:
        """The backup of that time. Raises: PbsError for a time no server takes."""
        return BackupRef(backup_group=self.group, backup_time_s=backup_time_s)

    def backup_path(self, backup: BackupRef) -> str:
        return backup.directory(self.namespace)


class Datastore:
    """One datastore.

    Args:
        root: its path as the texts of errors show it.
        now_s: seconds since the epoch.
    """

    def __init__(
        self, name: str, files: DatastoreFiles, now_s: Callable[[], float], *, root: str = ""
    ) -> None:
        self.name = name
        self.root = root or f"/datastore/{name}"
        self.files = LimitedFiles(files)
        self.chunks = ChunkStore(self.files, store_name=name, root=self.root)
        self.locks = Locks()
        self.now_s = now_s

    # -- namespaces and groups ----------------------------------------------------------------

    def has_namespace(self, namespace: Namespace) -> bool:
        return namespace.is_root or self.files.facts(namespace.directory) is not None

    def make_namespace(self, namespace: Namespace) -> None:
        """Make it with all that are above it."""
        self.files.make_directory(namespace.directory)

    def namespaces(self, above: Namespace | None = None) -> Iterator[Namespace]:
        """A namespace and all below it."""
        above = above or Namespace()
        yield above
        for name in self.files.names("/".join(filter(None, (above.directory, "ns")))):
            yield from self.namespaces(Namespace(parts=(*above.parts, name)))

    def places(self, namespace: Namespace) -> Iterator[Place]:
        """The groups of one namespace."""
        for backup_type in BackupType:
            above = "/".join(filter(None, (namespace.directory, backup_type.value)))
            for backup_id in self.files.names(above):
                group = BackupGroup(backup_type=backup_type, backup_id=backup_id)
                yield Place(namespace=namespace, group=group)

    def owner(self, place: Place) -> str | None:
        """Who made the group, None if it is absent."""
        try:
            return self.files.read(f"{place.path}/owner").decode().strip()
        except FileNotFoundError:
            return None

    def set_owner(self, place: Place, auth_id: str) -> None:
        self.files.write(f"{place.path}/owner", f"{auth_id}\n".encode())

    def group_notes(self, place: Place) -> str:
        try:
            return self.files.read(f"{place.path}/notes").decode()
        except FileNotFoundError:
            return ""

    def set_group_notes(self, place: Place, notes: str) -> None:
        self.files.write(f"{place.path}/notes", notes.encode())

    def remove_group(self, place: Place) -> None:
        """Remove a group. Raises: ApiError if one of its backups is protected or in use."""
        for backup in self.backups(place):
            self.remove_backup(place, backup)
        self.files.remove(place.path)

    # -- backups ------------------------------------------------------------------------------

    def backups(self, place: Place) -> list[BackupRef]:
        """All backups of a group, the oldest first; unfinished ones too."""
        found = []
        for name in self.files.names(place.path):
            try:
                found.append(place.backup(parse_utc(name)))
            except PbsError:
                continue
        return found

    def backup_files(self, place: Place, backup: BackupRef) -> list[str]:
        names = self.files.names(place.backup_path(backup))
        return [name for name in names if name.endswith(_FILE_SUFFIXES)]

    def has_backup(self, place: Place, backup: BackupRef) -> bool:
        return self.files.facts(place.backup_path(backup)) is not None

    def check_backup(self, place: Place, backup: BackupRef) -> None:
        """Raise ApiError if the backup is absent."""
        if not self.has_backup(place, backup):
            raise ApiError(f"snapshot {self.name}:{place.backup_path(backup)} does not exist.")

    def is_finished(self, place: Place, backup: BackupRef) -> bool:
        """Whether it has a manifest."""
        return self.files.facts(f"{place.backup_path(backup)}/{MANIFEST_NAME}") is not None

    def is_protected(self, place: Place, backup: BackupRef) -> bool:
        return self.files.facts(f"{place.backup_path(backup)}/{_PROTECTED_NAME}") is not None

    def set_protected(self, place: Place, backup: BackupRef, *, is_protected: bool) -> None:
        path = f"{place.backup_path(backup)}/{_PROTECTED_NAME}"
        if is_protected:
            self.files.write(path, b"")
        else:
            self.files.remove(path)

    def read_file(self, place: Place, backup: BackupRef, name: str) -> bytes:
        """A file of a backup as it is stored. Raises: OSError."""
        return self.files.read(f"{place.backup_path(backup)}/{name}")

    def manifest(self, place: Place, backup: BackupRef) -> Manifest:
        """The manifest. Raises: OSError, PbsError."""
        return _decode_manifest(self.read_file(place, backup, MANIFEST_NAME))

    def change_unprotected(
        self, place: Place, backup: BackupRef, change: Callable[[Unprotected], Unprotected]
    ) -> None:
        """Write the manifest anew with another unprotected part. Raises: OSError, PbsError."""
        manifest = self.manifest(place, backup)
        manifest = replace(manifest, unprotected=change(manifest.unprotected))
        encoded = BlobEncoder().encode(encode_manifest(manifest))
        path = f"{place.backup_path(backup)}/{MANIFEST_NAME}"
        self.files.write(path, encoded.to_bytes())

    def mark_verified(self, place: Place, backup: BackupRef, verification: Verification) -> None:
        """Note how a verification ended. Raises: OSError, PbsError."""
        self.change_unprotected(
            place, backup, lambda part: replace(part, verification=verification)
        )

    def previous(self, place: Place) -> BackupRef | None:
        """The newest finished backup, the base of the next; none if it failed its verification."""
        finished = [each for each in self.backups(place) if self.is_finished(place, each)]
        if not finished:
            return None
        verification = self.manifest(place, finished[-1]).unprotected.verification
        if verification is not None and verification.state is VerifyState.FAILED:
            return None
        return finished[-1]

    def remove_backup(self, place: Place, backup: BackupRef) -> None:
        """Remove a backup; its chunks stay. Raises: ApiError if protected, in use or absent."""
        path = place.backup_path(backup)
        self.check_backup(place, backup)
        if self.is_protected(place, backup):
            raise ApiError("cannot remove protected snapshot")
        lock = self.locks.take_exclusive(path)
        if lock is None:
            raise ApiError(
                f'unable to acquire lock on snapshot directory "{self.root}/{path}" - '
                "possibly running or in use"
            )
        self.files.remove(path)
        lock.release()

    def add_client_log(self, place: Place, backup: BackupRef, encoded: bytes) -> None:
        """Keep the client's log, once. Raises: ApiError."""
        self.check_backup(place, backup)
        path = f"{place.backup_path(backup)}/{CLIENT_LOG_NAME}"
        if self.files.facts(path) is not None:
            raise ApiError("backup already contains a log.")
        try:
            DataBlob.parse(encoded).check_crc()
        except PbsError as error:
            raise ApiError(error.message) from error
        self.files.write(path, encoded)


# Every look at a backup reads it anew.
@lru_cache(maxsize=16)
def _decode_manifest(encoded: bytes) -> Manifest:
    return decode_manifest(BlobDecoder().decode(encoded))
