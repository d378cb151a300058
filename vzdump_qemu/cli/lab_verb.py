"""The verbs ``lab create|start|stop|status|destroy``.

Owns arguments and what is printed; the work is `node.lab`'s.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine

import click

from vzdump_qemu.cli.lab_arguments import DiskRequest, DiskType, resolve_qemu
from vzdump_qemu.cli.reporting import json_option, print_json, print_table
from vzdump_qemu.errors import VmNotFound
from vzdump_qemu.node import lab
from vzdump_qemu.node.lab_config import LabConfig
from vzdump_qemu.node.opening import open_node

DEFAULT_QEMU = "vzsim-qemu"
_DEFAULT_VMID = 100
_LAB = click.Path(exists=True, file_okay=False)


@click.group("lab")
def lab_group() -> None:
    """Make and run a folder laid out like a node, with VMs to try things on."""


@lab_group.command("create")
@click.argument("root", metavar="LAB")
@click.option(
    "--vm", "vmids", type=click.INT, multiple=True, metavar="ID", help="repeatable.  [default: 100]"
)
@click.option(
    "--qemu", default=DEFAULT_QEMU, show_default=True, metavar="BINARY", help="any QEMU program."
)
@click.option(
    "--disk", "disks", type=DiskType(), multiple=True, help="repeatable.  [default: scsi0=32M]"
)
@click.option("--agent/--no-agent", default=True, show_default=True, help="a guest agent.")
@click.option(
    "--fill", "seed", type=click.INT, metavar="SEED", help="fill about half of each disk."
)
@json_option
def create_command(
    root: str,
    *,
    vmids: tuple[int, ...],
    qemu: str,
    disks: tuple[DiskRequest, ...],
    agent: bool,
    seed: int | None,
    as_json: bool,
) -> None:
    """Make a lab, or add VMs to one."""
    wanted = disks or (DiskRequest(key="scsi0", size_bytes=32 * 1024 * 1024, format="raw"),)
    program = resolve_qemu(qemu)
    created = tuple(dict.fromkeys(vmids or (_DEFAULT_VMID,)))
    asyncio.run(
        lab.create_lab(
            root,
            vmids=created,
            disks=[
                lab.LabDisk(key=disk.key, size_bytes=disk.size_bytes, format=disk.format)
                for disk in wanted
            ],
            config=LabConfig(qemu=program),
            has_agent=agent,
            fill_seed=seed,
        )
    )
    if as_json:
        print_json({"lab": root, "qemu": program, "vmids": list(created)})
        return
    for vmid in created:
        names = ", ".join(f"{disk.key} ({disk.size_bytes} bytes)" for disk in wanted)
        click.echo(f"created VM {vmid}: {names}")


@lab_group.command("start")
@click.argument("root", metavar="LAB", type=_LAB)
@click.argument("vmid", metavar="[ID]", type=click.INT, required=False)
@click.option("--paused", is_flag=True, help="with stopped vCPUs.")
@json_option
def start_command(root: str, vmid: int | None, *, paused: bool, as_json: bool) -> None:
    """Start one VM, or all that do not run."""
    act = _start_paused if paused else lab.start_vm
    _for_each(root, vmid, act, only_running=False)
    _print_status(root, as_json=as_json)


async def _start_paused(root: str, vmid: int) -> None:
    async with open_node(root) as node:
        await node.machine(vmid).power.start_paused()


@lab_group.command("stop")
@click.argument("root", metavar="LAB", type=_LAB)
@click.argument("vmid", metavar="[ID]", type=click.INT, required=False)
@json_option
def stop_command(root: str, vmid: int | None, *, as_json: bool) -> None:
    """End one VM, or all that run, as by the power plug."""
    _for_each(root, vmid, lab.stop_vm, only_running=True)
    _print_status(root, as_json=as_json)


def _for_each(
    root: str,
    vmid: int | None,
    act: Callable[[str, int], Coroutine[None, None, None]],
    *,
    only_running: bool,
) -> None:
    if vmid is not None:
        asyncio.run(act(root, vmid))
        return
    for status in asyncio.run(lab.read_status(root)):
        if status.is_running == only_running:
            asyncio.run(act(root, status.vmid))


@lab_group.command("status")
@click.argument("root", metavar="LAB", type=_LAB)
@click.argument("vmid", metavar="[ID]", type=click.INT, required=False)
@json_option
def status_command(root: str, vmid: int | None, *, as_json: bool) -> None:
    """Show which VMs there are and what they do."""
    _print_status(root, vmid, as_json=as_json)


def _print_status(root: str, vmid: int | None = None, *, as_json: bool) -> None:
    found = [status for status in asyncio.run(lab.read_status(root)) if vmid in (None, status.vmid)]
    if vmid is not None and not found:
        raise VmNotFound(
            f"VM {vmid} is not in lab '{root}'", hint=f"'vzdump-qemu lab status {root}' shows all"
        )
    if as_json:
        print_json([dataclasses.asdict(status) for status in found])
        return
    rows = [
        (str(row.vmid), row.name, row.run_state or _power_word(row), row.lock or "-")
        for row in found
    ]
    print_table(("VMID", "NAME", "STATUS", "LOCK"), rows)


def _power_word(status: lab.LabVmStatus) -> str:
    return "not answering" if status.is_running else "stopped"


@lab_group.command("destroy")
@click.argument("root", metavar="LAB", type=_LAB)
@json_option
def destroy_command(root: str, *, as_json: bool) -> None:
    """Stop all VMs of a lab and remove the folder."""
    asyncio.run(lab.destroy_lab(root))
    if as_json:
        print_json({"destroyed": root})
    else:
        click.echo(f"destroyed {root}")
