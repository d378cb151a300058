"""Formats of the Proxmox Backup Server: a codec without I/O, clock or chance.

Names and repositories, data blobs, indexes, the manifest, keys. Initialisation vectors, salts,
ids and times are arguments. Everything that is read has a bound. Source: PBS formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vzdump_qemu.formats.pbs import layout
from vzdump_qemu.formats.pbs.fingerprint import Fingerprint
from vzdump_qemu.formats.pbs.names import (
    BackupGroup,
    BackupRef,
    BackupType,
    FileKind,
    Namespace,
    disk_index_name,
    disk_of_index,
    file_kind,
)
from vzdump_qemu.formats.pbs.repository import AuthId, Repository

if TYPE_CHECKING:
    from vzdump_qemu.formats.pbs.data_blob import BlobDecoder, BlobEncoder, BlobKind, DataBlob
    from vzdump_qemu.formats.pbs.digest import chunk_digest, parse_digest, zero_chunk_digest
    from vzdump_qemu.formats.pbs.dynamic_index import (
        DynamicEntry,
        DynamicIndex,
        build_dynamic_index,
        encode_dynamic_index,
    )
    from vzdump_qemu.formats.pbs.encryption_key import CryptMode, EncryptionKey
    from vzdump_qemu.formats.pbs.fixed_index import (
        FixedGeometry,
        FixedIndex,
        FixedIndexBuilder,
        encode_fixed_index,
    )
    from vzdump_qemu.formats.pbs.index_header import IndexStamp
    from vzdump_qemu.formats.pbs.key_file import (
        KeyFile,
        Pbkdf2Kdf,
        ScryptKdf,
        bare_key_file,
        decode_key_file,
        encode_key_file,
        protect_key_file,
        unlock_key_file,
    )
    from vzdump_qemu.formats.pbs.manifest import (
        ChunkUploadStats,
        Manifest,
        ManifestEntry,
        Unprotected,
        Verification,
        VerifyState,
        check_key,
        check_signature,
        decode_manifest,
        encode_manifest,
        sign_manifest,
    )
    from vzdump_qemu.formats.pbs.master_key import unwrap_key, wrap_key

# What a run to a file never needs takes longer to load than reaching a VM.
_HEAVY: Mapping[str, str] = MappingProxyType(
    {
        "BlobDecoder": "data_blob",
        "BlobEncoder": "data_blob",
        "BlobKind": "data_blob",
        "ChunkUploadStats": "manifest",
        "CryptMode": "encryption_key",
        "DataBlob": "data_blob",
        "DynamicEntry": "dynamic_index",
        "DynamicIndex": "dynamic_index",
        "EncryptionKey": "encryption_key",
        "FixedGeometry": "fixed_index",
        "FixedIndex": "fixed_index",
        "FixedIndexBuilder": "fixed_index",
        "IndexStamp": "index_header",
        "KeyFile": "key_file",
        "Manifest": "manifest",
        "ManifestEntry": "manifest",
        "Pbkdf2Kdf": "key_file",
        "ScryptKdf": "key_file",
        "Unprotected": "manifest",
        "Verification": "manifest",
        "VerifyState": "manifest",
        "bare_key_file": "key_file",
        "build_dynamic_index": "dynamic_index",
        "check_key": "manifest",
        "check_signature": "manifest",
        "chunk_digest": "digest",
        "decode_key_file": "key_file",
        "decode_manifest": "manifest",
        "encode_dynamic_index": "dynamic_index",
        "encode_fixed_index": "fixed_index",
        "encode_key_file": "key_file",
        "encode_manifest": "manifest",
        "parse_digest": "digest",
        "protect_key_file": "key_file",
        "sign_manifest": "manifest",
        "unlock_key_file": "key_file",
        "unwrap_key": "master_key",
        "wrap_key": "master_key",
        "zero_chunk_digest": "digest",
    }
)


def __getattr__(name: str) -> Any:
    if name not in _HEAVY:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HEAVY[name]}"), name)


__all__ = [
    "AuthId",
    "BackupGroup",
    "BackupRef",
    "BackupType",
    "BlobDecoder",
    "BlobEncoder",
    "BlobKind",
    "ChunkUploadStats",
    "CryptMode",
    "DataBlob",
    "DynamicEntry",
    "DynamicIndex",
    "EncryptionKey",
    "FileKind",
    "Fingerprint",
    "FixedGeometry",
    "FixedIndex",
    "FixedIndexBuilder",
    "IndexStamp",
    "KeyFile",
    "Manifest",
    "ManifestEntry",
    "Namespace",
    "Pbkdf2Kdf",
    "Repository",
    "ScryptKdf",
    "Unprotected",
    "Verification",
    "VerifyState",
    "bare_key_file",
    "build_dynamic_index",
    "check_key",
    "check_signature",
    "chunk_digest",
    "decode_key_file",
    "decode_manifest",
    "disk_index_name",
    "disk_of_index",
    "encode_dynamic_index",
    "encode_fixed_index",
    "encode_key_file",
    "encode_manifest",
    "file_kind",
    "layout",
    "parse_digest",
    "protect_key_file",
    "sign_manifest",
    "unlock_key_file",
    "unwrap_key",
    "wrap_key",
    "zero_chunk_digest",
]
