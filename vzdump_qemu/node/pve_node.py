"""This host as a PVE node: ``qm`` and the platform's library for power, every storage type.

Owns joining them. Source: architecture, section 5; host behaviour, section 3.1.
"""

from __future__ import annotations

import os
import socket

from vzdump_qemu.node.bridge import PveBridge
from vzdump_qemu.node.layout import NodeLayout
from vzdump_qemu.node.local_node import LocalMachine, LocalNode, NodeStrategies
from vzdump_qemu.node.processes import ProcessTable
from vzdump_qemu.node.pve_storages import PveStorages
from vzdump_qemu.node.qm_power import QmPower
from vzdump_qemu.node.storage_sections import StorageSections
from vzdump_qemu.ports import CommandRunner, Power


async def _has_backup_job() -> bool:
    """The platform's own QEMU always does."""
    return True


def is_pve_node(root: str, *, commands: CommandRunner) -> bool:
    """Whether that root is this host and this host is a PVE node."""
    return (
        os.path.realpath(root) == "/"
        and os.path.isdir("/etc/pve")
        and commands.find("qm") is not None
    )


def open_pve_node(
    *,
    commands: CommandRunner,
    process_id: int,
    root: str = "/",
    node_name: str = "",
    bridge: PveBridge | None = None,
) -> LocalNode:
    """The PVE node that this host is.

    Args:
        root: other than ``/`` only where the platform's tools were replaced as well.
        node_name: the host's own name if empty.
    """
    layout = NodeLayout(root=root, node_name=node_name or socket.gethostname().split(".")[0])
    client = bridge or PveBridge()
    sections = StorageSections(
        path=layout.storage_config,
        secret_directory=layout.secret_directory,
        node_name=layout.node_name,
    )

    def make_power(machine: LocalMachine) -> Power:
        return QmPower(machine.vmid, commands=commands, bridge=client)

    strategies = NodeStrategies(
        storages=PveStorages(client, sections=sections, commands=commands),
        make_power=make_power,
        has_backup_job=_has_backup_job,
        close=client.close,
        bridge=client,
    )
    return LocalNode(layout, strategies, table=ProcessTable(), process_id=process_id)
