"""The verb ``recover``: put back what killed runs left on a node."""

from __future__ import annotations

import asyncio

import click

from vzdump_qemu import events
from vzdump_qemu.errors import VmLocked


@click.command("recover")
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="the node: / for this host, or the folder of a lab.  [default: /]",
)
@click.option("--qmp", metavar="SOCK", help="a VM of any QEMU, by the socket of its monitor.")
@click.option("--agent", metavar="SOCK", help="the socket of that VM's guest agent.")
@click.option("--state-dir", metavar="DIR", help="where that backup kept its journal.")
def recover_command(
    root: str | None, qmp: str | None, agent: str | None, state_dir: str | None
) -> None:
    """Put back what killed backups left: thaw, cancel, continue, detach, remove, unlock.

    Each backup does the same for its VM before it begins, and a guardian process does it at
    once when a backup is killed; this is for a node where neither could.
    """
    from vzdump_qemu.cli.recovering import recover_node

    of_sockets = {"--agent": agent, "--state-dir": state_dir}
    address = ["--root", root or "/"]
    if qmp is not None:
        if root is not None:
            raise click.UsageError("qmp: option conflicts with option 'root'")
        address = ["--qmp", qmp]
    for name, value in of_sockets.items():
        if value is not None:
            if qmp is None:
                raise click.UsageError(f"{name.lstrip('-')}: needs option 'qmp'")
            address += [name, value]
    count = 0

    def tell(event: events.Event) -> None:
        nonlocal count
        if isinstance(event, events.Warned):
            count += 1
            click.echo(event.text)
        elif isinstance(event, events.RecoveryNotNeeded):
            click.echo(f"a backup of VM {event.vmid} is running: it ends in order by itself")
        elif isinstance(event, events.UndoFailed):
            click.echo(f"{event.what}: {event.text}", err=True)

    unfinished = asyncio.run(recover_node(address, tell))
    if unfinished:
        vmids = ", ".join(str(vmid) for vmid in unfinished)
        raise VmLocked(
            f"not everything could be put back: VM {vmids}",
            hint="mend what the lines above name and run the same command again",
        )
    click.echo("nothing is left" if count else "nothing to recover")
