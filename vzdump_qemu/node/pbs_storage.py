"""Backup servers among the node's storages: their sections, and the secrets beside them.

Owns where the secrets lie and what the choice of keys means; the grammar of the file is
`formats.storage_config`. Source: host behaviour, sections 1.10 ("encryption decision") and 5.8.
"""

from __future__ import annotations

import os

from vzdump_qemu.errors import PbsError, StorageError
from vzdump_qemu.formats.pbs import Fingerprint, Namespace, Repository
from vzdump_qemu.formats.pbs.repository import DEFAULT_AUTH_ID, DEFAULT_PORT, AuthId
from vzdump_qemu.formats.storage_config import StorageSection
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.secret import Secret

TYPE = "pbs"
_SECRET_BYTES_MAX = 4096
_IGNORED_MASTER_KEY = (
    "backup target storage is configured with master-key, but no encryption key set! "
    "Ignoring master key settings and creating unencrypted backup."
)


def read_pbs_target(
    section: StorageSection, secret_directory: str, *, for_reading: bool = False
) -> PbsTarget:
    """The server of a section of type ``pbs``.

    Args:
        secret_directory: ``etc/pve/priv/storage`` of the node.
        for_reading: nothing will be sent: a missing key hinders who deciphers, not who lists.
    Raises:
        StorageError: something is missing or cannot be. Nothing is sent in plain for want of a
            key that was configured.
    """
    options = section.options
    for name in ("server", "datastore"):
        if not options.get(name):
            raise StorageError(f"no {name} given")
    stem = os.path.join(secret_directory, section.storage_id)
    key_path, master_key_path, warning = _choose_keys(section, stem, for_reading=for_reading)
    user = options.get("username")
    fingerprint = options.get("fingerprint")
    try:
        return PbsTarget(
            storage_id=section.storage_id,
            repository=Repository(
                datastore=options["datastore"],
                host=options["server"].removeprefix("[").removesuffix("]"),
                port=int(options.get("port", DEFAULT_PORT)),
                auth_id=AuthId.parse(user) if user else DEFAULT_AUTH_ID,
            ),
            password=_read_password(f"{stem}.pw"),
            namespace=Namespace.parse(options.get("namespace", "")),
            fingerprint=Fingerprint.parse(fingerprint) if fingerprint else None,
            key_path=key_path,
            key_passphrase=_find_passphrase() if key_path else None,
            master_key_path=master_key_path,
            warning=warning,
        )
    except (PbsError, ValueError) as error:
        hint = error.hint if isinstance(error, PbsError) else ""
        raise StorageError(f"storage '{section.storage_id}': {error}", hint=hint) from error


def _choose_keys(section: StorageSection, stem: str, *, for_reading: bool) -> tuple[str, str, str]:
    """Paths of the key and of the master key, and a warning; empty for none."""
    key_path, master_path = f"{stem}.enc", f"{stem}.master.pem"
    has_key, has_master = os.path.exists(key_path), os.path.exists(master_path)
    if for_reading:
        return key_path if has_key else "", "", ""
    if has_key:
        if has_master:
            return key_path, master_path, ""
        if section.options.get("master-pubkey"):
            raise StorageError("master public key configured but no key file found")
        return key_path, "", ""
    configured = section.options.get("encryption-key")
    if configured:
        raise StorageError(
            f"encryption configured ('{configured}') but no encryption key file found!",
            hint=f"put the key back to '{key_path}'; nothing is sent in plain instead",
        )
    return "", "", _IGNORED_MASTER_KEY if has_master else ""


def _find_passphrase() -> Secret | None:
    """Of a key file that is protected by one: a storage has no place for it."""
    # Read late: it takes longer to load than most commands take.
    from vzdump_qemu.stores.pbs.key_loading import find_passphrase

    return find_passphrase(os.environ)


def _read_password(path: str) -> Secret:
    """The first line; a secret that is no UTF-8 is taken byte by byte."""
    try:
        with open(path, "rb") as file:
            line = file.read(_SECRET_BYTES_MAX).partition(b"\n")[0].rstrip(b"\r")
    except OSError as error:
        raise StorageError(
            f"unable to read the password file '{path}' - {error.strerror}",
            hint="its first line is the password or the API token's secret",
        ) from error
    try:
        return Secret(line.decode())
    except UnicodeDecodeError:
        return Secret(line.decode("latin-1"))
