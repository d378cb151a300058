"""Data blobs: the vectors of the format, every encoding and back, what is refused."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc
import zlib

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from vzdump_qemu.errors import PbsCorrupt, PbsError, PbsKeyError
from vzdump_qemu.formats.pbs import layout
from vzdump_qemu.formats.pbs.data_blob import BlobDecoder, BlobEncoder, BlobKind, DataBlob
from vzdump_qemu.formats.pbs.digest import chunk_digest
from vzdump_qemu.formats.pbs.encryption_key import CryptMode, EncryptionKey

KEY = EncryptionKey(bytes(range(32)))
IV = b"\1" * 16
PLAIN_HELLO = bytes.fromhex("42ab3807be8370a186a6103668656c6c6f")
SEALED_HELLO = bytes.fromhex(
    "7b6785be222d4cf0dd8f97b6" + "01" * 16 + "ea3095c5a50527072b5632e8f84b41852c1e0cdc0a"
)
TEXT = b"boot: order=scsi0\n" * 100


def packed(payload: bytes, magic: bytes = layout.COMPRESSED_MAGIC) -> bytes:
    return layout.PLAIN_STRUCT.pack(magic, zlib.crc32(payload)) + payload


def streamed_frame(content: bytes) -> bytes:
    """A frame that does not say how much it holds."""
    stream = zstandard.ZstdCompressor(level=1, write_content_size=False).compressobj()
    return stream.compress(content) + stream.flush()


@pytest.mark.parametrize(
    ("magic", "kind"),
    [
        (layout.PLAIN_MAGIC, "uncompressed"),
        (layout.COMPRESSED_MAGIC, "zstd compressed"),
        (layout.ENCRYPTED_MAGIC, "encrypted"),
        (layout.ENCRYPTED_COMPRESSED_MAGIC, "zstd compressed encrypted"),
    ],
)
def test_magic_is_hashed_from_its_sentence(magic: bytes, kind: str) -> None:
    sentence = f"Proxmox Backup {kind} blob v1.0"
    assert hashlib.sha256(sentence.encode()).digest()[:8] == magic


def test_encode_hello_gives_the_vectors() -> None:
    plain = BlobEncoder().encode(b"hello")
    assert plain.to_bytes() == PLAIN_HELLO
    assert plain.encoded_bytes == len(PLAIN_HELLO)
    expected = "9c5944aba3379b450612203cafb5bf60c2358103550b7f799d197f4668f169d5"
    assert plain.csum().hex() == expected
    assert BlobEncoder(key=KEY).encode(b"hello", iv=IV).to_bytes() == SEALED_HELLO
    assert bytes(BlobDecoder(key=KEY).decode(SEALED_HELLO)) == b"hello"


@settings(deadline=None, max_examples=60)
@given(
    st.binary(max_size=3000) | st.binary(max_size=30).map(lambda part: part * 200),
    st.booleans(),
    st.booleans(),
)
def test_blob_any_content_returns(content: bytes, is_encrypted: bool, compress: bool) -> None:
    key = KEY if is_encrypted else None
    made = BlobEncoder(key=key, compress=compress).encode(content, iv=IV)
    encoded = made.to_bytes()
    assert made.encoded_bytes == len(encoded)
    assert made.csum() == hashlib.sha256(encoded).digest()
    assert made.kind.is_encrypted is is_encrypted
    assert len(encoded) <= made.kind.header_bytes + len(content)
    assert bytes(BlobDecoder(key=key).decode(encoded, content_bytes_max=len(content))) == content


def test_encode_keeps_the_smaller_form() -> None:
    assert BlobEncoder().encode(TEXT).kind is BlobKind.COMPRESSED
    assert BlobEncoder(compress=False).encode(TEXT).kind is BlobKind.PLAIN
    assert BlobEncoder().encode(b"").kind is BlobKind.PLAIN
    assert BlobEncoder(key=KEY).encode(TEXT, iv=IV).kind is BlobKind.ENCRYPTED_COMPRESSED


def test_encode_plain_content_is_not_copied() -> None:
    content = bytearray(b"x" * 64)
    made = BlobEncoder(compress=False).encode(content)
    assert isinstance(made.payload, memoryview) and made.payload.obj is content


def test_encode_view_of_wider_items_counts_bytes() -> None:
    content = memoryview(bytes(range(80))).cast("Q")
    made = BlobEncoder(compress=False).encode(content)
    assert made.encoded_bytes == 12 + 80
    with pytest.raises(PbsError, match="too large"):
        BlobEncoder().encode(content, content_bytes_max=79)


def test_encode_wrong_vector_length_is_refused() -> None:
    with pytest.raises(PbsKeyError, match="0 bytes instead of 16"):
        BlobEncoder(key=KEY).encode(b"hello")


@pytest.mark.parametrize("encoded", [PLAIN_HELLO, SEALED_HELLO])
def test_parse_truncated_anywhere_is_refused_or_fails_the_sum(encoded: bytes) -> None:
    decoder = BlobDecoder(key=KEY)
    for length in range(len(encoded)):
        with pytest.raises((PbsCorrupt, PbsKeyError)):
            decoder.decode(encoded[:length])
    with pytest.raises(PbsCorrupt, match="wrong CRC checksum"):
        decoder.decode(encoded + b"\0")


def test_parse_says_what_is_wrong() -> None:
    with pytest.raises(PbsCorrupt, match=r"^blob too small \(11 bytes\)\.$"):
        DataBlob.parse(PLAIN_HELLO[:11])
    with pytest.raises(PbsCorrupt, match=r"^encrypted blob too small \(43 bytes\)\.$"):
        DataBlob.parse(SEALED_HELLO[:43])
    with pytest.raises(PbsCorrupt, match=r"^unable to parse raw blob - wrong magic$"):
        DataBlob.parse(b"x" * 12)
    with pytest.raises(PbsCorrupt, match="blob too large"):
        DataBlob.parse(PLAIN_HELLO, encoded_bytes_max=16)


def test_parse_returns_what_was_encoded() -> None:
    parsed = DataBlob.parse(SEALED_HELLO)
    assert (parsed.kind, parsed.iv, parsed.encoded_bytes) == (BlobKind.ENCRYPTED, IV, 49)
    assert parsed.to_bytes() == SEALED_HELLO


@pytest.mark.parametrize("place", [12, 27, 28, 43])
def test_decode_changed_vector_or_tag_is_refused(place: int) -> None:
    changed = bytearray(SEALED_HELLO)
    changed[place] ^= 1
    with pytest.raises(PbsKeyError, match="wrong key or changed"):
        BlobDecoder(key=KEY).decode(changed)


def test_decode_without_or_with_other_key_is_refused() -> None:
    with pytest.raises(PbsKeyError, match="missing key"):
        BlobDecoder().decode(SEALED_HELLO)
    with pytest.raises(PbsKeyError, match="wrong key"):
        BlobDecoder(key=EncryptionKey(bytes(32))).decode(SEALED_HELLO)
    assert bytes(BlobDecoder(key=KEY).decode(PLAIN_HELLO)) == b"hello"


def test_decode_frame_without_content_size_is_read_within_the_limit() -> None:
    encoded = packed(streamed_frame(TEXT))
    assert BlobDecoder().decode(encoded) == TEXT
    assert BlobDecoder().decode(encoded, content_bytes_max=len(TEXT)) == TEXT
    with pytest.raises(PbsCorrupt):
        BlobDecoder().decode(encoded, content_bytes_max=len(TEXT) - 1)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_decode_bomb_is_refused_without_its_memory(is_streamed: bool) -> None:
    content = bytes(64 << 20)
    frame = streamed_frame(content) if is_streamed else zstandard.compress(content, 1)
    encoded = packed(frame)
    del content
    tracemalloc.start()
    with pytest.raises(PbsCorrupt):
        BlobDecoder().decode(encoded, content_bytes_max=1 << 20)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 4 << 20


def test_decode_frame_claiming_too_much_is_refused() -> None:
    # Descriptor with eight bytes of content size, window of the smallest size, one empty block.
    frame = b"\x28\xb5\x2f\xfd\xc0\x00" + struct.pack("<Q", 1 << 62) + b"\1\0\0"
    with pytest.raises(PbsCorrupt, match="longer than"):
        BlobDecoder().decode(packed(frame))


def test_decode_huge_window_is_refused() -> None:
    frame = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(
            1, window_log=27, write_content_size=False
        )
    ).compressobj()
    encoded = packed(frame.compress(TEXT) + frame.flush())
    with pytest.raises(PbsCorrupt):
        BlobDecoder().decode(encoded)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"no frame at all",
        zstandard.compress(TEXT) + b"x",
        zstandard.compress(TEXT) * 2,
        zstandard.compress(TEXT)[:-1],
        streamed_frame(TEXT)[:-1],
        b"\x50\x2a\x4d\x18\x04\0\0\0skip",
        zstandard.compress(b"") + b"\0",
        zstandard.compress(b"")[:-1],
    ],
)
def test_decode_payload_that_is_no_single_frame_is_refused(payload: bytes) -> None:
    with pytest.raises(PbsCorrupt):
        BlobDecoder().decode(packed(payload))


def test_decode_empty_frame_is_empty() -> None:
    assert BlobDecoder().decode(packed(zstandard.compress(b""))) == b""
    assert BlobDecoder().decode(packed(streamed_frame(b""))) == b""


def test_decode_plain_over_the_limit_is_refused() -> None:
    with pytest.raises(PbsCorrupt, match="longer than 4 bytes"):
        BlobDecoder().decode(PLAIN_HELLO, content_bytes_max=4)


@pytest.mark.parametrize("mode", CryptMode)
def test_decode_chunk_right_one_returns(mode: CryptMode) -> None:
    key = KEY if mode.is_encrypted else None
    encoded = BlobEncoder(key=key).encode(TEXT, iv=IV).to_bytes()
    content = BlobDecoder(key=KEY).decode_chunk(
        encoded, digest=chunk_digest(TEXT, key), content_bytes=len(TEXT), crypt_mode=mode
    )
    assert content == TEXT


def test_decode_chunk_wrong_one_is_refused() -> None:
    decoder = BlobDecoder(key=KEY)
    encoded = BlobEncoder().encode(TEXT).to_bytes()
    digest = chunk_digest(TEXT)

    def decode(
        *,
        digest: bytes = digest,
        content_bytes: int = len(TEXT),
        crypt_mode: CryptMode = CryptMode.NONE,
    ) -> None:
        decoder.decode_chunk(
            encoded, digest=digest, content_bytes=content_bytes, crypt_mode=crypt_mode
        )

    decode()
    with pytest.raises(PbsCorrupt, match=r"Index and chunk CryptMode don't match\."):
        decode(crypt_mode=CryptMode.ENCRYPT)
    with pytest.raises(PbsCorrupt, match="detected chunk with wrong digest"):
        decode(digest=bytes(32))
    with pytest.raises(PbsCorrupt, match=r"detected chunk with wrong length \(1801 != 1800\)"):
        decode(content_bytes=len(TEXT) + 1)
    with pytest.raises(PbsCorrupt, match="longer than"):
        decode(content_bytes=len(TEXT) - 1)


def test_repr_shows_neither_payload_nor_key() -> None:
    assert "payload" not in repr(DataBlob.parse(PLAIN_HELLO))
    assert repr(BlobEncoder(key=KEY)).startswith("<")
