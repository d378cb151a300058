"""Which place of backups the verb ``prune`` was given, and which rule counts there.

Owns the precedence of command line, storage and vzdump.conf. The client of a server is loaded only
for one. Source: host behaviour, section 2.2.
"""

from __future__ import annotations

import asyncio
import os

from vzdump_qemu.api import open_node
from vzdump_qemu.cli.directory_pruning import DirectoryPlace
from vzdump_qemu.cli.keeping import (
    read_if_present,
    read_retention_source,
    retention_of_storage,
)
from vzdump_qemu.cli.named_backups import storage_target
from vzdump_qemu.cli.pruning import FoundRule, PrunePlace, rule_of_command_line
from vzdump_qemu.cli.server_target import ServerWords, make_server_target
from vzdump_qemu.formats.storage_config import parse_storage_config, require_storage
from vzdump_qemu.formats.vzdump_conf import CONF_PATH, VzdumpConf, parse_vzdump_conf
from vzdump_qemu.plan.retention_rule import RetentionSource, resolve_retention


def find_directory(path: str, prune_backups: str) -> DirectoryPlace:
    """A plain directory, with the rule of the command line. Raises ConfigError for the rule."""
    found = rule_of_command_line(prune_backups)
    return DirectoryPlace(directory=path, storage_id="", found=found)


def find_storage(
    root: str, storage_id: str, prune_backups: str | None, words: ServerWords
) -> PrunePlace:
    """A storage of the node below that root.

    Args:
        prune_backups: of the command line; else the storage's own rule counts, then that of
            vzdump.conf.
        words: what else was said of a server, which a storage has by itself.
    Raises:
        ConfigError: no node, or a rule that cannot be read.
        StorageError: no such storage, or not one of backups.
    """
    found, directory = asyncio.run(_look_at_storage(root, storage_id, prune_backups))
    if directory is not None and words == ServerWords():
        return DirectoryPlace(directory=directory, storage_id=storage_id, found=found)
    from vzdump_qemu.cli.server_pruning import ServerPlace

    return ServerPlace(target=storage_target(root, storage_id, words), found=found)


async def _look_at_storage(
    root: str, storage_id: str, prune_backups: str | None
) -> tuple[FoundRule, str | None]:
    """The rule, and the directory of a storage of files."""
    async with open_node(root) as node:
        layout = node.layout
        raw = read_if_present(layout.storage_config)
        section = require_storage(parse_storage_config(raw), storage_id, node=node.name)
        directory = None
        if section.type != "pbs":
            directory = await node.storages.backup_directory(storage_id)
        conf = parse_vzdump_conf(read_if_present(layout.vzdump_config))
    if prune_backups is not None:
        return rule_of_command_line(prune_backups), directory
    settings = resolve_retention([retention_of_storage(section), _of_file(conf)])
    # A rule that was meant and cannot be read must not look like none.
    warnings = (*conf.warnings, *settings.warnings)
    return FoundRule(rule=settings.rule, warnings=warnings), directory


def find_server(words: ServerWords, prune_backups: str) -> PrunePlace:
    """The server of a repository, with the rule of the command line.

    Raises: ConfigError for the rule or the words; PbsError for a password that cannot be had.
    """
    from vzdump_qemu.cli.server_pruning import ServerPlace

    found = rule_of_command_line(prune_backups)
    return ServerPlace(target=make_server_target(words, os.environ), found=found)


def _of_file(conf: VzdumpConf) -> RetentionSource:
    return read_retention_source(
        f"options in '{CONF_PATH}'", conf.options.get("prune-backups"), conf.options.get("maxfiles")
    )
