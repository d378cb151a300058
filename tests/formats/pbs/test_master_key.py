"""The master key, against the library's own decryption."""

from __future__ import annotations

from functools import cache

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from vzdump_qemu.errors import PbsKeyError
from vzdump_qemu.formats.pbs.data_blob import BlobEncoder, BlobKind
from vzdump_qemu.formats.pbs.encryption_key import EncryptionKey
from vzdump_qemu.formats.pbs.key_file import decode_key_file, unlock_key_file
from vzdump_qemu.formats.pbs.master_key import unwrap_key, wrap_key

# Making an RSA key takes what it takes.
pytestmark = pytest.mark.slow

KEY = EncryptionKey(bytes(range(32)))
SEED = b"\7" * 32


@cache
def master(bits: int, number: int = 0) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def public_pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def private_pem(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, passphrase: bytes | None = None
) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption(),
    )


def wrapped(key: rsa.RSAPrivateKey, seed: bytes = SEED) -> bytes:
    return wrap_key(public_pem(key), KEY, created_s=1700000000, modified_s=1700000500, seed=seed)


def test_wrapped_key_is_what_the_library_decrypts() -> None:
    result = wrapped(master(3072))
    assert len(result) == 384
    message = master(3072).decrypt(result, padding.PKCS1v15())
    key_file = decode_key_file(message)
    assert message.startswith(b"{") and key_file.kdf is None
    assert (key_file.created_s, key_file.modified_s) == (1700000000, 1700000500)
    assert unlock_key_file(key_file) == KEY


def test_wrapped_key_is_stored_plain() -> None:
    stored = BlobEncoder(compress=False).encode(wrapped(master(3072)))
    assert stored.kind is BlobKind.PLAIN


@pytest.mark.parametrize("passphrase", [None, b"secret"])
def test_unwrap_returns_the_key(passphrase: bytes | None) -> None:
    pem = private_pem(master(3072), passphrase)
    key_file = unwrap_key(pem, wrapped(master(3072)), passphrase=passphrase)
    assert unlock_key_file(key_file) == KEY


def test_wrap_same_seed_gives_the_same_bytes_and_another_others() -> None:
    assert wrapped(master(3072)) == wrapped(master(3072))
    assert wrapped(master(3072)) != wrapped(master(3072), b"\x08" * 32)


def test_wrap_small_master_key_is_refused() -> None:
    with pytest.raises(PbsKeyError, match="2048 bits is too small") as caught:
        wrapped(master(2048))
    assert "4096" in caught.value.hint


def test_wrap_without_chance_or_public_key_is_refused() -> None:
    with pytest.raises(PbsKeyError, match="seed has 31 bytes"):
        wrapped(master(3072), bytes(31))
    elliptic = ec.generate_private_key(ec.SECP256R1())
    for pem, text in (
        (b"", "no public key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no public key"),
        (private_pem(master(3072)), "no public key"),
        (public_pem(elliptic), "no RSA key"),
        (b"x" * 70000, "too long"),
    ):
        with pytest.raises(PbsKeyError, match=text):
            wrap_key(pem, KEY, created_s=1, modified_s=1, seed=SEED)
    with pytest.raises(PbsKeyError, match="no RSA key"):
        unwrap_key(private_pem(elliptic), b"")


def test_unwrap_wrong_key_passphrase_or_data_is_refused() -> None:
    result = wrapped(master(3072))
    plain, locked = private_pem(master(3072)), private_pem(master(3072), b"secret")
    changed = result[:-1] + bytes([result[-1] ^ 1])
    for data in (b"", result[:-1], result + b"\0", changed, b"\xff" * 384, bytes(384)):
        with pytest.raises(PbsKeyError, match="not encrypted with this master key"):
            unwrap_key(plain, data)
    with pytest.raises(PbsKeyError, match="not encrypted with this master key"):
        unwrap_key(private_pem(master(3072, 1)), result)
    with pytest.raises(PbsKeyError, match="needs a passphrase"):
        unwrap_key(locked, result)
    with pytest.raises(PbsKeyError, match="has no passphrase"):
        unwrap_key(plain, result, passphrase=b"secret")
    with pytest.raises(PbsKeyError, match="the passphrase is wrong"):
        unwrap_key(locked, result, passphrase=b"other")
    with pytest.raises(PbsKeyError, match="no private key"):
        unwrap_key(public_pem(master(3072)), result)
