"""Making key files: the chance that they are made of, and their place on a disk.

Owns that a key is never written over another file, is readable by its owner alone, and is whole
and durable once it has its name: what was encrypted with a lost key is lost. The content is
`formats.pbs`'s. Source: PBS formats, section 9.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

from vzdump_qemu.errors import PbsKeyError
from vzdump_qemu.formats.pbs import (
    EncryptionKey,
    KeyFile,
    ScryptKdf,
    bare_key_file,
    encode_key_file,
    layout,
    protect_key_file,
)
from vzdump_qemu.ports import Clock
from vzdump_qemu.secret import Secret
from vzdump_qemu.stores.system import sync_directory

_SALT_BYTES = 32
_MODE = 0o600
_SECONDS_PER_MINUTE = 60


def create_key_file(
    path: str, *, clock: Clock, passphrase: Secret | None, hint: str = ""
) -> KeyFile:
    """Make a key and write its file. Slow with a passphrase.

    Args:
        passphrase: protects the key; None leaves it bare.
        hint: what its owner remembers the passphrase by.
    Raises:
        PbsKeyError: the file exists or cannot be written, or the passphrase is too short.
    """
    refuse_existing(path)
    now_s = int(clock.wall_s())
    key = EncryptionKey(os.urandom(layout.KEY_BYTES))
    key_file = bare_key_file(key, created_s=now_s, modified_s=now_s)
    if passphrase is not None:
        key_file = protect_key_file(
            key_file,
            passphrase.reveal().encode(),
            ScryptKdf(salt=os.urandom(_SALT_BYTES)),
            iv=os.urandom(layout.IV_BYTES),
        )
    key_file = replace(key_file, hint=hint or None)
    _write(path, encode_key_file(key_file, utc_offset_s=_utc_offset_s(clock, now_s)))
    return key_file


def _utc_offset_s(clock: Clock, now_s: int) -> int:
    """Of the owner's zone, in which the times of key files are written; whole minutes."""
    local_s = (clock.local_time(now_s) - datetime(1970, 1, 1)).total_seconds()
    return round((local_s - now_s) / _SECONDS_PER_MINUTE) * _SECONDS_PER_MINUTE


def refuse_existing(path: str) -> None:
    """Raise PbsKeyError if there is anything of that name."""
    if os.path.lexists(path):
        raise PbsKeyError(
            f"file '{path}' exists and is not overwritten",
            hint="what was encrypted with a key is lost without it",
        )


def _write(path: str, content: bytes) -> None:
    temp_path = f"{path}.{os.getpid()}.tmp"
    try:
        fd = os.open(temp_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        try:
            with open(fd, "wb") as file:
                os.fchmod(fd, _MODE)
                file.write(content)
                file.flush()
                os.fsync(fd)
            # Unlike renaming, this never replaces what got the name meanwhile.
            os.link(temp_path, path)
        finally:
            with suppress(OSError):
                os.unlink(temp_path)
        sync_directory(os.path.dirname(path))
    except OSError as error:
        refuse_existing(path)
        raise PbsKeyError(f"unable to write key file '{path}' - {error.strerror}") from error
