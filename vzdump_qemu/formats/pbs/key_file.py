"""Key files: an encryption key as it rests on a disk, protected by a passphrase or bare.

Owns their JSON, the derivation from a passphrase and its cost limits; reading the file, asking for
the passphrase and the bytes of chance are the caller's. Source: PBS formats, section 9.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, assert_never

import msgspec

from vzdump_qemu.errors import PbsError, PbsKeyError
from vzdump_qemu.formats.pbs import layout
from vzdump_qemu.formats.pbs.encryption_key import EncryptionKey, open_sealed, seal
from vzdump_qemu.formats.pbs.fingerprint import Fingerprint
from vzdump_qemu.formats.pbs.json_text import canonical_json, decode_json
from vzdump_qemu.formats.pbs.times import parse_any, render_local

KEY_FILE_BYTES_MAX: Final = 64 * 1024
PASSPHRASE_BYTES_MIN: Final = 5
# Four times what PBS writes; enough for any parameters in use.
SCRYPT_MEMORY_BYTES_MAX: Final = 256 << 20
SCRYPT_LANE_COUNT_MAX: Final = 16
PBKDF2_ROUND_COUNT_MAX: Final = 10_000_000

_WHAT: Final = "key file"
_SEALED_BYTES: Final = layout.IV_BYTES + layout.TAG_BYTES + layout.KEY_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class ScryptKdf:
    """Derivation by scrypt with the parameters that PBS writes, unless said otherwise."""

    salt: bytes
    n: int = 65536
    r: int = 8
    p: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pbkdf2Kdf:
    """Derivation by PBKDF2-HMAC-SHA256."""

    salt: bytes
    round_count: int = 65535


Kdf: TypeAlias = ScryptKdf | Pbkdf2Kdf


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFile:
    """A key file. Without a kdf, `data` is the key itself and never shown.

    Attributes:
        created_s, modified_s: seconds since the epoch.
        hint: what the owner wrote to remember the passphrase by.
    """

    kdf: Kdf | None
    created_s: int
    modified_s: int
    data: bytes = field(repr=False)
    fingerprint: Fingerprint | None = None
    hint: str | None = None

    @property
    def needs_passphrase(self) -> bool:
        return self.kdf is not None


def bare_key_file(key: EncryptionKey, *, created_s: int, modified_s: int) -> KeyFile:
    """A key file without protection; whoever reads it has the key."""
    return KeyFile(
        kdf=None,
        created_s=created_s,
        modified_s=modified_s,
        data=key.reveal(),
        fingerprint=key.fingerprint,
    )


def protect_key_file(
    key_file: KeyFile, passphrase: bytes, kdf: Kdf, *, iv: bytes, hint: str | None = None
) -> KeyFile:
    """The bare key file protected by a passphrase.

    Args:
        kdf: with 32 fresh bytes of chance as salt.
        iv: 16 fresh bytes of chance.

    Raises:
        PbsKeyError: not bare, the passphrase too short, or a derivation over the limits.
    """
    if key_file.kdf is not None:
        raise PbsKeyError("key file is protected already")
    tag, ciphertext = seal(derive_key(kdf, passphrase), key_file.data, iv)
    return KeyFile(
        kdf=kdf,
        created_s=key_file.created_s,
        modified_s=key_file.modified_s,
        data=iv + tag + ciphertext,
        fingerprint=key_file.fingerprint,
        hint=hint,
    )


def unlock_key_file(key_file: KeyFile, passphrase: bytes | None = None) -> EncryptionKey:
    """The key of a key file.

    Args:
        passphrase: unused if the file is bare.

    Raises:
        PbsKeyError: no passphrase or a wrong one, a derivation over the limits, or a key that
            has not the fingerprint of the file.
    """
    raw = key_file.data
    if key_file.kdf is not None:
        if passphrase is None:
            raise PbsKeyError("key file is protected by a passphrase", hint=_shown_hint(key_file))
        if len(raw) != _SEALED_BYTES:
            raise PbsKeyError(f"key file holds {len(raw)} bytes instead of {_SEALED_BYTES}")
        iv, tag = raw[: layout.IV_BYTES], raw[layout.IV_BYTES : -layout.KEY_BYTES]
        derived = derive_key(key_file.kdf, passphrase)
        try:
            raw = open_sealed(derived, raw[-layout.KEY_BYTES :], iv=iv, tag=tag)
        except PbsKeyError as error:
            raise PbsKeyError(
                "wrong passphrase for key file", hint=_shown_hint(key_file)
            ) from error
    key = EncryptionKey(raw)
    if key_file.fingerprint not in (None, key.fingerprint):
        raise PbsKeyError("key file has the fingerprint of another key")
    return key


def derive_key(kdf: Kdf, passphrase: bytes) -> bytes:
    """The 32 bytes that protect the key. Slow by intent: tenths of a second, 64 MiB.

    Raises:
        PbsKeyError: the passphrase is too short, or the parameters are out of range.
    """
    if len(passphrase) < PASSPHRASE_BYTES_MIN:
        raise PbsKeyError("Passphrase is too short!", hint=f"{PASSPHRASE_BYTES_MIN} bytes at least")
    match kdf:
        case ScryptKdf():
            return _scrypt(kdf, passphrase)
        case Pbkdf2Kdf():
            if not 1 <= kdf.round_count <= PBKDF2_ROUND_COUNT_MAX:
                raise PbsKeyError(f"key file asks for {kdf.round_count} rounds of PBKDF2")
            return hashlib.pbkdf2_hmac(
                "sha256", passphrase, kdf.salt, kdf.round_count, layout.KEY_BYTES
            )
    assert_never(kdf)


def encode_key_file(key_file: KeyFile, *, utc_offset_s: int = 0) -> bytes:
    """The JSON text of a key file, one line without white space.

    Args:
        utc_offset_s: of the writer's local time, in which times are written.

    Raises:
        PbsError: a time that cannot be written.
    """
    value: dict[str, Any] = {
        "kdf": _kdf_json(key_file.kdf),
        "created": render_local(key_file.created_s, utc_offset_s=utc_offset_s),
        "modified": render_local(key_file.modified_s, utc_offset_s=utc_offset_s),
        "data": base64.b64encode(key_file.data).decode(),
    }
    if key_file.fingerprint is not None:
        value["fingerprint"] = str(key_file.fingerprint)
    if key_file.hint is not None:
        value["hint"] = key_file.hint
    return canonical_json(value)


def decode_key_file(text: layout.Buffer) -> KeyFile:
    """Read a key file. Nothing is derived or decrypted yet.

    Raises:
        PbsKeyError: no key file.
    """
    try:
        parsed = decode_json(text, _KeyFileJson, bytes_max=KEY_FILE_BYTES_MAX, what=_WHAT)
        return KeyFile(
            kdf=None if parsed.kdf is None else _kdf(parsed.kdf),
            created_s=parse_any(parsed.created),
            modified_s=parse_any(parsed.modified),
            data=_from_base64(parsed.data),
            fingerprint=(
                None if parsed.fingerprint is None else Fingerprint.parse(parsed.fingerprint)
            ),
            hint=parsed.hint,
        )
    except PbsKeyError:
        raise
    except PbsError as error:
        raise PbsKeyError(f"unable to read key file: {error.message}") from error


class _ScryptJson(msgspec.Struct):
    n: int
    r: int
    p: int
    salt: str


class _Pbkdf2Json(msgspec.Struct):
    iter: int
    salt: str


class _KdfJson(msgspec.Struct, forbid_unknown_fields=True):
    scrypt: _ScryptJson | None = msgspec.field(default=None, name="Scrypt")
    pbkdf2: _Pbkdf2Json | None = msgspec.field(default=None, name="PBKDF2")


class _KeyFileJson(msgspec.Struct):
    created: str
    modified: str
    data: str
    kdf: _KdfJson | None = None
    fingerprint: str | None = None
    hint: str | None = None


def _shown_hint(key_file: KeyFile) -> str:
    """The hint on one line, without what would upset a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in key_file.hint or "")


def _kdf(parsed: _KdfJson) -> Kdf:
    match parsed.scrypt, parsed.pbkdf2:
        case _ScryptJson() as scrypt, None:
            return ScryptKdf(salt=_from_base64(scrypt.salt), n=scrypt.n, r=scrypt.r, p=scrypt.p)
        case None, _Pbkdf2Json() as pbkdf2:
            return Pbkdf2Kdf(salt=_from_base64(pbkdf2.salt), round_count=pbkdf2.iter)
    raise PbsKeyError("key file must name one derivation")


def _kdf_json(kdf: Kdf | None) -> dict[str, Any] | None:
    match kdf:
        case None:
            return None
        case ScryptKdf():
            salt = base64.b64encode(kdf.salt).decode()
            return {"Scrypt": {"n": kdf.n, "r": kdf.r, "p": kdf.p, "salt": salt}}
        case Pbkdf2Kdf():
            salt = base64.b64encode(kdf.salt).decode()
            return {"PBKDF2": {"iter": kdf.round_count, "salt": salt}}
    assert_never(kdf)


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PbsKeyError(f"key file holds no base64: {error}") from error


def _scrypt(kdf: ScryptKdf, passphrase: bytes) -> bytes:
    n, r, p = kdf.n, kdf.r, kdf.p
    memory_bytes = 128 * n * r
    is_possible = n >= 2 and not n & (n - 1) and r >= 1 and 1 <= p <= SCRYPT_LANE_COUNT_MAX
    if not is_possible or memory_bytes > SCRYPT_MEMORY_BYTES_MAX:
        raise PbsKeyError(f"key file asks for scrypt with n={n}, r={r}, p={p}")
    try:
        # The library counts a few blocks beyond the table into its limit.
        return hashlib.scrypt(
            passphrase, salt=kdf.salt, n=n, r=r, p=p, dklen=layout.KEY_BYTES,
            maxmem=memory_bytes + 128 * r * (p + 3) + 4096,
        )  # fmt: skip
    except ValueError as error:
        raise PbsKeyError(f"key file asks for scrypt with n={n}, r={r}, p={p}: {error}") from error
