"""What the options say of hook scripts, retention, notes and protection, for one job.

Owns whose word counts among the command line, the storage and vzdump.conf, and what means nothing
where the backup goes. Carrying it out is left to the engine. Source: host behaviour, sections 1.3,
2.1, 2.2 and 2.6.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.formats.storage_config import StorageSection, parse_storage_config
from vzdump_qemu.formats.vzdump_conf import CONF_PATH
from vzdump_qemu.node.layout import NodeLayout
from vzdump_qemu.plan.hook_script import check_hook_script
from vzdump_qemu.plan.options import BackupOptions, HookOptions, KeepOptions
from vzdump_qemu.plan.retention_rule import (
    NO_PROTECTED_LIMIT,
    RetentionSource,
    resolve_retention,
)

_SECONDS_PER_MINUTE = 60
_SCRIPT_TIMEOUT_DEFAULT = 60
_CLUSTER_NAME = re.compile(rb"^\s*cluster_name:\s*(\S+)", re.MULTILINE)
_POOL_SEPARATORS = re.compile(r"[\s,;]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepSettings:
    """What was found out, and a line for each setting that is not followed."""

    keep: KeepOptions
    warnings: tuple[str, ...]


def make_hook_options(merged: Mapping[str, Any]) -> HookOptions:
    """The script that is to be called. Raises ConfigError for one that could not be."""
    script = merged.get("script", "")
    if script:
        check_hook_script(
            script, is_file=os.path.isfile(script), is_executable=os.access(script, os.X_OK)
        )
    minutes = merged.get("script-timeout", _SCRIPT_TIMEOUT_DEFAULT)
    return HookOptions(script=script, timeout_s=float(minutes * _SECONDS_PER_MINUTE))


def make_keep_options(
    merged: Mapping[str, Any],
    given: Mapping[str, Any],
    options: BackupOptions,
    layout: NodeLayout | None,
) -> KeepSettings:
    """What becomes of backups at the target of these options.

    Args:
        merged: command line and file together; what is not `given` is the file's.
        layout: of the node; None for a VM known by its sockets, whose target is no storage.
    Raises:
        ConfigError: a rule that counts cannot be read.
    """
    storage_id = options.target.storage_id
    section = _find_section(layout, storage_id) if layout is not None and storage_id else None
    of_file = {name: value for name, value in merged.items() if name not in given}
    sources = [_read_source("command line", given)]
    if section is not None:
        sources.append(retention_of_storage(section))
    sources.append(_read_source(f"options in '{CONF_PATH}'", of_file))
    settings = resolve_retention(sources, remove=merged.get("remove", True))
    keep = KeepOptions(
        retention=settings,
        protected=bool(merged.get("protected", False)),
        protected_max=_protected_max(section),
        notes_template=merged.get("notes-template", ""),
        cluster_name=_read_cluster_name(layout),
    )
    has_marks = storage_id or options.target.pbs is not None
    dropped = () if has_marks else _without_storage(given)
    return KeepSettings(keep=keep, warnings=(*settings.warnings, *dropped))


def _without_storage(given: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(
        f"option '{name}' has no effect without a storage"
        for name in ("notes-template", "protected")
        if given.get(name)
    )


def _read_source(place: str, values: Mapping[str, Any]) -> RetentionSource:
    return RetentionSource(
        place=place, prune_backups=values.get("prune-backups"), maxfiles=values.get("maxfiles")
    )


def retention_of_storage(section: StorageSection) -> RetentionSource:
    """What a storage says about retention."""
    return read_retention_source(
        "storage configuration",
        section.options.get("prune-backups"),
        section.options.get("maxfiles"),
    )


def read_retention_source(
    place: str, prune_backups: str | None, maxfiles: str | None
) -> RetentionSource:
    """What a place says, from its texts; a number that is none means all."""
    is_number = maxfiles is not None and maxfiles.isdecimal()
    return RetentionSource(
        place=place,
        prune_backups=prune_backups,
        maxfiles=int(maxfiles or 0) if is_number else None,
    )


def _find_section(layout: NodeLayout, storage_id: str) -> StorageSection | None:
    """None if there is no such storage, which is told when it is activated."""
    raw = read_if_present(layout.storage_config)
    return parse_storage_config(raw).find(storage_id)


def _protected_max(section: StorageSection | None) -> int:
    text = section.options.get("max-protected-backups", "") if section is not None else ""
    return int(text) if re.fullmatch(r"-?[0-9]+", text) else NO_PROTECTED_LIMIT


def _read_cluster_name(layout: NodeLayout | None) -> str:
    if layout is None:
        return ""
    raw = read_if_present(os.path.join(layout.pve_directory, "corosync.conf"))
    found = _CLUSTER_NAME.search(raw)
    return found[1].decode("utf-8", errors="replace") if found else ""


def read_pool(layout: NodeLayout, pool: str) -> frozenset[int]:
    """VMIDs of the members of a resource pool, wherever they live.

    Raises: ConfigError if there is no such pool.
    """
    raw = read_if_present(os.path.join(layout.pve_directory, "user.cfg"))
    for line in raw.decode("utf-8", errors="replace").splitlines():
        kind, _, rest = line.partition(":")
        name, _, rest = rest.partition(":")
        if kind.strip() == "pool" and name == pool:
            _, _, members = rest.partition(":")
            members = members.partition(":")[0]
            return frozenset(
                int(word) for word in _POOL_SEPARATORS.split(members) if word.isdecimal()
            )
    raise ConfigError(
        f"pool '{pool}' does not exist", hint="the pools of a cluster are under Datacenter"
    )


def read_if_present(path: str) -> bytes:
    """A file of the node, empty where there is none. Raises ConfigError."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ConfigError(f"unable to read '{path}' - {error.strerror}") from error
