"""What a node holds, for completion: VMs, storages, pools, jobs, archives.

Owns short looks at its files; a file that cannot be read holds nothing. Nothing of the engine is
loaded: a shell waits for each answer. Source: host behaviour, sections 2.8, 3.1, 3.2 and 5.1.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import click

from vzdump_qemu.cli.verbs import VERB_HELP
from vzdump_qemu.formats.storage_config import FILE_TYPES, parse_storage_config
from vzdump_qemu.formats.storage_volumes import content_directory

_CONFIG_NAME = re.compile(r"([1-9][0-9]{2,8})\.conf")
_VM_NAME = re.compile(r"^name: *(\S+)", re.MULTILINE)
_POOL = re.compile(r"^pool:([^:\n]+):", re.MULTILINE)
# A name stands near the top; what follows may be long.
_CONFIG_BYTES_MAX = 64 * 1024
# More is no choice any more, and a shell waits.
_NAMED_MAX = 1000


def list_vms(root: str) -> Iterator[tuple[str, str]]:
    """VMIDs of the node with the VMs' names, ascending."""
    directory = _below(root, "etc/pve/qemu-server")
    found = [match[1] for name in _names(directory) if (match := _CONFIG_NAME.fullmatch(name))]
    for index, vmid in enumerate(sorted(found, key=int)):
        text = _read(os.path.join(directory, f"{vmid}.conf")) if index < _NAMED_MAX else ""
        name = _VM_NAME.search(text)
        yield vmid, name[1] if name else ""


def list_storages(root: str) -> Iterator[tuple[str, str]]:
    """Storages of the node that may hold backups, with their types."""
    raw = _read(_below(root, "etc/pve/storage.cfg")).encode()
    for section in parse_storage_config(raw).sections.values():
        if "backup" in section.content and not section.disabled:
            yield section.storage_id, section.type


def list_pools(root: str) -> Iterator[tuple[str, str]]:
    """Resource pools of the cluster."""
    for match in _POOL.finditer(_read(_below(root, "etc/pve/user.cfg"))):
        yield match[1], ""


def list_jobs(root: str) -> Iterator[tuple[str, str]]:
    """Jobs that ``--job`` knows, with their comments."""
    # Loaded late: no other question needs it.
    from vzdump_qemu.cli.scheduled_job import list_jobs as list_all
    from vzdump_qemu.cli.scheduled_job import read_jobs

    for job in list_all(read_jobs(os.path.expanduser(root))):
        yield job.job_id, job.comment


def list_archives(root: str) -> Iterator[tuple[str, str]]:
    """Paths of the archives in the node's directory storages, newest first."""
    raw = _read(_below(root, "etc/pve/storage.cfg")).encode()
    paths: list[str] = []
    for section in parse_storage_config(raw).sections.values():
        if section.type in FILE_TYPES and "backup" in section.content and not section.disabled:
            directory = content_directory(section, "backup", _below(root, "var/lib/vz"))
            names = [name for name in _names(directory) if name.startswith("vzdump-qemu-")]
            paths += [os.path.join(directory, name) for name in names if ".vma" in name]
    for path in sorted(paths, key=lambda path: path.rpartition("-20")[2], reverse=True):
        if path.endswith((".vma", ".vma.zst", ".vma.gz", ".vma.lzo")):
            yield path, ""


def verb_help(group: click.Group, verb: str, context: click.Context) -> str:
    """The short help of a verb; of the whole command's verbs without loading them."""
    if context.parent is None or group is context.parent.command:
        return VERB_HELP.get(verb, "")
    command = group.get_command(context, verb)
    return command.get_short_help_str(60) if command is not None else ""


def _below(root: str, path: str) -> str:
    return os.path.join(os.path.expanduser(root), path)


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_CONFIG_BYTES_MAX)
    except OSError:
        return ""
