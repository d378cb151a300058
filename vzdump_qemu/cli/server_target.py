"""A backup server as the command line and the environment name it.

Owns which of both counts, and where the password comes from: never from an argument, which every
user of the host can read. Servers that are storages of a node are left to `node`. Source: host
behaviour, section 5.8; the variables are those of the platform's own client.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from vzdump_qemu.errors import ConfigError, PbsError
from vzdump_qemu.formats.pbs import Fingerprint, Namespace, Repository
from vzdump_qemu.pbs_target import PbsTarget

REPOSITORY_VARIABLE = "PBS_REPOSITORY"
FINGERPRINT_VARIABLE = "PBS_FINGERPRINT"
PASSWORD_VARIABLE = "PBS_PASSWORD"
_PASSWORD_CREDENTIAL = "proxmox-backup-client.password"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerWords:
    """What was said of a server; every word is empty where nothing was."""

    repository: str = ""
    namespace: str = ""
    key_path: str = ""
    master_key_path: str = ""
    fingerprint: str = ""

    def is_named(self, environment: Mapping[str, str]) -> bool:
        """Whether the words or the environment say which server is meant."""
        return bool(self.repository or environment.get(REPOSITORY_VARIABLE))


def make_server_target(words: ServerWords, environment: Mapping[str, str]) -> PbsTarget:
    """The server that is meant, with the password that the environment holds or leads to.

    Raises:
        ConfigError: no server or no password was named, or a word cannot be.
        PbsError: the environment names a file with the password that cannot be used.
    """
    repository_text = words.repository or environment.get(REPOSITORY_VARIABLE, "")
    if not repository_text:
        raise ConfigError(
            "it was not said which backup server is meant",
            hint=f"use --repository REPO or {REPOSITORY_VARIABLE}",
        )
    if words.master_key_path and not words.key_path:
        raise ConfigError(
            "option 'master-pubkey-file' needs option 'keyfile'",
            hint="the master key wraps the key that encrypts",
        )
    fingerprint = words.fingerprint or environment.get(FINGERPRINT_VARIABLE, "")
    # Read late: it takes longer to load than most commands take.
    from vzdump_qemu.stores.pbs.key_loading import find_passphrase
    from vzdump_qemu.stores.pbs.secret import find_secret

    try:
        repository = Repository.parse(repository_text)
        namespace = Namespace.parse(words.namespace)
        pin = Fingerprint.parse(fingerprint) if fingerprint else None
    except PbsError as error:
        raise ConfigError(error.message, hint=error.hint) from error
    password = find_secret(PASSWORD_VARIABLE, environment, credential_name=_PASSWORD_CREDENTIAL)
    if password is None:
        raise ConfigError(
            f"no password given for '{repository.render()}'",
            hint=f"set {PASSWORD_VARIABLE}, or {PASSWORD_VARIABLE}_FILE to the path of a file",
        )
    return PbsTarget(
        repository=repository,
        password=password,
        namespace=namespace,
        fingerprint=pin,
        key_path=_absolute(words.key_path),
        key_passphrase=find_passphrase(environment) if words.key_path else None,
        master_key_path=_absolute(words.master_key_path),
    )


def _absolute(path: str) -> str:
    return os.path.abspath(path) if path else ""
