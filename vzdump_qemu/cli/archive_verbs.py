"""The verbs that look at archives: ``list``, ``show``, ``verify``, ``extract``.

Owns what is printed and the exit codes; reading is left to `stores.archive_reading`. Source: VMA
format, sections 6 to 8; host behaviour, section 2.8.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click

from vzdump_qemu.cli.reporting import json_option, print_json, print_table
from vzdump_qemu.cli.signals import interrupted_by_signals
from vzdump_qemu.errors import ConfigError, VmaError
from vzdump_qemu.formats.vma import DeviceTally, VmaDevice, VmaHeader
from vzdump_qemu.plan.names import is_archive_name, parse_standard_name, protection_name
from vzdump_qemu.stores.archive_reading import (
    VerifyReport,
    extract_archive,
    list_archive,
    verify_archive,
)
from vzdump_qemu.units import render_bytes

_LOCAL_DUMP_DIRECTORY = "var/lib/vz/dump"
_VMA_BLOCK_BYTES = 4096


@click.command("list")
@click.argument("place", metavar="LAB-OR-DIR", type=click.Path(exists=True, file_okay=False))
@json_option
def list_command(place: str, *, as_json: bool) -> None:
    """List the archives of a lab or a directory, oldest first."""
    found = [_describe_file(path) for path in _archive_paths(place)]
    found.sort(key=lambda row: (row["created"], row["path"]))
    if as_json:
        print_json(found)
        return
    rows = [
        (
            str(row["vmid"] or "-"),
            row["created"],
            render_bytes(row["size_bytes"]),
            row["path"] + (" (protected)" if row["protected"] else ""),
        )
        for row in found
    ]
    print_table(("VMID", "CREATED", "SIZE", "ARCHIVE"), rows)


def dump_directories(place: str) -> tuple[str, ...]:
    """Where archives lie: the dump directories of a node's storages, or the place itself."""
    from vzdump_qemu.cli.lab_storages import read_directory_storages

    if not os.path.isdir(os.path.join(place, "etc/pve")):
        return (place,)
    return tuple(storage.dump_directory for storage in read_directory_storages(place))


def _archive_paths(place: str) -> Iterator[str]:
    for directory in dump_directories(place):
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


@click.command("show")
@click.argument("archive_path", metavar="ARCHIVE|-")
@click.option("--config", "config_name", metavar="NAME", help="print that stored file instead.")
@json_option
def show_command(archive_path: str, config_name: str | None, *, as_json: bool) -> None:
    """Show what the header of an archive says; the data is not looked at."""
    summary = list_archive(archive_path)
    if config_name is not None:
        click.echo(_config_text(summary.header, config_name), nl=False)
        return
    facts = {
        "compression": summary.compression.value,
        **_header_facts(summary.header),
        "devices": [_device_facts(device) for device in summary.header.devices],
    }
    if as_json:
        print_json(facts)
        return
    _print_header(facts)
    rows = [(row["name"], str(row["size_bytes"])) for row in facts["devices"]]
    print_table(("DISK", "BYTES"), rows)


def _config_text(header: VmaHeader, name: str) -> str:
    for config in header.configs:
        if config.name == name:
            return config.data.decode("utf-8", "replace")
    names = ", ".join(config.name for config in header.configs)
    raise ConfigError(f"archive contains no file '{name}'", hint=f"it has {names or 'none'}")


def _header_facts(header: VmaHeader) -> dict[str, Any]:
    try:
        created = datetime.fromtimestamp(header.ctime_s, UTC).isoformat()
    except (OverflowError, ValueError, OSError):
        created = str(header.ctime_s)
    return {
        "uuid": str(uuid.UUID(bytes=header.uuid)),
        "created": created,
        "configs": [
            {"name": config.name, "size_bytes": len(config.data)} for config in header.configs
        ],
    }


def _device_facts(device: VmaDevice) -> dict[str, Any]:
    return {"name": device.name, "size_bytes": device.size_bytes}


def _tally_facts(tally: DeviceTally) -> dict[str, Any]:
    return {
        **_device_facts(tally.device),
        "vma_cluster_count": tally.vma_cluster_count,
        "stored_bytes": tally.stored_block_count * _VMA_BLOCK_BYTES,
    }


def _print_header(facts: dict[str, Any]) -> None:
    click.echo(f"uuid         {facts['uuid']}")
    click.echo(f"created      {facts['created']}")
    click.echo(f"compression  {facts['compression']}")
    for config in facts["configs"]:
        click.echo(f"file         {config['name']} ({config['size_bytes']} bytes)")


@click.command("verify")
@click.argument("archive_path", metavar="ARCHIVE|-")
@json_option
def verify_command(archive_path: str, *, as_json: bool) -> None:
    """Read an archive to its end and say whether it is whole.

    Exit code 0 means: every cluster of every disk was there once, and all sums were right.
    """
    try:
        report = verify_archive(archive_path)
    except VmaError as error:
        if as_json:
            place = error.offset_bytes
            print_json({"whole": False, "error": error.message, "offset_bytes": place})
        raise VmaError(
            f"{archive_path}: {error.message}{_render_place(error)}",
            offset_bytes=error.offset_bytes,
            hint=error.hint,
        ) from error
    _print_report(report, as_json=as_json, verdict=f"{archive_path}: whole")


def _render_place(error: VmaError) -> str:
    if error.offset_bytes is None or "at byte" in error.message:
        return ""
    return f" (at byte {error.offset_bytes} of the uncompressed stream)"


def _print_report(report: VerifyReport, *, as_json: bool, verdict: str) -> None:
    facts = {
        "whole": True,
        "compression": report.compression.value,
        **_header_facts(report.header),
        "stream_bytes": report.stream_bytes,
        "extent_count": report.extent_count,
        "devices": [_tally_facts(tally) for tally in report.tallies],
    }
    if as_json:
        print_json(facts)
        return
    rows = [
        (
            row["name"],
            str(row["size_bytes"]),
            str(row["vma_cluster_count"]),
            str(row["stored_bytes"]),
        )
        for row in facts["devices"]
    ]
    print_table(("DISK", "BYTES", "CLUSTERS", "STORED"), rows)
    click.echo(verdict)


@click.command("extract")
@click.argument("archive_path", metavar="ARCHIVE|-")
@click.argument("directory", metavar="DIR")
@click.option("--disk", "disks", multiple=True, metavar="NAME", help="only this disk; repeatable.")
@json_option
def extract_command(
    archive_path: str, directory: str, *, disks: tuple[str, ...], as_json: bool
) -> None:
    """Write disks as sparse files disk-NAME.raw, and the stored files, into a new folder."""
    wanted = frozenset(disks) if disks else None
    with interrupted_by_signals():
        report = extract_archive(archive_path, directory, disks=wanted)
    _print_report(report, as_json=as_json, verdict=f"{archive_path}: extracted to {directory}")
