"""Where passwords, token secrets and passphrases are read from.

Owns reading them from the environment, a file or a systemd credential, never from arguments. Who
a secret belongs to is left to `login` and `key_loading`. Source: host behaviour
5.8; PBS formats, section 2.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from vzdump_qemu.errors import PbsError
from vzdump_qemu.secret import Secret

# What anybody has to type or paste; a longer one is a wrong file.
SECRET_BYTES_MAX: Final = 4096
# Where systemd puts the credentials of a unit.
_CREDENTIALS_DIRECTORY: Final = "CREDENTIALS_DIRECTORY"


def read_secret_file(path: str) -> Secret:
    """The first line of a file, as password files of a node have it.

    Raises:
        PbsError: it cannot be read, is empty, too long or no text.
    """
    try:
        with open(path, "rb") as source:
            raw = source.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise PbsError(f"unable to read secret file '{path}' - {error.strerror}") from error
    if len(raw) > SECRET_BYTES_MAX:
        raise PbsError(f"secret file '{path}' is too long")
    return _first_line(raw, f"secret file '{path}'")


def find_secret(
    name: str, environment: Mapping[str, str], *, credential_name: str = ""
) -> Secret | None:
    """A secret that the environment holds or leads to; None if it says nothing of it.

    In this order: the variable `name` itself; a file that ``name_FILE`` names, as the client of
    the original has it; a systemd credential.

    Args:
        credential_name: of a credential given to our unit; empty for none.

    Raises:
        PbsError: the environment names a file that cannot be used.
    """
    if name in environment:
        return _first_line(environment[name].encode(errors="surrogateescape"), name)
    if path := environment.get(f"{name}_FILE"):
        return read_secret_file(path)
    directory = environment.get(_CREDENTIALS_DIRECTORY)
    if directory and credential_name:
        path = os.path.join(directory, credential_name)
        if os.path.exists(path) and not _is_blank(path):
            return read_secret_file(path)
    return None


def _is_blank(path: str) -> bool:
    """Whether a credential is the default of its unit, whose operator gave it none."""
    with open(path, "rb") as source:
        return not source.read(SECRET_BYTES_MAX).strip()


def _first_line(raw: bytes, what: str) -> Secret:
    # A line is never quoted in an error: it is the secret.
    line = raw.split(b"\n", 1)[0].rstrip(b"\r")
    if not line:
        raise PbsError(f"{what} is empty")
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise PbsError(f"{what} is no UTF-8 text") from None
    if not text.isprintable():
        raise PbsError(f"{what} holds control characters")
    return Secret(text)
