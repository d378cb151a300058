"""Fingerprints as people paste them."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vzdump_qemu.errors import PbsError
from vzdump_qemu.formats.pbs.fingerprint import Fingerprint


@given(st.binary(min_size=32, max_size=32))
def test_fingerprint_every_form_is_the_same(raw: bytes) -> None:
    value = Fingerprint(raw)
    for text in (str(value), str(value).upper(), raw.hex(), raw.hex().upper()):
        assert Fingerprint.parse(text) == value
    assert len(value.short) == 23 and str(value).startswith(value.short)


def test_fingerprint_of_certificate_is_its_sha256() -> None:
    der = b"\x30\x03\x02\x01\x05"
    assert Fingerprint.of_certificate(der).raw == hashlib.sha256(der).digest()


@pytest.mark.parametrize(
    "text", ["", "aa", "aa:" * 32, "aa:" * 31 + "ag", "aa" * 31 + ":aa", " " + "aa" * 32, "é" * 64]
)
def test_fingerprint_other_text_is_refused(text: str) -> None:
    with pytest.raises(PbsError):
        Fingerprint.parse(text)


def test_fingerprint_wrong_length_is_refused() -> None:
    with pytest.raises(PbsError, match="31 bytes"):
        Fingerprint(bytes(31))
