"""What a command line asks for, once it is parsed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # The help is instant: nothing of a node is loaded for it.
    from vzdump_qemu.node.socket_node import SocketVmOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A parsed command line.

    Attributes:
        given: options by name, in the order they were given.
        named_vmids: those of the command line; empty with `all_vms` and with a pool.
        pool: the VMs of this resource pool are meant, or empty.
        warnings: what was found wrong so far, and is ignored.
        sockets: the one VM that is meant, known by its sockets; None for VMs of a node.
    """

    root: str
    given: Mapping[str, Any]
    named_vmids: tuple[int, ...]
    all_vms: bool
    excluded_vmids: tuple[int, ...]
    sockets: SocketVmOptions | None = None
    pool: str = ""
    warnings: tuple[str, ...] = ()
