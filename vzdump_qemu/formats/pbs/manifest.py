"""The manifest `index.json.blob`: which files make up a backup, signed if there is a key.

Owns its values, their JSON, the signature and the checks of a file against its entry; the blob
around it is `data_blob`'s. Source: PBS formats, section 8.

The part ``unprotected`` is under no signature and written by anyone: a member that has not the
shape known here is carried along untouched, the fingerprint of the key excepted.
"""

from __future__ import annotations

import enum
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import msgspec

from vzdump_qemu.errors import PbsCorrupt, PbsError, PbsKeyError
from vzdump_qemu.formats.pbs.digest import parse_digest
from vzdump_qemu.formats.pbs.encryption_key import CryptMode, EncryptionKey
from vzdump_qemu.formats.pbs.fingerprint import Fingerprint
from vzdump_qemu.formats.pbs.json_text import (
    canonical_json,
    check_depth,
    decode_json,
    indented_json,
)
from vzdump_qemu.formats.pbs.layout import DIGEST_BYTES, Buffer
from vzdump_qemu.formats.pbs.names import (
    BackupGroup,
    BackupRef,
    file_kind,
    parse_backup_type,
)

# Ten times what 256 disks and long notes need.
MANIFEST_BYTES_MAX: Final = 1 << 20
FILE_COUNT_MAX: Final = 4096

_WHAT: Final = "manifest"
_KEY_FINGERPRINT: Final = "key-fingerprint"
_NOTES: Final = "notes"
_UPLOAD_STATS: Final = "chunk_upload_stats"
_VERIFY_STATE: Final = "verify_state"
_UINT64_MAX: Final = (1 << 64) - 1

_Shape = TypeVar("_Shape", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestEntry:
    """One file of the backup.

    Attributes:
        size_bytes: of an index the size of its content, of a blob its encoded length.
        csum: of an index its index checksum, of a blob SHA-256 of the encoded file; 32 bytes.

    Raises:
        PbsError: no such file name, size or sum.
    """

    file_name: str
    size_bytes: int
    csum: bytes
    crypt_mode: CryptMode = CryptMode.NONE

    def __post_init__(self) -> None:
        file_kind(self.file_name)
        if not 0 <= self.size_bytes <= _UINT64_MAX:
            raise PbsError(f"size of file '{self.file_name}' is out of range")
        if len(self.csum) != DIGEST_BYTES:
            raise PbsError(f"checksum of file '{self.file_name}' has {len(self.csum)} bytes")

    def check(self, *, size_bytes: int, csum: bytes) -> None:
        """Raise PbsCorrupt unless the file found is the one listed."""
        if self.size_bytes != size_bytes:
            raise PbsCorrupt(
                f"wrong size for file '{self.file_name}' ({self.size_bytes} != {size_bytes})"
            )
        if self.csum != csum:
            raise PbsCorrupt(f"wrong checksum for file '{self.file_name}'")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkUploadStats:
    """What the server counted while the backup was made."""

    count: int
    size_bytes: int
    compressed_bytes: int
    duplicate_count: int


class VerifyState(enum.Enum):
    """How the server's last verification of the backup ended."""

    OK = "ok"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The server's last verification; a backup that failed it is no base for the next."""

    state: VerifyState
    upid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unprotected:
    """The part of a manifest that is under no signature.

    Attributes:
        others_json: all other members, one canonical JSON object.
    """

    key_fingerprint: Fingerprint | None = None
    notes: str | None = None
    upload_stats: ChunkUploadStats | None = None
    verification: Verification | None = None
    others_json: str = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A whole manifest.

    Attributes:
        entries: in the order of the file, each file name once.
        signature: 32 bytes, None if the manifest is not signed.

    Raises:
        PbsError: two entries of one name, or too many.
    """

    backup: BackupRef
    entries: tuple[ManifestEntry, ...]
    unprotected: Unprotected = Unprotected()
    signature: bytes | None = None

    def __post_init__(self) -> None:
        if len(self.entries) > FILE_COUNT_MAX:
            raise PbsError(f"manifest has more than {FILE_COUNT_MAX} files")
        if len({entry.file_name for entry in self.entries}) != len(self.entries):
            raise PbsError("manifest has two files of one name")

    def entry(self, file_name: str) -> ManifestEntry:
        """The entry of a file.

        Raises:
            PbsCorrupt: there is none.
        """
        for entry in self.entries:
            if entry.file_name == file_name:
                return entry
        raise PbsCorrupt(f"manifest does not contain file '{file_name}'")


def sign_manifest(manifest: Manifest, key: EncryptionKey) -> Manifest:
    """The manifest with signature and the fingerprint of the key that made it."""
    return replace(
        manifest,
        signature=key.sign(_signed_json(manifest)),
        unprotected=replace(manifest.unprotected, key_fingerprint=key.fingerprint),
    )


def check_signature(manifest: Manifest, key: EncryptionKey) -> bool:
    """Whether the manifest is signed; if it is, the signature is right.

    A missing signature is no error, as old clients made none: it can also have been taken away.

    Raises:
        PbsKeyError: signed with another key.
        PbsCorrupt: the signature is wrong.
    """
    if manifest.signature is None:
        return False
    found = manifest.unprotected.key_fingerprint
    if found is not None and found != key.fingerprint:
        raise PbsKeyError(
            "wrong key - unable to verify signature since manifest's key "
            f"{found.short} does not match provided key {key.fingerprint.short}"
        )
    if not hmac.compare_digest(key.sign(_signed_json(manifest)), manifest.signature):
        raise PbsCorrupt("wrong signature in manifest")
    return True


def check_key(manifest: Manifest, key: EncryptionKey | None) -> None:
    """Raise PbsKeyError unless the key is the one that the manifest names, if it names one."""
    found = manifest.unprotected.key_fingerprint
    if found is None:
        return
    if key is None:
        raise PbsKeyError(f"missing key - manifest was created with key {found.short}")
    if key.fingerprint != found:
        raise PbsKeyError(
            f"wrong key - manifest's key {found.short} does not match provided key "
            f"{key.fingerprint.short}"
        )


def encode_manifest(manifest: Manifest) -> bytes:
    """The JSON text that goes into the blob.

    Raises:
        PbsCorrupt: the members kept from another manifest are no JSON object.
    """
    signature = manifest.signature
    value = _protected(manifest)
    value["signature"] = None if signature is None else signature.hex()
    value["unprotected"] = _unprotected_json(manifest.unprotected)
    return indented_json(value)


def decode_manifest(text: Buffer, *, bytes_max: int = MANIFEST_BYTES_MAX) -> Manifest:
    """Read the content of the blob. The signature is left to `check_signature`.

    Raises:
        PbsCorrupt: no manifest, or one over the limits.
    """
    parsed = decode_json(text, _ManifestJson, bytes_max=bytes_max, what=_WHAT)
    check_depth(parsed.unprotected, what=_WHAT)
    try:
        return Manifest(
            backup=BackupRef(
                backup_group=BackupGroup(
                    backup_type=parse_backup_type(parsed.backup_type), backup_id=parsed.backup_id
                ),
                backup_time_s=parsed.backup_time,
            ),
            entries=tuple(_entry(entry) for entry in parsed.files),
            unprotected=_unprotected(parsed.unprotected or {}),
            signature=None if parsed.signature is None else parse_digest(parsed.signature),
        )
    except PbsCorrupt:
        raise
    except PbsError as error:
        raise PbsCorrupt(f"unable to parse {_WHAT}: {error.message}") from error


class _FileJson(msgspec.Struct, rename="kebab"):
    filename: str
    size: int
    csum: str
    crypt_mode: str = CryptMode.NONE.value


class _ManifestJson(msgspec.Struct, rename="kebab"):
    backup_type: str
    backup_id: str
    backup_time: int
    files: list[_FileJson]
    signature: str | None = None
    unprotected: dict[str, Any] | None = None


class _StatsJson(msgspec.Struct, forbid_unknown_fields=True):
    count: int
    size: int
    compressed_size: int
    duplicates: int


class _VerifyJson(msgspec.Struct, forbid_unknown_fields=True):
    state: VerifyState
    upid: str


def _entry(parsed: _FileJson) -> ManifestEntry:
    try:
        crypt_mode = CryptMode(parsed.crypt_mode)
    except ValueError as error:
        raise PbsError(f"unknown crypt mode {parsed.crypt_mode[:40]!a}") from error
    return ManifestEntry(
        file_name=parsed.filename,
        size_bytes=parsed.size,
        csum=parse_digest(parsed.csum),
        crypt_mode=crypt_mode,
    )


def _unprotected(parsed: Mapping[str, Any]) -> Unprotected:
    others = dict(parsed)
    fingerprint = others.pop(_KEY_FINGERPRINT, None)
    if fingerprint is not None and not isinstance(fingerprint, str):
        raise PbsError("key fingerprint is no text")
    notes = others.get(_NOTES)
    stats = _shaped(others.get(_UPLOAD_STATS), _StatsJson)
    verification = _shaped(others.get(_VERIFY_STATE), _VerifyJson)
    if isinstance(notes, str):
        del others[_NOTES]
    if stats is not None:
        del others[_UPLOAD_STATS]
    if verification is not None:
        del others[_VERIFY_STATE]
    return Unprotected(
        key_fingerprint=None if fingerprint is None else Fingerprint.parse(fingerprint),
        notes=notes if isinstance(notes, str) else None,
        upload_stats=None
        if stats is None
        else ChunkUploadStats(
            count=stats.count,
            size_bytes=stats.size,
            compressed_bytes=stats.compressed_size,
            duplicate_count=stats.duplicates,
        ),
        verification=None
        if verification is None
        else Verification(state=verification.state, upid=verification.upid),
        others_json=canonical_json(others).decode(),
    )


def _shaped(value: object, shape: type[_Shape]) -> _Shape | None:
    try:
        return msgspec.convert(value, type=shape)
    except msgspec.ValidationError:
        return None


def _protected(manifest: Manifest) -> dict[str, Any]:
    group = manifest.backup.backup_group
    return {
        "backup-id": group.backup_id,
        "backup-time": manifest.backup.backup_time_s,
        "backup-type": group.backup_type.value,
        "files": [
            {
                "crypt-mode": entry.crypt_mode.value,
                "csum": entry.csum.hex(),
                "filename": entry.file_name,
                "size": entry.size_bytes,
            }
            for entry in manifest.entries
        ],
    }


def _signed_json(manifest: Manifest) -> bytes:
    return canonical_json(_protected(manifest))


def _unprotected_json(part: Unprotected) -> dict[str, Any]:
    text = part.others_json.encode()
    members = decode_json(text, dict[str, Any], bytes_max=MANIFEST_BYTES_MAX, what=_WHAT)
    if part.key_fingerprint is not None:
        members[_KEY_FINGERPRINT] = str(part.key_fingerprint)
    if part.notes is not None:
        members[_NOTES] = part.notes
    if part.upload_stats is not None:
        members[_UPLOAD_STATS] = {
            "count": part.upload_stats.count,
            "size": part.upload_stats.size_bytes,
            "compressed_size": part.upload_stats.compressed_bytes,
            "duplicates": part.upload_stats.duplicate_count,
        }
    if part.verification is not None:
        members[_VERIFY_STATE] = {
            "state": part.verification.state.value,
            "upid": part.verification.upid,
        }
    return members
