"""A folder laid out like a PVE node: our own launcher for power, directories for storages.

Owns joining them; the production code above is the same as on a PVE node. Source: architecture,
section 5.
"""

from __future__ import annotations

import os

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.formats.vm_config import parse_vm_config
from vzdump_qemu.node.folder_storages import FolderStorages
from vzdump_qemu.node.lab_config import LabConfig, read_lab_config
from vzdump_qemu.node.launcher import LauncherConnections, QemuLauncher
from vzdump_qemu.node.layout import NodeLayout
from vzdump_qemu.node.local_node import LocalMachine, LocalNode, NodeStrategies
from vzdump_qemu.node.machine_spec import make_machine_spec
from vzdump_qemu.node.processes import ProcessTable
from vzdump_qemu.node.qemu_probe import has_backup_command
from vzdump_qemu.ports import CommandRunner, Power
from vzdump_qemu.qemu.command_line import MachineSpec
from vzdump_qemu.qemu.request_ids import RequestIds


def open_folder_node(root: str, *, commands: CommandRunner, process_id: int) -> LocalNode:
    """The node in a folder.

    Raises: ConfigError if the folder is not laid out like a node.
    """
    layout = find_layout(root)
    config = read_lab_config(layout.lab_config) or LabConfig()
    binary = commands.find(config.qemu) or config.qemu
    table = ProcessTable(any_program=True)
    storages = FolderStorages(layout, commands=commands)

    def make_power(machine: LocalMachine) -> Power:
        async def read_spec() -> MachineSpec:
            raw = await node.read_vm_config(machine.vmid)
            return await make_machine_spec(parse_vm_config(raw, vmid=machine.vmid), storages)

        return QemuLauncher(
            layout,
            machine.vmid,
            binary=binary,
            accelerator=config.accelerator,
            table=table,
            read_spec=read_spec,
            connections=LauncherConnections(
                connect_qmp=lambda timeout_s: machine.connect_qmp(timeout_s=timeout_s),
                connect_agent=lambda timeout_s: machine.connect_agent(timeout_s=timeout_s),
            ),
        )

    answers: list[bool] = []

    async def has_backup_job() -> bool:
        if not answers:
            known = await has_backup_command(
                binary, commands=commands, request_ids=RequestIds(process_id)
            )
            # A program that cannot even be asked tells why when it is started.
            answers.append(known is not False)
        return answers[0]

    async def close() -> None:
        """Nothing runs beside the VMs themselves."""

    node = LocalNode(
        layout,
        NodeStrategies(
            storages=storages, make_power=make_power, has_backup_job=has_backup_job, close=close
        ),
        table=table,
        process_id=process_id,
    )
    return node


def find_layout(root: str) -> NodeLayout:
    """Paths of the node in a folder; its name is the one that ``etc/pve/local`` points to.

    Raises: ConfigError if there is no node.
    """
    # One spelling: a running VM is known by the path of its pid file.
    root = os.path.realpath(root)
    local = os.path.join(root, "etc/pve/local")
    nodes = os.path.join(root, "etc/pve/nodes")
    if os.path.islink(local):
        return NodeLayout(root=root, node_name=os.path.basename(os.readlink(local).rstrip("/")))
    try:
        names = sorted(os.listdir(nodes))
    except OSError:
        names = []
    if len(names) != 1:
        raise ConfigError(
            f"'{root}' is not laid out like a PVE node",
            hint=f"'vzdump-qemu lab create {root}' makes one"
            if root != "/"
            else "name a lab with --root DIR, or a VM of any QEMU with --qmp SOCK",
        )
    return NodeLayout(root=root, node_name=names[0])
