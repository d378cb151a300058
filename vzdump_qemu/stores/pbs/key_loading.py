"""Keys for a backup, as they lie on this machine.

Owns reading key files and master keys, and asking for the passphrase only where one is needed. A
key that was configured and cannot be had ends the backup: nothing is ever sent in plain instead
(failure modes, row 72). The files' content is `formats.pbs`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from vzdump_qemu.errors import PbsKeyError
from vzdump_qemu.formats.pbs import (
    CryptMode,
    EncryptionKey,
    KeyFile,
    decode_key_file,
    unlock_key_file,
)
from vzdump_qemu.formats.pbs.master_key import SEED_BYTES_MIN, wrap_key
from vzdump_qemu.secret import Secret
from vzdump_qemu.stores.pbs.secret import find_secret

PASSPHRASE_VARIABLE: Final = "PBS_ENCRYPTION_PASSWORD"
PASSPHRASE_CREDENTIAL: Final = "proxmox-backup-client.encryption-password"
_FILE_BYTES_MAX: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupKey:
    """A key and what it is to do.

    Attributes:
        mode: ENCRYPT, or SIGN_ONLY for plain data under a signed manifest.
        created_s: when the key was made, for the copy under the master key.
        master_pem: public part of the master key; empty for none.
    """

    key: EncryptionKey
    mode: CryptMode = CryptMode.ENCRYPT
    created_s: int = 0
    master_pem: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        if self.mode is CryptMode.NONE:
            raise PbsKeyError("a key that neither encrypts nor signs")

    @property
    def data_key(self) -> EncryptionKey | None:
        """The key if data is to be encrypted with it."""
        return self.key if self.mode.is_encrypted else None


def load_backup_key(
    key_path: str,
    *,
    mode: CryptMode = CryptMode.ENCRYPT,
    passphrase: Secret | None = None,
    master_path: str = "",
) -> BackupKey:
    """Read a key file and, if named, the public part of a master key. Slow with a passphrase.

    Raises:
        PbsKeyError: a file is missing or unusable, or the passphrase is missing or wrong.
    """
    key_file = read_key_file(key_path)
    if key_file.needs_passphrase and passphrase is None:
        raise PbsKeyError(
            f"encryption key '{key_path}' is protected by a passphrase",
            hint=f"set {PASSPHRASE_VARIABLE}, or {PASSPHRASE_VARIABLE}_FILE to the path of a file",
        )
    given = None if passphrase is None else passphrase.reveal().encode()
    return BackupKey(
        key=unlock_key_file(key_file, given),
        mode=mode,
        created_s=key_file.created_s,
        master_pem=_read(master_path, "master key") if master_path else b"",
    )


def read_key_file(path: str) -> KeyFile:
    """A key file as it lies there, not unlocked. Raises PbsKeyError."""
    return decode_key_file(_read(path, "encryption key"))


def check_master_key(key: BackupKey, *, now_s: int) -> None:
    """Raise PbsKeyError if the key could not be wrapped; the outcome is thrown away."""
    if key.master_pem:
        wrap_key(
            key.master_pem,
            key.key,
            created_s=key.created_s,
            modified_s=now_s,
            seed=bytes(SEED_BYTES_MIN),
        )


def find_passphrase(environment: Mapping[str, str]) -> Secret | None:
    """The passphrase of key files, from the environment or a systemd credential.

    Raises:
        PbsError: the environment names a file that cannot be used.
    """
    return find_secret(PASSPHRASE_VARIABLE, environment, credential_name=PASSPHRASE_CREDENTIAL)


def _read(path: str, what: str) -> bytes:
    try:
        with open(path, "rb") as source:
            raw = source.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise PbsKeyError(
            f"unable to read {what} '{path}' - {error.strerror}",
            hint="nothing is sent without the configured key",
        ) from error
    if len(raw) > _FILE_BYTES_MAX:
        raise PbsKeyError(f"{what} '{path}' is too long")
    return raw
