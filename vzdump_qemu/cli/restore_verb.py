"""The verb ``restore``: a VM of a lab from an archive.

Owns arguments and what is printed; the work is `restoring`'s.
"""

from __future__ import annotations

import dataclasses

import click

from vzdump_qemu.cli.reporting import json_option, print_json, print_table
from vzdump_qemu.cli.signals import interrupted_by_signals


@click.command("restore")
@click.argument("archive_path", metavar="ARCHIVE|-")
@click.argument("vmid", type=click.INT)
@click.option("--root", required=True, metavar="LAB", help="the lab that gets the VM.")
@click.option(
    "--storage", default="local", show_default=True, metavar="ID", help="for the new volumes."
)
@click.option("--force", is_flag=True, help="replace an existing VM that does not run.")
@json_option
def restore_command(
    archive_path: str, vmid: int, *, root: str, storage: str, force: bool, as_json: bool
) -> None:
    """Make a VM from an archive: new volumes, the stored configuration, all or nothing."""
    from vzdump_qemu.cli.restoring import restore_vm

    with interrupted_by_signals():
        restored = restore_vm(archive_path, vmid, root=root, storage_id=storage, force=force)
    if as_json:
        print_json(dataclasses.asdict(restored))
        return
    rows = [(disk.key, disk.volid, str(disk.size_bytes)) for disk in restored.disks]
    print_table(("DISK", "VOLUME", "BYTES"), rows)
    for key in restored.left_out_keys:
        click.echo(f"{key}: not in the archive, now a comment in the configuration")
    click.echo(f"restored VM {vmid}: {restored.config_path}")
