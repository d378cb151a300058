"""Keys and digests: the vectors of the format, and silence about the key."""

from __future__ import annotations

import hashlib

import pytest

from vzdump_qemu.errors import PbsError, PbsKeyError
from vzdump_qemu.formats.pbs.digest import chunk_digest, parse_digest, zero_chunk_digest
from vzdump_qemu.formats.pbs.encryption_key import EncryptionKey

RAW = bytes(range(32))
KEY = EncryptionKey(RAW)


def test_digest_gives_the_vectors() -> None:
    assert (
        zero_chunk_digest().hex()
        == "bb9f8df61474d25e71fa00722318cd387396ca1736605e1248821cc0de3d3af8"
    )
    assert (
        zero_chunk_digest(KEY).hex()
        == "348571e12bbbedb529def1f1394316e338a01945d871df9ef792617ceb13d636"
    )
    assert (
        chunk_digest(b"hello", KEY).hex()
        == "e34178a27b992c4a218599bf7f43ed50bc464a03d624d9092306fe2ed74d557e"
    )
    assert chunk_digest(memoryview(b"hello")) == hashlib.sha256(b"hello").digest()
    assert zero_chunk_digest(chunk_bytes=65536) == hashlib.sha256(bytes(65536)).digest()


def test_digest_of_key_ends_in_the_derived_secret() -> None:
    id_key = bytes.fromhex("7c2c013efd07f3b25717a485263343cd4d292a4b65c200bb3b18ea227abe225c")
    assert chunk_digest(b"hello", KEY) == hashlib.sha256(b"hello" + id_key).digest()


def test_fingerprint_gives_the_vector() -> None:
    expected = (
        "0e:ab:d4:46:0b:6e:b9:ca:34:50:23:de:e2:b7:78:c7:"
        "90:e5:4a:16:83:b9:65:9c:0a:57:ae:19:90:90:15:9b"
    )
    assert str(KEY.fingerprint) == expected
    assert KEY.fingerprint.short == "0e:ab:d4:46:0b:6e:b9:ca"


def test_key_text_never_shows_the_key() -> None:
    for text in (repr(KEY), str(KEY), f"{KEY}", repr([KEY]), repr({"key": KEY})):
        assert "0e:ab:d4:46" in text
        assert RAW.hex()[:16] not in text and "\\x01" not in text
    assert not hasattr(KEY, "__dict__")


def test_key_equality_is_of_the_key() -> None:
    assert EncryptionKey(RAW) == KEY and hash(KEY) == hash(EncryptionKey(RAW))
    assert EncryptionKey(bytes(32)) != KEY and KEY != RAW


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_key_wrong_length_is_refused(length: int) -> None:
    with pytest.raises(PbsKeyError, match=f"{length} bytes instead of 32"):
        EncryptionKey(bytes(length))


def test_seal_and_open_return_any_view() -> None:
    tag, ciphertext = KEY.seal(memoryview(b"content"), bytes(16))
    assert KEY.open(memoryview(ciphertext), iv=bytes(16), tag=tag) == b"content"


@pytest.mark.parametrize("text", ["", "AB" * 32, "ab" * 31, "ab" * 33, "ab" * 32 + "\n", "é" * 64])
def test_parse_digest_other_text_is_refused(text: str) -> None:
    with pytest.raises(PbsError, match="not a digest"):
        parse_digest(text)


def test_parse_digest_lower_case_is_read() -> None:
    assert parse_digest("ab" * 32) == b"\xab" * 32
