"""Backup of QEMU virtual machines that can be trusted, because it can be simulated.

The public names are loaded when used: importing the package alone costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vzdump_qemu.api import backup, open_node, open_socket_vm
    from vzdump_qemu.engine.context import RunResult
    from vzdump_qemu.node.socket_node import SocketVmOptions
    from vzdump_qemu.plan.options import BackupOptions

__all__ = [
    "BackupOptions",
    "RunResult",
    "SocketVmOptions",
    "backup",
    "open_node",
    "open_socket_vm",
]

_HOMES = {
    "BackupOptions": "vzdump_qemu.plan.options",
    "RunResult": "vzdump_qemu.engine.context",
    "SocketVmOptions": "vzdump_qemu.node.socket_node",
    "backup": "vzdump_qemu.api",
    "open_node": "vzdump_qemu.api",
    "open_socket_vm": "vzdump_qemu.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
