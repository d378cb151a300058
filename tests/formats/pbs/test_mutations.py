"""Ten thousand damaged files of each kind: every one ends in a value or in a typed error.

Each example takes a good file, changes it at up to eight places and, where the format has a sum,
mostly puts the sum right again, so that the damage gets past the first check. What is still
accepted must be encodable and read the same again. ``make test`` tries a few hundred of each; all
ten thousand of each, five to ten minutes::

    MUTATION_COUNT=10000 .venv/bin/python -m pytest -n 2 tests/formats/pbs/test_mutations.py
"""

from __future__ import annotations

import os
import resource
import zlib
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vzdump_qemu.errors import PbsCorrupt, PbsError, PbsKeyError
from vzdump_qemu.formats.pbs import (
    BackupRef,
    BlobDecoder,
    BlobEncoder,
    CryptMode,
    DataBlob,
    DynamicEntry,
    DynamicIndex,
    EncryptionKey,
    FixedGeometry,
    FixedIndex,
    FixedIndexBuilder,
    IndexStamp,
    Manifest,
    ManifestEntry,
    Pbkdf2Kdf,
    ScryptKdf,
    Unprotected,
    bare_key_file,
    build_dynamic_index,
    check_signature,
    chunk_digest,
    decode_key_file,
    decode_manifest,
    encode_dynamic_index,
    encode_fixed_index,
    encode_key_file,
    encode_manifest,
    protect_key_file,
    sign_manifest,
    unlock_key_file,
)

MUTATION_COUNT = int(os.environ.get("MUTATION_COUNT", "250"))
CONTENT_BYTES_MAX = 1 << 20
# No file here is longer than a few kilobytes; what a blob claims to hold may be as long as this.
# The rest is what Hypothesis remembers of all examples.
GROWTH_KIB_MAX = 640 << 10
KEY = EncryptionKey(bytes(range(32)))
STAMP = IndexStamp(uuid=bytes(range(16)), ctime_s=1700000000)
TEXT = b"scsi0: local:vm-100-disk-0,size=32G\n" * 40

# What fields are likely to be tested with: edges of integers, magic numbers, structure of JSON.
TOKENS = [
    b"\0" * 8, b"\xff" * 8, b"\0\0\0\0\0\0\0\x80", b"\x28\xb5\x2f\xfd", b"\0\0\x40\0",
    b"{", b"}", b"[", b"]", b'"', b"\\u", b":", b",", b"null", b"-1", b"1e400", b"9" * 30,
    b"[" * 300, b'{"a":' * 300, b'"csum"', b"\xed\xa0\x80", b"\\ud800", b"NaN", b"true",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def memory_bound() -> Iterator[None]:
    """However many examples, and whatever they claim to hold: memory stays what it was."""
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    assert grown_kib < GROWTH_KIB_MAX


Edit = tuple[int, int, bytes]
EDITS = st.lists(
    st.tuples(
        st.integers(0, 1 << 16),
        st.sampled_from([0, 0, 0, 1, 2, 8, 40, 4000]),
        st.binary(min_size=1, max_size=3) | st.sampled_from(TOKENS) | st.just(b""),
    ),
    min_size=1,
    max_size=8,
)
many = settings(
    max_examples=MUTATION_COUNT,
    deadline=timedelta(seconds=10),
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)


def edited(good: bytes, edits: list[Edit], *, is_overwriting: bool) -> bytes:
    """Put each text at its place, over what is there or between, and cut out what it says."""
    data = bytearray(good)
    for place, cut_bytes, text in edits:
        at = place % (len(data) + 1)
        data[at : at + (cut_bytes or (len(text) if is_overwriting else 0))] = text
    return bytes(data)


def resummed(encoded: bytes) -> bytes:
    """The blob with the cyclic sum that its payload has now."""
    header_bytes = 44 if encoded[:8] == SEALED[:8] else 12
    if len(encoded) < header_bytes:
        return encoded
    crc = zlib.crc32(encoded[header_bytes:]).to_bytes(4, "little")
    return encoded[:8] + crc + encoded[12:]


PLAIN = BlobEncoder(compress=False).encode(TEXT).to_bytes()
COMPRESSED = BlobEncoder().encode(TEXT).to_bytes()
SEALED = BlobEncoder(key=KEY).encode(TEXT, iv=bytes(16)).to_bytes()
FRAME = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(TEXT)
BLOBS = [PLAIN, COMPRESSED, SEALED, resummed(COMPRESSED[:12] + FRAME)]


@many
@given(st.sampled_from(BLOBS), EDITS, st.booleans(), st.integers(0, 3))
def test_blob_damaged_is_read_or_refused(
    good: bytes, edits: list[Edit], is_overwriting: bool, seldom: int
) -> None:
    damaged = edited(good, edits, is_overwriting=is_overwriting)
    if seldom:
        damaged = resummed(damaged)
    decoder = BlobDecoder(key=KEY)
    try:
        content = decoder.decode(damaged, content_bytes_max=CONTENT_BYTES_MAX)
    except (PbsCorrupt, PbsKeyError):
        return
    assert len(content) <= CONTENT_BYTES_MAX
    assert DataBlob.parse(damaged).to_bytes() == damaged


@many
@given(st.sampled_from(BLOBS), EDITS, st.booleans(), st.sampled_from(CryptMode))
def test_chunk_damaged_is_never_taken_for_the_right_one(
    good: bytes, edits: list[Edit], is_overwriting: bool, mode: CryptMode
) -> None:
    damaged = resummed(edited(good, edits, is_overwriting=is_overwriting))
    digest = chunk_digest(TEXT, KEY if mode.is_encrypted else None)
    try:
        content = BlobDecoder(key=KEY).decode_chunk(
            damaged, digest=digest, content_bytes=len(TEXT), crypt_mode=mode
        )
    except (PbsCorrupt, PbsKeyError):
        return
    assert content == TEXT


def _fixed() -> bytes:
    builder = FixedIndexBuilder(FixedGeometry(size_bytes=5 * 65536 - 512, chunk_bytes=65536))
    for chunk_index in range(5):
        builder.set_digest(chunk_index, bytes([chunk_index]) * 32)
    return encode_fixed_index(builder.finish(STAMP))


def _dynamic() -> bytes:
    entries = [DynamicEntry(end_bytes=100 * end, digest=bytes(32)) for end in range(1, 9)]
    return encode_dynamic_index(build_dynamic_index(entries, STAMP))


FIXED, DYNAMIC = _fixed(), _dynamic()
# Most of an index file is a zero header: places are drawn from where something is.
INDEX_PLACES = st.integers(0, 79) | st.integers(4096, 4096 + 320)
INDEX_EDITS = st.lists(
    st.tuples(INDEX_PLACES, st.sampled_from([0, 0, 0, 0, 1, 32]), st.binary(max_size=8)),
    min_size=1,
    max_size=8,
)


@many
@given(INDEX_EDITS, st.booleans())
def test_fixed_index_damaged_is_read_or_refused(edits: list[Edit], is_overwriting: bool) -> None:
    damaged = edited(FIXED, edits, is_overwriting=is_overwriting)
    try:
        index = FixedIndex.decode(damaged)
    except PbsCorrupt:
        return
    geometry = index.geometry
    assert len(list(index)) == geometry.chunk_count == (len(damaged) - 4096) // 32
    lengths = [geometry.chunk_length_bytes(i) for i in range(geometry.chunk_count)]
    assert sum(lengths) == geometry.size_bytes and min(lengths) > 0
    assert FixedIndex.decode(encode_fixed_index(index)) == index


@many
@given(INDEX_EDITS, st.booleans())
def test_dynamic_index_damaged_is_read_or_refused(edits: list[Edit], is_overwriting: bool) -> None:
    damaged = edited(DYNAMIC, edits, is_overwriting=is_overwriting)
    try:
        index = DynamicIndex.decode(damaged)
    except PbsCorrupt:
        return
    assert index.chunk_index_at(index.size_bytes - 1) == index.chunk_count - 1
    assert DynamicIndex.decode(encode_dynamic_index(index)) == index


MANIFEST = encode_manifest(
    sign_manifest(
        Manifest(
            backup=BackupRef.parse("vm/100/2023-11-14T22:13:20Z"),
            entries=(
                ManifestEntry(file_name="drive-scsi0.img.fidx", size_bytes=1, csum=bytes(32)),
                ManifestEntry(
                    file_name="qemu-server.conf.blob",
                    size_bytes=77,
                    csum=b"\1" * 32,
                    crypt_mode=CryptMode.ENCRYPT,
                ),
            ),
            unprotected=Unprotected(notes="täglich", others_json='{"sync":[1,2.5,null]}'),
        ),
        KEY,
    )
)


@many
@given(EDITS, st.booleans())
def test_manifest_damaged_is_read_or_refused(edits: list[Edit], is_overwriting: bool) -> None:
    damaged = edited(MANIFEST, edits, is_overwriting=is_overwriting)
    try:
        manifest = decode_manifest(damaged)
    except PbsCorrupt:
        return
    assert decode_manifest(encode_manifest(manifest)) == manifest
    try:
        is_signed = check_signature(manifest, KEY)
    except (PbsCorrupt, PbsKeyError):
        return
    protected = (manifest.backup, manifest.entries)
    good = decode_manifest(MANIFEST)
    assert not is_signed or protected == (good.backup, good.entries)


BARE = bare_key_file(KEY, created_s=1700000000, modified_s=1700000000)
KEY_FILES = [
    encode_key_file(BARE),
    encode_key_file(
        protect_key_file(BARE, b"12345", ScryptKdf(salt=b"s", n=4, r=1), iv=bytes(16), hint="é")
    ),
    encode_key_file(
        protect_key_file(BARE, b"12345", Pbkdf2Kdf(salt=b"s", round_count=3), iv=bytes(16))
    ),
]


@many
@given(st.sampled_from(KEY_FILES), EDITS, st.booleans())
def test_key_file_damaged_is_read_or_refused(
    good: bytes, edits: list[Edit], is_overwriting: bool
) -> None:
    damaged = edited(good, edits, is_overwriting=is_overwriting)
    try:
        key_file = decode_key_file(damaged)
    except PbsKeyError:
        return
    assert decode_key_file(encode_key_file(key_file)) == key_file
    try:
        key = unlock_key_file(key_file, b"12345")
    except PbsKeyError:
        return
    assert key.fingerprint == (key_file.fingerprint or key.fingerprint)


@many
@given(st.binary(max_size=6000))
def test_any_bytes_are_read_or_refused_by_every_reader(data: bytes) -> None:
    readers: list[Callable[[bytes], object]] = [
        BlobDecoder(key=KEY).decode, FixedIndex.decode, DynamicIndex.decode,
        decode_manifest, decode_key_file,
    ]  # fmt: skip
    refused_count = 0
    for read in readers:
        try:
            read(data)
        except PbsError:
            refused_count += 1
    assert refused_count >= len(readers) - 1
