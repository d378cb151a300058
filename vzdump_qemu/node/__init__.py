"""The adapters to the machine we run on: a PVE node, or a folder laid out like one."""

from vzdump_qemu.node.local_node import LocalNode
from vzdump_qemu.node.opening import open_node

__all__ = ["LocalNode", "open_node"]
