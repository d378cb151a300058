"""Which kind of node a root directory is.

Owns the choice; the kinds are `pve_node`, `folder_node` and, for a VM known by its sockets alone,
`socket_node`. Source: architecture, section 5.
"""

from __future__ import annotations

import os

from vzdump_qemu.node.folder_node import open_folder_node
from vzdump_qemu.node.local_node import LocalNode
from vzdump_qemu.node.pve_node import is_pve_node, open_pve_node
from vzdump_qemu.node.socket_node import SocketNode, SocketVmOptions, open_socket_node
from vzdump_qemu.ports import CommandRunner
from vzdump_qemu.stores.commands import SystemCommandRunner


def open_node(root: str = "/", *, commands: CommandRunner | None = None) -> LocalNode:
    """The node below that root: this host if it is a PVE node, else a folder laid out like one.

    Use it as an asynchronous context manager, or call `LocalNode.close` at the end.

    Args:
        commands: runs ``qm`` and ``qemu-img``; programs of this host if None.
    Raises: ConfigError if the folder is no node.
    """
    commands = commands or SystemCommandRunner()
    if is_pve_node(root, commands=commands):
        return open_pve_node(commands=commands, process_id=os.getpid())
    return open_folder_node(root, commands=commands, process_id=os.getpid())


def open_socket_vm(
    options: SocketVmOptions, *, commands: CommandRunner | None = None
) -> SocketNode:
    """The node of one VM of any QEMU; what it keeps is in the state directory of this user.

    Raises: ConfigError if there is no such directory, or for a number that no VM can have.
    """
    return open_socket_node(
        options,
        commands=commands or SystemCommandRunner(),
        process_id=os.getpid(),
    )
