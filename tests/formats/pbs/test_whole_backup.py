"""One backup made and restored with nothing but the formats; a dictionary stands for the server."""

from __future__ import annotations

import random

import pytest

from vzdump_qemu.formats.pbs import (
    BackupRef,
    BlobDecoder,
    BlobEncoder,
    CryptMode,
    EncryptionKey,
    FixedGeometry,
    FixedIndex,
    FixedIndexBuilder,
    IndexStamp,
    Manifest,
    ManifestEntry,
    check_key,
    check_signature,
    chunk_digest,
    decode_manifest,
    disk_index_name,
    encode_fixed_index,
    encode_manifest,
    sign_manifest,
    zero_chunk_digest,
)

CHUNK = 1 << 16
CONFIG = b"name: web\nscsi0: local:vm-100-disk-0,size=1G\n"
INDEX_NAME = disk_index_name("drive-scsi0")
CONFIG_NAME = "qemu-server.conf.blob"
CHANCE = random.Random(7)
DISK = bytes(CHUNK) + CHANCE.randbytes(CHUNK) + b"text" * (CHUNK // 4) + CHANCE.randbytes(700)


def save(mode: CryptMode, key: EncryptionKey | None) -> dict[str, bytes]:
    """All files of a backup by name, chunks by their digest."""
    files: dict[str, bytes] = {}
    data_key = key if mode.is_encrypted else None
    encoder = BlobEncoder(key=data_key)
    geometry = FixedGeometry(size_bytes=len(DISK), chunk_bytes=CHUNK)
    builder = FixedIndexBuilder(geometry)
    for chunk_index in reversed(range(geometry.chunk_count)):
        begin = geometry.chunk_offset_bytes(chunk_index)
        content = memoryview(DISK)[begin : begin + geometry.chunk_length_bytes(chunk_index)]
        digest = chunk_digest(content, data_key)
        builder.set_digest(chunk_index, digest)
        files[digest.hex()] = encoder.encode(content, iv=CHANCE.randbytes(16)).to_bytes()
    index = builder.finish(IndexStamp(uuid=bytes(16), ctime_s=1700000000))
    files[INDEX_NAME] = encode_fixed_index(index)
    config = encoder.encode(CONFIG, iv=CHANCE.randbytes(16))
    files[CONFIG_NAME] = config.to_bytes()
    manifest = Manifest(
        backup=BackupRef.parse("vm/100/2023-11-14T22:13:20Z"),
        entries=(
            ManifestEntry(
                file_name=CONFIG_NAME,
                size_bytes=config.encoded_bytes,
                csum=config.csum(),
                crypt_mode=mode,
            ),
            ManifestEntry(
                file_name=INDEX_NAME,
                size_bytes=len(DISK),
                csum=index.index_csum(),
                crypt_mode=mode,
            ),
        ),
    )
    if key is not None:
        manifest = sign_manifest(manifest, key)
    files["index.json.blob"] = BlobEncoder().encode(encode_manifest(manifest)).to_bytes()
    return files


@pytest.mark.parametrize("mode", CryptMode)
def test_backup_made_is_restored_in_every_crypt_mode(mode: CryptMode) -> None:
    key = None if mode is CryptMode.NONE else EncryptionKey(bytes(range(32)))
    files = save(mode, key)
    manifest = decode_manifest(BlobDecoder().decode(files["index.json.blob"]))
    check_key(manifest, key)
    if key is not None:
        assert check_signature(manifest, key)
    index = FixedIndex.decode(files[INDEX_NAME])
    entry = manifest.entry(INDEX_NAME)
    index.check(index_csum=entry.csum, size_bytes=entry.size_bytes)
    zero_digest = zero_chunk_digest(key if mode.is_encrypted else None, chunk_bytes=CHUNK)
    assert index.digest(0) == zero_digest
    decoder = BlobDecoder(key=key)
    restored = b"".join(
        decoder.decode_chunk(
            files[digest.hex()],
            digest=digest,
            content_bytes=index.geometry.chunk_length_bytes(chunk_index),
            crypt_mode=entry.crypt_mode,
        )
        for chunk_index, digest in enumerate(index)
    )
    assert restored == DISK
    assert bytes(decoder.decode(files[CONFIG_NAME])) == CONFIG
    assert (b"local:vm" in files[CONFIG_NAME]) is not mode.is_encrypted
