"""Joins the adapters into what the engine is handed; with `api`, the only place that does.

Owns which adapter stands behind which port. Heavy modules come in by this one: verbs import it
when they run, never at import. Source: architecture, section 2.
"""

from __future__ import annotations

from vzdump_qemu.engine.context import EnginePorts
from vzdump_qemu.events import Emit
from vzdump_qemu.ports import Node
from vzdump_qemu.stores.archive_directory import ArchiveDirectoryStore
from vzdump_qemu.stores.commands import SystemCommandRunner
from vzdump_qemu.stores.system import SystemClock, SystemIds


def join_ports(node: Node, *, emit: Emit, stdout_fd: int | None = None) -> EnginePorts:
    """Ports of one job on a node.

    Args:
        stdout_fd: where an archive for standard output goes; None if there is none.
    """
    commands = SystemCommandRunner()
    return EnginePorts(
        node=node,
        store=ArchiveDirectoryStore(stdout_fd=stdout_fd),
        commands=commands,
        clock=SystemClock(),
        ids=SystemIds(),
        emit=emit,
    )
