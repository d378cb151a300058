"""What the previous backup left at the server that the next one need not send again.

Owns fetching the previous manifest and indexes over the connection of the new backup (only so the
server knows their chunks too) and the proof of both: the signature, and sums and sizes that are
computed here. Whatever does not hold makes the backup a full one, with the reason in words, never
a failure. Source: PBS formats, sections 4, 8 and 9; failure modes, rows 75 and 76.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from vzdump_qemu.errors import PbsCorrupt, PbsError, PbsKeyError, PbsUnreachable
from vzdump_qemu.formats.pbs import (
    BackupGroup,
    BlobDecoder,
    CryptMode,
    FixedGeometry,
    FixedIndex,
    Manifest,
    check_signature,
    decode_manifest,
    layout,
)
from vzdump_qemu.formats.pbs.manifest import MANIFEST_BYTES_MAX
from vzdump_qemu.formats.pbs.names import MANIFEST_NAME
from vzdump_qemu.stores.pbs.backup_session import BackupSession
from vzdump_qemu.stores.pbs.key_loading import BackupKey

_OTHER_SIZE: Final = "the disk has another size than in the previous backup"
_DIGEST_TYPE: Final = np.dtype(f"S{layout.DIGEST_BYTES}")


class KnownChunks:
    """Digests of previous indexes, 32 bytes of memory each."""

    def __init__(self) -> None:
        self._sorted: npt.NDArray[np.bytes_] = np.empty(0, dtype=_DIGEST_TYPE)

    def add_index(self, index: FixedIndex) -> None:
        """Every chunk of this index is known from now on."""
        added = np.frombuffer(index.digests, dtype=_DIGEST_TYPE)
        self._sorted = np.unique(np.concatenate((self._sorted, added)))

    def __contains__(self, digest: bytes) -> bool:
        # The element type drops trailing zeroes on both sides alike; the length is the same.
        wanted = np.frombuffer(digest, dtype=_DIGEST_TYPE)
        place = int(np.searchsorted(self._sorted, wanted)[0])
        return place < len(self._sorted) and bool(self._sorted[place] == wanted[0])

    def __len__(self) -> int:
        return len(self._sorted)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousBackup:
    """The previous backup of the group as far as it is of use.

    Attributes:
        manifest: None if it is of no use.
        reason: why not, for the operator; empty if it is.
    """

    manifest: Manifest | None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousIndex:
    """The index of one disk in the previous backup.

    Attributes:
        index: proved to be the one of the manifest; None if it is of no use.
        reason: why not, for the operator; empty if it is.
    """

    index: FixedIndex | None = field(repr=False)
    reason: str = ""


async def fetch_previous(
    session: BackupSession, group: BackupGroup, key: BackupKey | None
) -> PreviousBackup:
    """Fetch and prove the previous manifest.

    Raises:
        PbsUnreachable: the connection ended.
    """
    try:
        encoded = await session.previous(
            MANIFEST_NAME, bytes_max=layout.ENCRYPTED_STRUCT.size + MANIFEST_BYTES_MAX
        )
        if encoded is None:
            return PreviousBackup(manifest=None, reason="there is no valid previous backup")
        content = BlobDecoder().decode(encoded, content_bytes_max=MANIFEST_BYTES_MAX)
        manifest = decode_manifest(content)
        if manifest.backup.backup_group != group:
            raise PbsCorrupt("manifest is one of another group")
        _check_same_key(manifest, key)
    except PbsUnreachable:
        raise
    except PbsError as error:
        return PreviousBackup(
            manifest=None, reason=f"the previous backup cannot be used: {error.message}"
        )
    return PreviousBackup(manifest=manifest)


async def fetch_previous_index(
    session: BackupSession,
    previous: PreviousBackup,
    index_name: str,
    crypt_mode: CryptMode,
    *,
    size_bytes: int,
) -> PreviousIndex:
    """Fetch the previous index of a disk and prove it against the manifest.

    Args:
        size_bytes: of the disk now. The index of a larger one is left aside: what it takes of
            memory is for us to bound, not for a manifest to say.
    Raises:
        PbsUnreachable: the connection ended.
    """
    manifest = previous.manifest
    if manifest is None:
        return PreviousIndex(index=None, reason=previous.reason)
    found = [entry for entry in manifest.entries if entry.file_name == index_name]
    if not found:
        return PreviousIndex(index=None, reason="the previous backup has not this disk")
    entry = found[0]
    if entry.crypt_mode.is_encrypted is not crypt_mode.is_encrypted:
        return PreviousIndex(index=None, reason="encryption was switched on or off")
    if entry.size_bytes > size_bytes:
        return PreviousIndex(index=None, reason=_OTHER_SIZE)
    try:
        geometry = FixedGeometry(size_bytes=entry.size_bytes)
        raw = await session.previous(index_name, bytes_max=geometry.index_bytes)
        if raw is None:
            raise PbsCorrupt("its index is missing")
        index = FixedIndex.decode(raw)
        index.check(index_csum=entry.csum, size_bytes=entry.size_bytes)
        if index.geometry != geometry:
            raise PbsCorrupt("its index has chunks of another size")
    except PbsUnreachable:
        raise
    except PbsError as error:
        return PreviousIndex(
            index=None, reason=f"the previous backup cannot be used: {error.message}"
        )
    return PreviousIndex(index=index)


def reuse_refusal(previous: PreviousIndex, *, size_bytes: int, base_csum: bytes) -> str:
    """Why unread parts of a disk cannot be taken from the previous backup; empty if they can.

    Args:
        base_csum: of the index that the set of changes was begun at.
    """
    index = previous.index
    if index is None:
        return previous.reason
    if index.geometry.size_bytes != size_bytes:
        return _OTHER_SIZE
    if index.index_csum() != base_csum:
        return "the previous backup is not the one that the set of changes begins at"
    return ""


def _check_same_key(manifest: Manifest, key: BackupKey | None) -> None:
    """What was signed with another key may name anything; and so may what lost its signature."""
    if key is None:
        if manifest.unprotected.key_fingerprint is not None:
            raise PbsKeyError("it was made with a key, and none is given now")
        return
    if not check_signature(manifest, key.key):
        raise PbsKeyError("it is not signed, and a key is given now")
