"""Upkeep of a datastore: verification of backups, and garbage collection.

Owns what makes a backup bad and which chunks nobody needs. Source: PBS formats, section 10.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from typing import Final

from vzdump_qemu.errors import PbsError
from vzdump_qemu.formats.pbs.data_blob import BlobDecoder, DataBlob
from vzdump_qemu.formats.pbs.digest import chunk_digest
from vzdump_qemu.formats.pbs.dynamic_index import DynamicIndex
from vzdump_qemu.formats.pbs.fixed_index import FixedIndex
from vzdump_qemu.formats.pbs.manifest import ManifestEntry, Verification, VerifyState
from vzdump_qemu.formats.pbs.names import BackupRef, FileKind, file_kind
from vzsim.fakepbs.backup_session import chunks_of_index
from vzsim.fakepbs.chunk_store import Collected
from vzsim.fakepbs.datastore import Datastore, Place
from vzsim.fakepbs.requests import ApiError

# Older than any access time that a file system has not written down yet, and some minutes.
_UNUSED_S: Final = 24 * 3600 + 5 * 60


def verify_backup(datastore: Datastore, place: Place, backup: BackupRef) -> list[str]:
    """Check every file and chunk of a backup and note the result; returns what is wrong.

    Bad chunks are set aside, so that the next upload can replace them. Every chunk of the backup
    is read once.
    """
    path = place.backup_path(backup)
    lock = datastore.locks.take_shared(path)
    if lock is None:
        return [f"{datastore.name}:{path}: could not acquire snapshot lock"]
    try:
        return verify_locked(datastore, place, backup)
    finally:
        lock.release()


def verify_locked(datastore: Datastore, place: Place, backup: BackupRef) -> list[str]:
    """As `verify_backup`, by somebody who holds a lock of the backup already."""
    shown = f"{datastore.name}:{place.backup_path(backup)}"
    try:
        manifest = datastore.manifest(place, backup)
    except (OSError, PbsError) as error:
        return [f"{shown}: manifest load error: {error}"]
    checked: set[bytes] = set()
    wrong = []
    for entry in manifest.entries:
        try:
            raw = datastore.read_file(place, backup, entry.file_name)
            if file_kind(entry.file_name) is FileKind.DATA_BLOB:
                _verify_data_blob(entry, raw)
            else:
                wrong += _verify_index(datastore, entry, raw, checked)
        except (OSError, PbsError) as error:
            wrong.append(f"{shown}/{entry.file_name}: {error}")
    state = VerifyState.FAILED if wrong else VerifyState.OK
    upid = make_upid("verify_snapshot", int(datastore.now_s()))
    datastore.mark_verified(place, backup, Verification(state=state, upid=upid))
    return wrong


def collect_garbage(
    datastore: Datastore, open_indexes: Iterable[Collection[bytes]], oldest_writer_s: float | None
) -> Collected:
    """Remove chunks that no index names and nobody has used for a day.

    Args:
        open_indexes: what indexes in the making name.
        oldest_writer_s: when the oldest backup that is still running began.
    """
    begun_s = datastore.now_s()
    named: set[bytes] = set().union(*open_indexes)
    for namespace in datastore.namespaces():
        for place in datastore.places(namespace):
            for backup in datastore.backups(place):
                for name in datastore.backup_files(place, backup):
                    raw = datastore.read_file(place, backup, name)
                    named.update(chunks_of_index(name, raw))
    for digest in named:
        datastore.chunks.touch(digest)
    oldest_s = begun_s if oldest_writer_s is None else min(begun_s, oldest_writer_s)
    return datastore.chunks.collect(
        used_before_s=min(oldest_s, begun_s - _UNUSED_S), marked_since_s=begun_s
    )


def make_upid(kind: str, time_s: int) -> str:
    """Name of a task that a server has carried out."""
    return f"UPID:fake-pbs:00000001:00000001:00000001:{time_s:08X}:{kind}::root@pam:"


def _verify_data_blob(entry: ManifestEntry, raw: bytes) -> None:
    entry.check(size_bytes=len(raw), csum=hashlib.sha256(raw).digest())
    parsed = DataBlob.parse(raw)
    parsed.check_crc()
    if not parsed.kind.is_encrypted:
        BlobDecoder().decode(parsed)


def _verify_index(
    datastore: Datastore, entry: ManifestEntry, raw: bytes, checked: set[bytes]
) -> list[str]:
    is_fixed = file_kind(entry.file_name) is FileKind.FIXED_INDEX
    index = FixedIndex.decode(raw) if is_fixed else DynamicIndex.decode(raw)
    index.check(index_csum=entry.csum, size_bytes=entry.size_bytes)
    wrong = []
    for digest, content_bytes in chunks_of_index(entry.file_name, raw).items():
        if digest in checked:
            continue
        checked.add(digest)
        try:
            _verify_chunk(datastore, entry, digest, content_bytes)
        except (ApiError, PbsError) as error:
            wrong.append(f"{entry.file_name}: chunk {digest.hex()}: {error}")
            datastore.chunks.set_aside(digest)
    return wrong


def _verify_chunk(
    datastore: Datastore, entry: ManifestEntry, digest: bytes, content_bytes: int
) -> None:
    parsed = DataBlob.parse(datastore.chunks.read(digest))
    parsed.check_crc()
    if parsed.kind.is_encrypted is not entry.crypt_mode.is_encrypted:
        raise ApiError("Index and chunk CryptMode don't match.")
    if parsed.kind.is_encrypted:
        return
    content = BlobDecoder().decode(parsed, content_bytes_max=content_bytes)
    if len(content) != content_bytes:
        raise ApiError(f"detected chunk with wrong length ({content_bytes} != {len(content)})")
    if chunk_digest(content) != digest:
        raise ApiError("detected chunk with wrong digest.")
