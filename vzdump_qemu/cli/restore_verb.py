"""The verb ``restore``: a VM of a lab from a stored backup.

Owns arguments and what is printed; the work is `restoring`'s.
"""

from __future__ import annotations

import dataclasses

import click

from vzdump_qemu.cli.named_backups import BACKUP_METAVAR, find_backup, key_option, server_options
from vzdump_qemu.cli.reporting import json_option, print_json, print_table
from vzdump_qemu.cli.server_target import ServerWords
from vzdump_qemu.cli.signals import interrupted_by_signals


@click.command("restore")
@click.argument("backup_name", metavar=BACKUP_METAVAR)
@click.argument("vmid", type=click.INT)
@click.option("--root", required=True, metavar="LAB", help="the lab that gets the VM.")
@click.option(
    "--storage", default="local", show_default=True, metavar="ID", help="for the new volumes."
)
@click.option("--force", is_flag=True, help="replace an existing VM that does not run.")
@key_option
@server_options
@json_option
def restore_command(
    backup_name: str,
    vmid: int,
    *,
    root: str,
    storage: str,
    force: bool,
    words: ServerWords,
    as_json: bool,
) -> None:
    """Make a VM from a backup: new volumes, the stored configuration, all or nothing.

    BACKUP is an archive's path (- for standard input), STORAGE:backup/vm/ID/TIME for a backup
    server of the lab, or vm/ID/TIME or vm/ID/latest at the one of --repository.
    """
    from vzdump_qemu.cli.restoring import restore_vm

    backup = find_backup(backup_name, root=root, words=words)
    with interrupted_by_signals():
        restored = restore_vm(backup, vmid, root=root, storage_id=storage, force=force)
    if as_json:
        print_json(dataclasses.asdict(restored))
        return
    rows = [(disk.key, disk.volid, str(disk.size_bytes)) for disk in restored.disks]
    print_table(("DISK", "VOLUME", "BYTES"), rows)
    for key in restored.left_out_keys:
        click.echo(f"{key}: not in the backup, now a comment in the configuration")
    click.echo(f"restored VM {vmid}: {restored.config_path}")
