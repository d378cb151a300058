"""The verbs that look at backups: ``show``, ``verify``, ``extract``.

Owns what is printed and the exit codes; which backup is meant is `named_backups`'s, reading is
left to `stores`. Source: VMA format, sections 6 to 8; PBS formats, sections 5 and 8.
"""

from __future__ import annotations

from typing import Any

import click

from vzdump_qemu.cli.named_backups import (
    BACKUP_METAVAR,
    find_backup,
    key_option,
    node_options,
    server_options,
)
from vzdump_qemu.cli.reporting import json_option, print_json, print_table
from vzdump_qemu.cli.server_target import ServerWords
from vzdump_qemu.cli.signals import interrupted_by_signals
from vzdump_qemu.errors import PbsCorrupt, VmaError
from vzdump_qemu.stores.extraction import extract_backup
from vzdump_qemu.stores.stored_backup import BackupProof, BackupSummary, StoredDisk

_HEADINGS = {
    "vma_cluster_count": "CLUSTERS",
    "stored_bytes": "STORED",
    "chunk_count": "CHUNKS",
    "zero_chunk_count": "ZERO",
    "fetched_chunk_count": "FETCHED",
}
_LABEL_LETTERS = 11


@click.command("show")
@click.argument("backup_name", metavar=BACKUP_METAVAR)
@click.option("--config", "config_name", metavar="NAME", help="print that stored file instead.")
@node_options
@key_option
@server_options
@json_option
def show_command(
    backup_name: str,
    config_name: str | None,
    *,
    root: str,
    storage_id: str,
    words: ServerWords,
    as_json: bool,
) -> None:
    """Show what a backup says of itself; the data is not looked at.

    BACKUP is an archive's path (- for standard input), STORAGE:backup/vm/ID/TIME, or vm/ID/TIME
    or vm/ID/latest at the backup server of --storage or --repository.
    """
    backup = find_backup(backup_name, root=root, storage_id=storage_id, words=words)
    if config_name is not None:
        click.echo(backup.read_config(config_name).decode("utf-8", "replace"), nl=False)
        return
    summary = backup.summarize()
    if as_json:
        devices = [_disk_facts(disk) for disk in summary.disks]
        print_json({**_summary_facts(summary), "devices": devices})
        return
    for label, text in summary.facts.items():
        click.echo(f"{label:<{_LABEL_LETTERS}}  {_in_one_line(text)}")
    for config in summary.configs:
        click.echo(f"{'file':<{_LABEL_LETTERS}}  {config.name} ({config.size_bytes} bytes)")
    print_table(("DISK", "BYTES"), [(disk.name, str(disk.size_bytes)) for disk in summary.disks])


@click.command("verify")
@click.argument("backup_name", metavar=BACKUP_METAVAR)
@node_options
@key_option
@server_options
@json_option
def verify_command(
    backup_name: str, *, root: str, storage_id: str, words: ServerWords, as_json: bool
) -> None:
    """Read a backup to its end and say whether it is whole.

    BACKUP is named as for show. Exit code 0 means: all data of every disk was there, and all
    sums were right.
    """
    backup = find_backup(backup_name, root=root, storage_id=storage_id, words=words)
    try:
        with interrupted_by_signals():
            proof = backup.verify()
    except VmaError as error:
        place = error.offset_bytes
        if as_json:
            print_json({"whole": False, "error": error.message, "offset_bytes": place})
        raise VmaError(
            f"{backup.name}: {error.message}{_render_place(error)}",
            offset_bytes=place,
            hint=error.hint,
        ) from error
    except PbsCorrupt as error:
        if as_json:
            print_json({"whole": False, "error": error.message})
        raise PbsCorrupt(f"{backup.name}: {error.message}", hint=error.hint) from error
    _print_proof(proof, as_json=as_json, verdict=f"{backup.name}: whole")


@click.command("extract")
@click.argument("backup_name", metavar=BACKUP_METAVAR)
@click.argument("directory", metavar="DIR")
@click.option("--disk", "disks", multiple=True, metavar="NAME", help="only this disk; repeatable.")
@node_options
@key_option
@server_options
@json_option
def extract_command(
    backup_name: str,
    directory: str,
    *,
    disks: tuple[str, ...],
    root: str,
    storage_id: str,
    words: ServerWords,
    as_json: bool,
) -> None:
    """Write disks as sparse files disk-NAME.raw, and the stored files, into a new folder.

    BACKUP is named as for show.
    """
    backup = find_backup(backup_name, root=root, storage_id=storage_id, words=words)
    wanted = frozenset(disks) if disks else None
    with interrupted_by_signals():
        proof = extract_backup(backup, directory, disks=wanted)
    _print_proof(proof, as_json=as_json, verdict=f"{backup.name}: extracted to {directory}")


def _summary_facts(summary: BackupSummary) -> dict[str, Any]:
    return {
        **summary.facts,
        "configs": [
            {"name": config.name, "size_bytes": config.size_bytes} for config in summary.configs
        ],
    }


def _disk_facts(disk: StoredDisk) -> dict[str, Any]:
    return {"name": disk.name, "size_bytes": disk.size_bytes}


def _in_one_line(text: str) -> str:
    """Notes are anybody's: nothing of them may upset a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _render_place(error: VmaError) -> str:
    if error.offset_bytes is None or "at byte" in error.message:
        return ""
    return f" (at byte {error.offset_bytes} of the uncompressed stream)"


def _print_proof(proof: BackupProof, *, as_json: bool, verdict: str) -> None:
    if as_json:
        print_json(
            {
                "whole": True,
                **_summary_facts(proof.summary),
                **proof.figures,
                "devices": [{**_disk_facts(row.disk), **row.figures} for row in proof.disks],
            }
        )
        return
    names = list(proof.disks[0].figures) if proof.disks else []
    rows = [
        (row.disk.name, str(row.disk.size_bytes), *(str(row.figures[name]) for name in names))
        for row in proof.disks
    ]
    print_table(("DISK", "BYTES", *(_HEADINGS[name] for name in names)), rows)
    click.echo(verdict)
