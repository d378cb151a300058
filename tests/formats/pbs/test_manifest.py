"""The manifest: its text, its signature against the vector, and what readers must refuse."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vzdump_qemu.errors import PbsCorrupt, PbsError, PbsKeyError
from vzdump_qemu.formats.pbs.encryption_key import CryptMode, EncryptionKey
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
from vzdump_qemu.formats.pbs.names import BackupRef

KEY = EncryptionKey(hashlib.scrypt(b"test", salt=b"", n=65536, r=8, p=1, maxmem=1 << 27, dklen=32))
OTHER_KEY = EncryptionKey(bytes(range(32)))
TEXT = """{
  "backup-id": "100",
  "backup-time": 1700000000,
  "backup-type": "vm",
  "files": [
    {
      "crypt-mode": "none",
      "csum": "d257e9cf61689977342b3f81e5352b17af9a2d10f342842634f7861d6e5d8634",
      "filename": "drive-scsi0.img.fidx",
      "size": 4194816
    }
  ],
  "signature": null,
  "unprotected": {}
}"""
VECTOR = Manifest(
    backup=BackupRef.parse("host/elsa/2020-06-26T13:56:05Z"),
    entries=(
        ManifestEntry(
            file_name="test1.img.fidx",
            size_bytes=200,
            csum=b"\1" * 32,
            crypt_mode=CryptMode.ENCRYPT,
        ),
        ManifestEntry(file_name="abc.blob", size_bytes=200, csum=b"\2" * 32),
    ),
)
FULL = Unprotected(
    key_fingerprint=OTHER_KEY.fingerprint,
    notes="Täglich\nvor dem Umbau",
    upload_stats=ChunkUploadStats(
        count=3, size_bytes=12582912, compressed_bytes=4711, duplicate_count=1
    ),
    verification=Verification(state=VerifyState.FAILED, upid="UPID:pbs:0001"),
    others_json='{"sync":{"from":null}}',
)


def changed(**members: object) -> str:
    value = json.loads(TEXT)
    value.update({name.replace("_", "-"): member for name, member in members.items()})
    return json.dumps(value)


def test_manifest_of_the_format_is_read_and_written_to_the_byte() -> None:
    manifest = decode_manifest(TEXT.encode())
    assert manifest.backup.path == "vm/100/2023-11-14T22:13:20Z"
    entry = manifest.entry("drive-scsi0.img.fidx")
    assert (entry.size_bytes, entry.crypt_mode) == (4194816, CryptMode.NONE)
    assert encode_manifest(manifest).decode() == TEXT


def test_sign_gives_the_vector() -> None:
    assert KEY.reveal().hex() == "28cdb1a3bef39396c3860e00d448fe7a0efd8244486ab6feb30457681d31597e"
    signed = sign_manifest(VECTOR, KEY)
    assert signed.signature is not None
    expected = "d7b446fb7db081662081d4b40fedd858a1d6307a5aff4ecff7d5bf4fd35679e9"
    assert signed.signature.hex() == expected
    assert signed.unprotected.key_fingerprint == KEY.fingerprint


def test_signature_survives_a_server_and_covers_no_unprotected_part() -> None:
    signed = decode_manifest(encode_manifest(sign_manifest(VECTOR, KEY)))
    assert check_signature(signed, KEY)
    noted = replace(signed, unprotected=replace(signed.unprotected, notes="x"))
    assert check_signature(decode_manifest(encode_manifest(noted)), KEY)
    assert sign_manifest(noted, KEY).signature == signed.signature


def test_signature_missing_is_told_but_no_error() -> None:
    assert not check_signature(VECTOR, KEY)


def test_signature_wrong_or_of_other_key_is_refused() -> None:
    signed = sign_manifest(VECTOR, KEY)
    moved = replace(signed, entries=signed.entries[::-1])
    with pytest.raises(PbsCorrupt, match=r"^wrong signature in manifest$"):
        check_signature(moved, KEY)
    with pytest.raises(PbsKeyError, match="wrong key - unable to verify signature since") as caught:
        check_signature(signed, OTHER_KEY)
    assert f"key {KEY.fingerprint.short} does not match provided key 0e:ab" in str(caught.value)
    nameless = replace(signed, unprotected=Unprotected())
    with pytest.raises(PbsCorrupt, match=r"^wrong signature in manifest$"):
        check_signature(nameless, OTHER_KEY)


def test_check_key_wants_the_key_that_is_named() -> None:
    signed = sign_manifest(VECTOR, KEY)
    check_key(signed, KEY)
    check_key(VECTOR, None)
    check_key(VECTOR, KEY)
    with pytest.raises(PbsKeyError, match="missing key - manifest was created with key"):
        check_key(signed, None)
    with pytest.raises(PbsKeyError, match="wrong key"):
        check_key(signed, OTHER_KEY)


def test_unprotected_part_returns_whole() -> None:
    manifest = replace(VECTOR, unprotected=FULL)
    text = encode_manifest(manifest)
    assert decode_manifest(text) == manifest
    part = json.loads(text)["unprotected"]
    assert part["chunk_upload_stats"] == {
        "count": 3, "size": 12582912, "compressed_size": 4711, "duplicates": 1,
    }  # fmt: skip
    assert part["verify_state"] == {"state": "failed", "upid": "UPID:pbs:0001"}
    assert part["notes"] == "Täglich\nvor dem Umbau" and part["sync"] == {"from": None}
    assert part["key-fingerprint"].startswith("0e:ab:d4:46")


@pytest.mark.parametrize(
    "part",
    [
        {"verify_state": {"state": "unknown", "upid": "x"}},
        {"verify_state": {"state": "ok", "upid": "x", "more": 1}},
        {"verify_state": None, "notes": ["a"], "chunk_upload_stats": "many"},
        {"chunk_upload_stats": {"count": 1.5}},
        {"x": {"y": [1, 2.5, None, True, "é\u2028"]}},
    ],
)
def test_unprotected_members_of_other_shape_are_carried_along(part: dict[str, object]) -> None:
    manifest = decode_manifest(changed(unprotected=part).encode())
    assert manifest.unprotected.notes is None and manifest.unprotected.verification is None
    assert json.loads(encode_manifest(manifest))["unprotected"] == part


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "{}", TEXT[:-1], TEXT + "x", "\ufeff" + TEXT,
        changed(backup_time="1"), changed(backup_time=0), changed(backup_time=1.5),
        changed(backup_time=1 << 64), changed(backup_type="qemu"), changed(backup_id="../x"),
        changed(backup_id=None), changed(files=None), changed(files=[{}]), changed(signature="ab"),
        changed(signature=1), changed(unprotected=[]), changed(unprotected={"key-fingerprint": 1}),
        changed(unprotected={"key-fingerprint": "aa"}),
        TEXT.replace('"none"', '"maybe"'), TEXT.replace("4194816", "-1"),
        TEXT.replace("4194816", "true"), TEXT.replace("drive-scsi0.img.fidx", "../a.fidx"),
        TEXT.replace(".fidx", ".zip"), TEXT.replace("d257", "D257"), TEXT.replace("d257", "d25"),
        TEXT.replace('"size"', '"length"'), TEXT.replace("{}", '{"a": NaN}'),
        TEXT.replace("{}", '{"a": "\\ud800"}'), TEXT.replace("{}", '{"a": 1e999}'),
        changed(files=json.loads(TEXT)["files"] * 2),
    ],
)  # fmt: skip
def test_decode_other_text_is_refused(text: str) -> None:
    with pytest.raises(PbsCorrupt):
        decode_manifest(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("{}", '{"a": ' + "[" * 40 + "]" * 40 + "}"),
        TEXT.replace("{}", '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"),
        TEXT.replace("{}", '{"a": ' + '{"a":' * 50_000 + "1" + "}" * 50_000 + "}"),
        TEXT.replace("{}", '{}, "more": ' + "[" * 100_000 + "]" * 100_000),
        "[" * 1_000_000,
    ],
    ids=["forty lists", "many lists", "many objects", "unknown member", "open lists"],
)
def test_decode_deep_text_is_refused(text: str) -> None:
    with pytest.raises(PbsCorrupt):
        decode_manifest(text.encode())


def test_decode_long_text_is_refused_unread() -> None:
    with pytest.raises(PbsCorrupt, match="too long"):
        decode_manifest(b" " * (1 << 20) + TEXT.encode())
    with pytest.raises(PbsCorrupt, match="too long"):
        decode_manifest(TEXT.encode(), bytes_max=len(TEXT) - 1)


def test_decode_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(PbsCorrupt):
        decode_manifest(TEXT.encode().replace(b'"100"', b'"\xff"'))
    with pytest.raises(PbsCorrupt):
        decode_manifest(TEXT.encode().replace(b"{}", b'{"a": "\xff"}'))


def test_decode_missing_members_have_their_defaults() -> None:
    value = json.loads(TEXT)
    del value["signature"], value["unprotected"], value["files"][0]["crypt-mode"]
    assert decode_manifest(json.dumps(value).encode()) == decode_manifest(TEXT.encode())
    assert decode_manifest(changed(unprotected=None).encode()).unprotected == Unprotected()


def test_entry_check_tells_size_from_sum() -> None:
    entry = VECTOR.entry("abc.blob")
    entry.check(size_bytes=200, csum=b"\2" * 32)
    with pytest.raises(PbsCorrupt, match=r"^wrong size for file 'abc\.blob'"):
        entry.check(size_bytes=201, csum=b"\2" * 32)
    with pytest.raises(PbsCorrupt, match=r"^wrong checksum for file 'abc\.blob'"):
        entry.check(size_bytes=200, csum=b"\1" * 32)
    with pytest.raises(PbsCorrupt, match=r"^manifest does not contain file 'x\.blob'"):
        VECTOR.entry("x.blob")


def test_manifest_impossible_entries_are_refused() -> None:
    entry = VECTOR.entries[0]
    with pytest.raises(PbsError, match="two files of one name"):
        replace(VECTOR, entries=(entry, entry))
    with pytest.raises(PbsError, match="more than 4096"):
        replace(VECTOR, entries=(entry,) * 4097)
    for bad in ({"size_bytes": -1}, {"size_bytes": 1 << 64}, {"csum": b""}, {"file_name": "x"}):
        with pytest.raises(PbsError):
            replace(entry, **bad)


def test_encode_other_members_that_are_no_object_are_refused() -> None:
    with pytest.raises(PbsCorrupt):
        encode_manifest(replace(VECTOR, unprotected=Unprotected(others_json="[]")))


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,12}\.(fidx|didx|blob)", fullmatch=True),
        st.tuples(
            st.integers(0, (1 << 64) - 1),
            st.binary(min_size=32, max_size=32),
            st.sampled_from(CryptMode),
        ),
        max_size=8,
    ),
    st.none() | st.text(max_size=30),
    st.booleans(),
)
def test_manifest_any_value_returns(
    files: dict[str, tuple[int, bytes, CryptMode]], notes: str | None, is_signed: bool
) -> None:
    manifest = Manifest(
        backup=VECTOR.backup,
        entries=tuple(
            ManifestEntry(file_name=name, size_bytes=size, csum=csum, crypt_mode=mode)
            for name, (size, csum, mode) in files.items()
        ),
        unprotected=Unprotected(notes=notes),
    )
    if is_signed:
        manifest = sign_manifest(manifest, OTHER_KEY)
    again = decode_manifest(encode_manifest(manifest))
    assert again == manifest
    assert check_signature(again, OTHER_KEY) is is_signed
