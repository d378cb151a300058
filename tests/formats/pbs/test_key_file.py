"""Key files: the vector of the format, every protection and back, silence about the key."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vzdump_qemu.errors import PbsError, PbsKeyError
from vzdump_qemu.formats.pbs.encryption_key import EncryptionKey
from vzdump_qemu.formats.pbs.fingerprint import Fingerprint
from vzdump_qemu.formats.pbs.key_file import (
    Kdf,
    KeyFile,
    Pbkdf2Kdf,
    ScryptKdf,
    bare_key_file,
    decode_key_file,
    derive_key,
    encode_key_file,
    protect_key_file,
    unlock_key_file,
)

RAW = bytes(range(32))
KEY = EncryptionKey(RAW)
BARE = bare_key_file(KEY, created_s=1700000000, modified_s=1700000001)
CHEAP = ScryptKdf(salt=b"salt", n=16, r=1, p=1)
VECTOR_DATA = (
    "AAAAAAAAAAAAAAAAAAAAAApzWvy4X+1I1OCr6WgQB+O5s3mIRwETboTLbYcy2ARVTo31ft8S150I6JQ6NPfXNA=="
)


@pytest.mark.slow
def test_scrypt_gives_the_vector() -> None:
    kdf = ScryptKdf(salt=bytes(32))
    derived = "661ee53988be8b1e8a518840a60f351ddf1789e04da6fc7c2ea51abd099d24cf"
    assert derive_key(kdf, b"12345").hex() == derived
    protected = protect_key_file(BARE, b"12345", kdf, iv=bytes(16))
    value = json.loads(encode_key_file(protected))
    assert value["data"] == VECTOR_DATA
    assert value["kdf"]["Scrypt"] == {
        "n": 65536, "r": 8, "p": 1, "salt": base64.b64encode(bytes(32)).decode(),
    }  # fmt: skip
    assert value["created"] == "2023-11-14T22:13:20+00:00"
    assert unlock_key_file(decode_key_file(json.dumps(value).encode()), b"12345") == KEY


@pytest.mark.slow
def test_key_file_of_another_writer_is_read() -> None:
    value = {
        "kdf": {"Scrypt": {"n": 65536, "r": 8, "p": 1, "salt": "A" * 43 + "="}},
        "created": "2023-11-14T23:13:20+01:00",
        "modified": "2023-11-14T22:13:20Z",
        "data": VECTOR_DATA,
    }
    key_file = decode_key_file(json.dumps(value, indent=2).encode())
    assert key_file.created_s == key_file.modified_s == 1700000000
    assert (key_file.fingerprint, key_file.hint, key_file.needs_passphrase) == (None, None, True)
    assert unlock_key_file(key_file, b"12345") == KEY


@settings(deadline=None, max_examples=40)
@given(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=5, max_size=40),
    st.sampled_from([CHEAP, Pbkdf2Kdf(salt=b"", round_count=2), Pbkdf2Kdf(salt=b"\0" * 32)]),
    st.binary(min_size=16, max_size=16),
    st.none() | st.text(max_size=20),
)
def test_key_file_any_protection_returns(
    raw: bytes, passphrase: bytes, kdf: Kdf, iv: bytes, hint: str | None
) -> None:
    key = EncryptionKey(raw)
    bare = bare_key_file(key, created_s=1, modified_s=2)
    assert unlock_key_file(decode_key_file(encode_key_file(bare))) == key
    protected = protect_key_file(bare, passphrase, kdf, iv=iv, hint=hint)
    again = decode_key_file(encode_key_file(protected, utc_offset_s=7200))
    assert again == protected
    assert unlock_key_file(again, passphrase) == key
    with pytest.raises(PbsKeyError, match="wrong passphrase"):
        unlock_key_file(again, passphrase + b"x")


def test_bare_key_file_has_no_derivation_and_ignores_a_passphrase() -> None:
    value = json.loads(encode_key_file(BARE))
    assert value["kdf"] is None
    assert base64.b64decode(value["data"]) == RAW
    assert value["fingerprint"].startswith("0e:ab:d4:46") and "hint" not in value
    assert not BARE.needs_passphrase
    assert unlock_key_file(BARE, b"anything") == KEY


def test_key_file_text_never_shows_the_key() -> None:
    assert "data" not in repr(BARE)
    assert RAW.hex()[:16] not in repr(BARE) and "\\x01\\x02" not in repr(BARE)


def test_unlock_without_passphrase_names_the_hint_on_one_line() -> None:
    protected = protect_key_file(BARE, b"12345", CHEAP, iv=bytes(16), hint="the\n\x1b[31musual")
    with pytest.raises(PbsKeyError, match="protected by a passphrase") as caught:
        unlock_key_file(protected)
    assert caught.value.hint == "the??[31musual"


def test_unlock_wrong_content_is_refused() -> None:
    protected = protect_key_file(BARE, b"12345", CHEAP, iv=bytes(16))
    with pytest.raises(PbsKeyError, match="63 bytes instead of 64"):
        unlock_key_file(replace(protected, data=protected.data[:-1]), b"12345")
    with pytest.raises(PbsKeyError, match="wrong passphrase"):
        unlock_key_file(replace(protected, data=bytes(64)), b"12345")
    with pytest.raises(PbsKeyError, match="fingerprint of another key"):
        unlock_key_file(replace(BARE, fingerprint=Fingerprint(bytes(32))))
    with pytest.raises(PbsKeyError, match="31 bytes instead of 32"):
        unlock_key_file(replace(BARE, data=bytes(31)))


@pytest.mark.parametrize("kdf", [CHEAP, Pbkdf2Kdf(salt=b"")])
def test_derive_short_passphrase_is_refused(kdf: Kdf) -> None:
    with pytest.raises(PbsKeyError, match="Passphrase is too short!"):
        derive_key(kdf, b"1234")


@pytest.mark.parametrize(
    "kdf",
    [
        ScryptKdf(salt=b"", n=0), ScryptKdf(salt=b"", n=1), ScryptKdf(salt=b"", n=65535),
        ScryptKdf(salt=b"", n=-2), ScryptKdf(salt=b"", r=0), ScryptKdf(salt=b"", r=-8),
        ScryptKdf(salt=b"", p=0), ScryptKdf(salt=b"", p=17), ScryptKdf(salt=b"", n=1 << 19),
        ScryptKdf(salt=b"", n=1 << 62), ScryptKdf(salt=b"", n=2, r=1 << 30),
        Pbkdf2Kdf(salt=b"", round_count=0), Pbkdf2Kdf(salt=b"", round_count=1 << 40),
    ],
)  # fmt: skip
def test_derive_costs_over_the_limits_are_refused(kdf: Kdf) -> None:
    with pytest.raises(PbsKeyError, match="key file asks for"):
        derive_key(kdf, b"12345")


def test_derive_costs_at_the_memory_limit_are_met() -> None:
    assert len(derive_key(ScryptKdf(salt=b"", n=2, r=1 << 10, p=16), b"12345")) == 32


def test_protect_twice_is_refused() -> None:
    protected = protect_key_file(BARE, b"12345", CHEAP, iv=bytes(16))
    with pytest.raises(PbsKeyError, match="already"):
        protect_key_file(protected, b"12345", CHEAP, iv=bytes(16))
    with pytest.raises(PbsKeyError, match="15 bytes instead of 16"):
        protect_key_file(BARE, b"12345", CHEAP, iv=bytes(15))


GOOD = json.loads(encode_key_file(BARE))


@pytest.mark.parametrize(
    "value",
    [
        None, [], {}, {**GOOD, "kdf": {}}, {**GOOD, "kdf": {"Argon2": {}}},
        {**GOOD, "kdf": {"Scrypt": {"n": "1"}}}, {**GOOD, "kdf": "Scrypt"},
        {**GOOD, "kdf": {"Scrypt": None, "PBKDF2": None}},
        {**GOOD, "kdf": {"PBKDF2": {"iter": 1, "salt": "x"}}},
        {**GOOD, "kdf": {"Scrypt": {"n": 2, "r": 1, "p": 1, "salt": ""},
                         "PBKDF2": {"iter": 1, "salt": ""}}},
        {**GOOD, "data": "é"}, {**GOOD, "data": "AA"}, {**GOOD, "data": "A A A A="},
        {**GOOD, "created": "yesterday"}, {**GOOD, "modified": 5}, {**GOOD, "fingerprint": "aa"},
        {**GOOD, "hint": 5}, {**GOOD, "hint": "x" * 70000},
    ],
)  # fmt: skip
def test_decode_other_value_is_refused(value: object) -> None:
    with pytest.raises(PbsKeyError):
        decode_key_file(json.dumps(value).encode())


def test_encode_time_out_of_range_is_refused() -> None:
    late: KeyFile = replace(BARE, created_s=1 << 60)
    with pytest.raises(PbsError):
        encode_key_file(late)
