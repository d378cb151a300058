"""What the verb ``prune`` does: finds the archives, decides, removes.

Owns where the archives lie and which rule counts, of the command line, the storage and
vzdump.conf; the decisions are `plan.retention`'s. Source: host behaviour, sections 2.2 and 2.6
to 2.8.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from vzdump_qemu.api import open_node
from vzdump_qemu.cli.keeping import (
    read_if_present,
    read_retention_source,
    retention_of_storage,
)
from vzdump_qemu.errors import StorageError, TargetError
from vzdump_qemu.formats.storage_config import (
    parse_storage_config,
    require_storage,
)
from vzdump_qemu.formats.vzdump_conf import CONF_PATH, VzdumpConf, parse_vzdump_conf
from vzdump_qemu.plan.retention import (
    RetentionDecision,
    decide_retention,
    local_time_as_named,
    read_entries,
    spare_last_whole,
)
from vzdump_qemu.plan.retention_rule import (
    RetentionRule,
    RetentionSource,
    resolve_retention,
)
from vzdump_qemu.stores.dump_directory import DumpDirectory

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePlace:
    """Where archives lie, and the rule that counts there.

    Attributes:
        storage_id: empty for a plain directory.
        warnings: of the settings that were read.
    """

    directory: str
    storage_id: str
    rule: RetentionRule
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePlan:
    """What becomes of every archive, and what it would give back.

    Attributes:
        freed_bytes: size of all archives that go.
        vmids_without_archives: of those that were asked for.
    """

    decisions: Sequence[RetentionDecision]
    freed_bytes: int
    vmids_without_archives: tuple[int, ...]

    @property
    def going(self) -> tuple[RetentionDecision, ...]:
        """The archives that go."""
        return tuple(decision for decision in self.decisions if not decision.keep)


def find_directory(path: str, prune_backups: str) -> PrunePlace:
    """A plain directory, with the rule of the command line. Raises ConfigError for the rule."""
    return _make_place(path, [_of_command_line(prune_backups)])


def find_storage(root: str, storage_id: str, prune_backups: str | None) -> PrunePlace:
    """A storage of the node below that root.

    Args:
        prune_backups: of the command line; else the storage's own rule counts, then that of
            vzdump.conf.
    Raises:
        ConfigError: no node, or a rule that cannot be read.
        StorageError: no such storage, or not one of files.
    """
    return asyncio.run(_find_storage(root, storage_id, prune_backups))


async def _find_storage(root: str, storage_id: str, prune_backups: str | None) -> PrunePlace:
    async with open_node(root) as node:
        layout = node.layout
        raw = read_if_present(layout.storage_config)
        section = require_storage(parse_storage_config(raw), storage_id, node=node.name)
        if section.type == "pbs":
            raise StorageError(
                f"storage '{storage_id}' is a Proxmox Backup Server, which prunes by itself",
                hint="'proxmox-backup-client prune vm/ID', or a prune job of the server",
            )
        directory = await node.storages.backup_directory(storage_id)
        conf = parse_vzdump_conf(read_if_present(layout.vzdump_config))
    if prune_backups is not None:
        return _make_place(directory, [_of_command_line(prune_backups)], storage_id=storage_id)
    place = _make_place(
        directory, [retention_of_storage(section), _of_file(conf)], storage_id=storage_id
    )
    # A rule that was meant and cannot be read must not look like none.
    return replace(place, warnings=(*conf.warnings, *place.warnings))


def _make_place(
    directory: str, sources: Sequence[RetentionSource], *, storage_id: str = ""
) -> PrunePlace:
    settings = resolve_retention(sources)
    return PrunePlace(
        directory=directory,
        storage_id=storage_id,
        rule=settings.rule,
        warnings=settings.warnings,
    )


def _of_command_line(prune_backups: str) -> RetentionSource:
    return RetentionSource(place="command line", prune_backups=prune_backups)


def _of_file(conf: VzdumpConf) -> RetentionSource:
    return read_retention_source(
        f"options in '{CONF_PATH}'", conf.options.get("prune-backups"), conf.options.get("maxfiles")
    )


def plan_pruning(place: PrunePlace, vmids: Collection[int], *, verify: bool) -> PrunePlan:
    """Decide for the archives of a place; nothing is changed.

    Args:
        vmids: only these VMs; all if empty.
        verify: read archives to their end before they count as whole, not only their beginning.
    Raises:
        ConfigError, TargetError: the directory is missing or cannot be read.
    """
    directory = DumpDirectory(place.directory)
    stored = directory.list_archives()
    entries = read_entries(
        (item.name for item in stored),
        protected=frozenset(item.name for item in stored if item.is_protected),
    )
    if vmids:
        entries = [entry for entry in entries if entry.vmid in vmids]
    decisions = spare_last_whole(
        decide_retention(entries, place.rule, local_time=local_time_as_named),
        is_whole=directory.is_whole if verify else directory.has_header,
    )
    going = {decision.name for decision in decisions if not decision.keep}
    return PrunePlan(
        decisions=decisions,
        freed_bytes=sum(item.size_bytes for item in stored if item.name in going),
        vmids_without_archives=tuple(sorted(set(vmids) - {entry.vmid for entry in entries})),
    )


def remove_archives(place: PrunePlace, plan: PrunePlan, *, tell: Tell, complain: Tell) -> int:
    """Remove what goes, oldest first; one that cannot be removed does not keep the others.

    Args:
        tell: gets a line before each removal.
        complain: gets a line for each failure and each side file that stayed.
    Returns:
        How many were removed.
    Raises:
        TargetError: at the end, if any could not be removed.
    """
    directory = DumpDirectory(place.directory)
    removed_count = 0
    for decision in reversed(plan.going):
        label = f"{place.storage_id}:backup/{decision.name}"
        if place.storage_id:
            tell(f"removing backup '{label}'")
        else:
            label = os.path.join(place.directory, decision.name)
            tell(f"delete old backup '{label}'")
        try:
            for warning in directory.remove(decision.name):
                complain(f"WARN: {warning}")
        except TargetError as error:
            complain(f"ERROR: error when removing backup '{label}' - {error}")
        else:
            removed_count += 1
    if removed_count < len(plan.going):
        raise TargetError(
            "error pruning backups - check log",
            hint="mend what the lines above name and run the same command again",
        )
    return removed_count
