"""The public entry points: a node, and backups of its VMs, from Python.

Owns which adapter stands behind which port; `cli` takes it from here. Importing this module pulls
in the engine and the adapters. Source: architecture, sections 2 and 8.

    async with open_node("./lab") as node:
        result = await backup(node, 100, BackupOptions(...))
"""

from __future__ import annotations

import sys
from contextlib import AbstractAsyncContextManager

from vzdump_qemu.engine.batch import back_up_all
from vzdump_qemu.engine.context import EnginePorts, RunResult
from vzdump_qemu.events import Emit, Event
from vzdump_qemu.node import opening
from vzdump_qemu.node.local_node import LocalNode
from vzdump_qemu.plan.options import BackupOptions
from vzdump_qemu.qemu.nbd_disk import NbdDisk
from vzdump_qemu.stores.archive_directory import ArchiveDirectory
from vzdump_qemu.stores.commands import SystemCommandRunner
from vzdump_qemu.stores.guardian import Guardian
from vzdump_qemu.stores.run_journal import OWNER_TIMEOUT_S, FileJournals
from vzdump_qemu.stores.system import SystemClock, SystemIds, read_boot_id
from vzdump_qemu.stores.vma_sink import PumpedVmaPacker

# Run as a program of its own; `cli` is above this module and is not imported.
GUARDIAN_MODULE = "vzdump_qemu.cli.guard"


def open_node(root: str = "/") -> AbstractAsyncContextManager[LocalNode]:
    """A PVE node, or a folder laid out like one.

    Args:
        root: ``/`` for this host.
    Raises:
        ConfigError: the folder is no node.
    """
    return opening.open_node(root, commands=SystemCommandRunner())


async def backup(
    node: LocalNode, vmid: int, options: BackupOptions | None = None, *, emit: Emit | None = None
) -> RunResult:
    """Back up one VM under the node's global lock.

    Args:
        emit: hears what happens; must neither block nor raise.
    Returns:
        How it ended; a failure of the VM's own run is in its `error`.
    Raises:
        BackupError: the job could not begin, e.g. the storage is not there.
        asyncio.CancelledError: the caller was cancelled; everything was undone first.
    """
    ports = join_ports(node, emit=emit or _ignore)
    batch = await back_up_all(ports, options or BackupOptions(), (vmid,))
    if batch.error is not None:
        raise batch.error
    [result] = batch.runs
    return result


def join_ports(
    node: LocalNode,
    *,
    emit: Emit,
    stdout_fd: int = 1,
    guarded: bool = True,
    owner_timeout_s: float = OWNER_TIMEOUT_S,
) -> EnginePorts:
    """Everything that the engine is handed for one job on a node of this host.

    Args:
        stdout_fd: where an archive for standard output goes.
        guarded: a guardian process watches over our death while a run goes on.
        owner_timeout_s: how long another run on the same VM is waited for.
    """
    layout, clock = node.layout, SystemClock()
    guardian = None
    if guarded:
        guardian = Guardian([sys.executable, "-m", GUARDIAN_MODULE, layout.root])
    return EnginePorts(
        node=node,
        store=ArchiveDirectory(stdout_fd=stdout_fd, guardian=guardian),
        packer=PumpedVmaPacker(clock=clock, open_nbd=lambda origin: NbdDisk(origin, clock=clock)),
        journals=FileJournals(
            layout.journal_directory,
            guardian.watch if guardian else None,
            owner_timeout_s=owner_timeout_s,
            boot_id=read_boot_id(),
        ),
        commands=SystemCommandRunner(),
        clock=clock,
        ids=SystemIds(),
        emit=emit,
    )


def _ignore(_: Event) -> None:
    return
