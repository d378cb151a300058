"""The verb ``list``: the backups of a lab, a directory or a backup server.

Owns where to look and what is printed. Source: host behaviour, sections 2.8 and 5.8.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import click

from vzdump_qemu.cli.named_backups import server_options, storage_target
from vzdump_qemu.cli.reporting import json_option, print_json, print_table
from vzdump_qemu.cli.server_target import ServerWords, make_server_target
from vzdump_qemu.errors import ConfigError
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.plan.names import is_archive_name, parse_standard_name, protection_name
from vzdump_qemu.units import render_bytes


@click.command("list")
@click.argument(
    "place", metavar="[LAB-OR-DIR]", required=False, type=click.Path(exists=True, file_okay=False)
)
@click.option("--storage", "storage_id", default="", metavar="ID", help="this one of the lab's.")
@server_options
@json_option
def list_command(place: str | None, *, storage_id: str, words: ServerWords, as_json: bool) -> None:
    """List the backups of a lab, a directory or a backup server, oldest first.

    The backup server is that of --repository, or the storage of that id. Without --storage only
    archives in files are listed.
    """
    if words.repository and (place or storage_id):
        raise click.UsageError("repository: option conflicts with a lab, directory or storage")
    found = _find(place, storage_id, words)
    found.sort(key=lambda row: (row["created"], row["path"]))
    if as_json:
        print_json(found)
        return
    rows = [
        (
            str(row["vmid"] or "-"),
            row["created"],
            "unfinished" if row["size_bytes"] is None else render_bytes(row["size_bytes"]),
            row["path"] + (" (protected)" if row["protected"] else ""),
        )
        for row in found
    ]
    print_table(("VMID", "CREATED", "SIZE", "BACKUP"), rows)


def _find(place: str | None, storage_id: str, words: ServerWords) -> list[dict[str, Any]]:
    if storage_id:
        root = place or "/"
        directories = dump_directories(root, storage_id)
        if not directories:
            prefix = f"{storage_id}:backup/"
            return _describe_server(storage_target(root, storage_id, words), prefix)
    elif place is None:
        if not words.is_named(os.environ):
            raise click.UsageError("Missing argument 'LAB-OR-DIR', or option '--repository'.")
        return _describe_server(make_server_target(words, os.environ), "")
    else:
        directories = dump_directories(place)
    return [_describe_file(path) for path in _archive_paths(directories)]


def dump_directories(place: str, storage_id: str = "") -> tuple[str, ...]:
    """Where archives lie: the dump directories of a node's storages, or the place itself.

    Args:
        storage_id: of this storage alone; then empty if it is none of directories.
    """
    from vzdump_qemu.cli.lab_storages import read_directory_storages

    if not storage_id and not os.path.isdir(os.path.join(place, "etc/pve")):
        return (place,)
    return tuple(
        storage.dump_directory
        for storage in read_directory_storages(place)
        if storage_id in ("", storage.storage_id)
    )


def _archive_paths(directories: Sequence[str]) -> Iterator[str]:
    for directory in directories:
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"unable to list '{directory}' - {error.strerror}") from error
        for name in names:
            path = os.path.join(directory, name)
            if is_archive_name(name) and ".vma" in name and os.path.isfile(path):
                yield path


def _describe_file(path: str) -> dict[str, Any]:
    facts = os.stat(path)
    name = parse_standard_name(os.path.basename(path))
    created = name.local_time if name else datetime.fromtimestamp(facts.st_mtime)
    return {
        "path": path,
        "vmid": name.vmid if name else None,
        "created": f"{created:%Y-%m-%d %H:%M:%S}",
        "size_bytes": facts.st_size,
        "protected": os.path.exists(protection_name(path)),
    }


def _describe_server(target: PbsTarget, prefix: str) -> list[dict[str, Any]]:
    # Loaded late: directories are listed without what a server needs.
    from vzdump_qemu.stores.pbs.server_backup import list_server_backups
    from vzdump_qemu.stores.system import SystemClock

    rows: list[dict[str, Any]] = []
    for one in list_server_backups(target, clock=SystemClock()):
        backup_id = one.backup.backup_group.backup_id
        created = datetime.fromtimestamp(one.backup.backup_time_s)
        rows.append(
            {
                "path": f"{prefix}{one.backup.path}",
                "vmid": int(backup_id) if backup_id.isdecimal() else None,
                "created": f"{created:%Y-%m-%d %H:%M:%S}",
                "size_bytes": one.size_bytes,
                "protected": one.is_protected,
                "owner": one.owner,
                "notes": one.notes,
                "verified": one.verify_state,
                "key": str(one.key_fingerprint or ""),
            }
        )
    return rows
