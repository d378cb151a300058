"""Which backup a word on the command line means: an archive's path, or a backup at a server.

Owns the names of backups at servers (``STORAGE:backup/vm/100/TIME``, ``vm/100/TIME``,
``vm/100/latest``) and the options that say which server is meant. Source: PBS formats, section 1;
host behaviour, sections 5.2 and 5.8.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

import click

from vzdump_qemu.cli.server_target import ServerWords, make_server_target
from vzdump_qemu.errors import ConfigError, PbsError
from vzdump_qemu.formats.pbs import BackupGroup, BackupType
from vzdump_qemu.formats.pbs.times import parse_utc
from vzdump_qemu.node.folder_node import find_layout
from vzdump_qemu.node.storage_sections import StorageSections
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.stores.archive_file import ArchiveFile
from vzdump_qemu.stores.stored_backup import StoredBackup
from vzdump_qemu.stores.system import SystemClock

BACKUP_METAVAR: Final = "BACKUP"
"""An archive's path, ``-`` for standard input, or the name of a backup at a server."""

_REPOSITORY_HELP: Final = "a backup server.  [env: PBS_REPOSITORY]"
_FINGERPRINT_HELP: Final = "of its certificate.  [env: PBS_FINGERPRINT]"
_LATEST: Final = "latest"
_VOLUME_ID = re.compile(r"([A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9]):backup/((?:vm|ct|host)/.*)")
_BACKUP_PATH = re.compile(r"(?:vm|ct|host)/[^/]+/(?:latest|\d{4}-\d\d-\d\dT[^/]+)")
_Decorated = Callable[..., Any]


def server_options(command: _Decorated) -> _Decorated:
    """Give a command the options that name a server, as one argument `words`."""

    @click.option("--repository", default="", metavar="REPO", help=_REPOSITORY_HELP)
    @click.option("--ns", default="", metavar="NS", help="namespace at the server.")
    @click.option("--fingerprint", default="", metavar="FP", help=_FINGERPRINT_HELP)
    @wraps(command)
    def with_words(
        *args: Any, repository: str, ns: str, fingerprint: str, key_path: str = "", **others: Any
    ) -> Any:
        words = ServerWords(
            repository=repository, namespace=ns, key_path=key_path, fingerprint=fingerprint
        )
        return command(*args, words=words, **others)

    return with_words


def key_option(command: _Decorated) -> _Decorated:
    """Give a command that has `server_options` the key as well."""
    return click.option(
        *("--keyfile", "key_path"), default="", metavar="FILE", help="the key of encrypted backups."
    )(command)


def node_options(command: _Decorated) -> _Decorated:
    """Give a command `--root` and `--storage`, which name a server that is a node's storage."""
    command = click.option(
        "--storage", "storage_id", default="", metavar="ID", help="a backup server of the node."
    )(command)
    return click.option(
        "--root",
        default="/",
        type=click.Path(exists=True, file_okay=False),
        metavar="DIR",
        help="the node: / for this host, or a lab.  [default: /]",
    )(command)


def find_backup(
    name: str, *, root: str = "/", storage_id: str = "", words: ServerWords
) -> StoredBackup:
    """The backup that is meant; nothing is opened yet.

    Args:
        storage_id: where a name without a storage is looked up; empty for by `words`.
    Raises:
        ConfigError: it was said twice or not at all where it is, or the name cannot be.
        StorageError: the storage cannot be used.
    """
    volume_id = _VOLUME_ID.fullmatch(name)
    if volume_id is not None:
        if storage_id not in ("", volume_id[1]):
            raise ConfigError(f"'{name}' is not in storage '{storage_id}'")
        return _at_server(volume_id[2], name, storage_target(root, volume_id[1], words))
    if storage_id:
        return _at_server(name, name, storage_target(root, storage_id, words))
    if words.repository or (_BACKUP_PATH.fullmatch(name) and not os.path.exists(name)):
        return _at_server(name, name, make_server_target(words, os.environ))
    return ArchiveFile(name)


def storage_target(root: str, storage_id: str, words: ServerWords) -> PbsTarget:
    """The server of a node's storage.

    Raises:
        ConfigError: no node, or something was named that the storage has by itself.
        StorageError: there is no such storage, it is no server, or a secret of it is missing.
    """
    named = {
        "repository": words.repository,
        "ns": words.namespace,
        "keyfile": words.key_path,
        "fingerprint": words.fingerprint,
    }
    for option, text in named.items():
        if text:
            raise ConfigError(
                f"cannot use option '{option}' with storage '{storage_id}'",
                hint="a storage has its own, in storage.cfg and beside it",
            )
    layout = find_layout(root)
    sections = StorageSections(
        path=layout.storage_config,
        secret_directory=layout.secret_directory,
        node_name=layout.node_name,
    )
    target = sections.backup_server(storage_id, for_reading=True)
    if target is None:
        raise ConfigError(
            f"storage '{storage_id}' is no backup server",
            hint="an archive in a file is named by its path",
        )
    return target


def _at_server(path: str, name: str, target: PbsTarget) -> StoredBackup:
    group_text, _, time_text = path.rpartition("/")
    try:
        group = BackupGroup.parse(group_text)
        time_s = None if time_text == _LATEST else parse_utc(time_text)
    except PbsError as error:
        raise ConfigError(
            f"not the name of a backup: {name[:100]!a}",
            hint="vm/ID/TIME, vm/ID/latest or STORAGE:backup/vm/ID/TIME; 'list' shows them",
        ) from error
    if group.backup_type is not BackupType.VM:
        raise ConfigError(f"'{name}' is no backup of a VM")
    # Loaded late: an archive is read without what a server needs.
    from vzdump_qemu.stores.pbs.server_backup import ServerBackup

    return ServerBackup(target, group, time_s, name=name, clock=SystemClock())
