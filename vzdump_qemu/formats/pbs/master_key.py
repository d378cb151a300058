"""The master key: an RSA key to which each backup's own key is encrypted.

Owns the content of `rsa-encrypted.key.blob`, RSA with the padding of PKCS#1 v1.5 around a bare key
file. Reading PEM files, and the bytes of chance, are the caller's. Source: PBS formats, section 9.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from vzdump_qemu.errors import PbsKeyError
from vzdump_qemu.formats.pbs.encryption_key import EncryptionKey
from vzdump_qemu.formats.pbs.key_file import (
    KeyFile,
    bare_key_file,
    decode_key_file,
    encode_key_file,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

PEM_BYTES_MAX: Final = 64 * 1024
SEED_BYTES_MIN: Final = 32
MODULUS_BITS_MAX: Final = 16384
# Two marks, eight bytes of padding at least, and the zero behind them.
_PADDING_BYTES_MIN: Final = 11


def wrap_key(
    public_pem: bytes, key: EncryptionKey, *, created_s: int, modified_s: int, seed: bytes
) -> bytes:
    """Encrypt a backup's key to the master key; the result goes into a plain blob.

    Args:
        public_pem: the master key's public part.
        created_s: when the backup's key was made.
        seed: 32 fresh bytes of chance or more, from which the padding is drawn.

    Raises:
        PbsKeyError: no RSA key in PEM form, one too small for a key file, or a short seed.
    """
    if len(seed) < SEED_BYTES_MIN:
        raise PbsKeyError(f"seed has {len(seed)} bytes, not {SEED_BYTES_MIN} or more")
    key_file = bare_key_file(key, created_s=created_s, modified_s=modified_s)
    message = encode_key_file(key_file)
    numbers = _public_key(public_pem).public_numbers()
    modulus_bytes = (numbers.n.bit_length() + 7) // 8
    padding_bytes = modulus_bytes - len(message) - 3
    if len(message) > modulus_bytes - _PADDING_BYTES_MIN:
        raise PbsKeyError(
            f"master key of {numbers.n.bit_length()} bits is too small for a key file",
            hint="use a master key of 4096 bits",
        )
    # The library would draw the padding itself; here chance comes from the caller alone. Only
    # the public exponent is used, so that no secret can leak by the time this takes.
    drawn = hashlib.shake_256(seed).digest(2 * padding_bytes + 64).replace(b"\0", b"")
    padded = b"\0\2" + drawn[:padding_bytes] + b"\0" + message
    wrapped = pow(int.from_bytes(padded, "big"), numbers.e, numbers.n)
    return wrapped.to_bytes(modulus_bytes, "big")


def unwrap_key(private_pem: bytes, wrapped: bytes, *, passphrase: bytes | None = None) -> KeyFile:
    """The bare key file that `wrap_key` encrypted.

    Args:
        passphrase: of the private part, None if it has none.

    Raises:
        PbsKeyError: no private RSA key, a wrong passphrase, or encrypted to another master key.
    """
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15

    private_key = _private_key(private_pem, passphrase)
    try:
        message = private_key.decrypt(wrapped, PKCS1v15())
        return decode_key_file(message)
    except (ValueError, PbsKeyError) as error:
        # A wrong key may also decrypt to noise, which then is no key file.
        raise PbsKeyError("key was not encrypted with this master key, or changed") from error


def _public_key(pem: bytes) -> RSAPublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    _check_length(pem)
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PbsKeyError("master key is no public key in PEM form") from error
    if not isinstance(key, RSAPublicKey):
        raise PbsKeyError("master key is no RSA key")
    _check_modulus(key.key_size)
    return key


def _private_key(pem: bytes, passphrase: bytes | None) -> RSAPrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    _check_length(pem)
    try:
        key = load_pem_private_key(pem, password=passphrase)
    except TypeError as error:
        text = "needs a passphrase" if passphrase is None else "has no passphrase"
        raise PbsKeyError(f"master key {text}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PbsKeyError(
            "master key is no private key in PEM form, or the passphrase is wrong"
        ) from error
    if not isinstance(key, RSAPrivateKey):
        raise PbsKeyError("master key is no RSA key")
    _check_modulus(key.key_size)
    return key


def _check_length(pem: bytes) -> None:
    if len(pem) > PEM_BYTES_MAX:
        raise PbsKeyError(f"master key is too long ({len(pem)} bytes > {PEM_BYTES_MAX})")


def _check_modulus(modulus_bits: int) -> None:
    if modulus_bits > MODULUS_BITS_MAX:
        raise PbsKeyError(f"master key has {modulus_bits} bits, over {MODULUS_BITS_MAX}")
