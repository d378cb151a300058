"""The key of a backup and what is done with it: ciphers, signatures, fingerprint.

Owns the derivations from the 32 bytes; how they rest on a disk is in `key_file`, and the layout
of what was encrypted in `data_blob`. Source: PBS formats, sections 6, 8 and 9.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from typing import Final

from vzdump_qemu.errors import PbsKeyError
from vzdump_qemu.formats.pbs import layout
from vzdump_qemu.formats.pbs.fingerprint import Fingerprint

_ID_KEY_SALT: Final = b"_id_key"
_ID_KEY_ROUNDS: Final = 10
_FINGERPRINT_INPUT: Final = hashlib.sha256(b"Proxmox Backup Encryption Key Fingerprint").digest()


class CryptMode(enum.Enum):
    """What a key did to a file: nothing, encrypted it, or only signed the manifest over it."""

    NONE = "none"
    ENCRYPT = "encrypt"
    SIGN_ONLY = "sign-only"

    @property
    def is_encrypted(self) -> bool:
        return self is CryptMode.ENCRYPT


class EncryptionKey:
    """A key of 32 bytes. Its text shows the short fingerprint, never the key.

    May be used by several threads at once.

    Raises:
        PbsKeyError: not 32 bytes.
    """

    __slots__ = ("_fingerprint", "_id_key", "_key")

    def __init__(self, key: bytes) -> None:
        if len(key) != layout.KEY_BYTES:
            raise PbsKeyError(f"encryption key has {len(key)} bytes instead of {layout.KEY_BYTES}")
        self._key = bytes(key)
        self._id_key = hashlib.pbkdf2_hmac(
            "sha256", self._key, _ID_KEY_SALT, _ID_KEY_ROUNDS, layout.KEY_BYTES
        )
        self._fingerprint = Fingerprint(hashlib.sha256(_FINGERPRINT_INPUT + self._id_key).digest())

    @property
    def fingerprint(self) -> Fingerprint:
        """Names the key without telling anything about it."""
        return self._fingerprint

    def reveal(self) -> bytes:
        """The key itself, for a key file and nothing else."""
        return self._key

    def chunk_digest(self, content: layout.Buffer) -> bytes:
        """Digest of a chunk that is to be encrypted: of the content and a secret of the key."""
        return self.end_chunk_digest(hashlib.sha256(content))

    def end_chunk_digest(self, state: hashlib._Hash) -> bytes:
        """As `chunk_digest`, of a content that was hashed before: SHA-256 of that and no more."""
        state.update(self._id_key)
        return state.digest()

    def sign(self, message: bytes) -> bytes:
        """HMAC-SHA256 of a message, 32 bytes."""
        return hmac.digest(self._id_key, message, "sha256")

    def seal(self, content: layout.Buffer, iv: bytes) -> tuple[bytes, bytes]:
        """Encrypt, and return the tag and as many bytes of ciphertext as there is content.

        Args:
            iv: 16 bytes of chance; twice the same under one key gives both contents away.

        Raises:
            PbsKeyError: an initialisation vector of another length.
        """
        return seal(self._key, content, iv)

    def open(self, ciphertext: layout.Buffer, *, iv: bytes, tag: bytes) -> bytes:
        """Decrypt what `seal` made.

        Raises:
            PbsKeyError: made with another key, or changed since.
        """
        return open_sealed(self._key, ciphertext, iv=iv, tag=tag)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EncryptionKey):
            return NotImplemented
        return hmac.compare_digest(self._key, other._key)

    def __hash__(self) -> int:
        return hash(self._fingerprint)

    def __repr__(self) -> str:
        return f"EncryptionKey({self._fingerprint.short})"


def seal(key: bytes, content: layout.Buffer, iv: bytes) -> tuple[bytes, bytes]:
    """AES-256-GCM under a bare key, without associated data; see `EncryptionKey.seal`."""
    # Loaded here: most who know of keys (a manifest, a listing) never use the cipher.
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    if len(iv) != layout.IV_BYTES:
        raise PbsKeyError(f"initialisation vector has {len(iv)} bytes instead of {layout.IV_BYTES}")
    # Not the one-call form: it wants tag and ciphertext adjacent, which the format has not.
    cipher = Cipher(algorithms.AES(key), modes.GCM(iv)).encryptor()
    ciphertext = cipher.update(content) + cipher.finalize()
    return cipher.tag, ciphertext


def open_sealed(key: bytes, ciphertext: layout.Buffer, *, iv: bytes, tag: bytes) -> bytes:
    """Decrypt what `seal` made; see `EncryptionKey.open`."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    cipher = Cipher(algorithms.AES(key), modes.GCM(iv, tag)).decryptor()
    try:
        return cipher.update(ciphertext) + cipher.finalize()
    except InvalidTag as error:
        raise PbsKeyError("decryption failed: wrong key or changed data") from error
