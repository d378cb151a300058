"""Recovery as a process does it: node, ports, engine, and what is told about it.

Shared by the guardian, which appends to the dead run's log, and by the verb ``recover``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from vzdump_qemu.api import join_ports, open_node, open_socket_vm
from vzdump_qemu.cli.log_line import render_clock_time
from vzdump_qemu.cli.render_vzdump import LogRenderer
from vzdump_qemu.engine.recovery import recover_all, recover_persistently
from vzdump_qemu.events import Emit, Event
from vzdump_qemu.node.local_node import LocalNode
from vzdump_qemu.node.socket_node import SocketNode, SocketVmOptions
from vzdump_qemu.stores.system import SystemClock

# A run that lives is left alone; a guardian at its work is soon done.
_OWNER_TIMEOUT_S = 5.0


async def recover_after_death(address: Sequence[str], vmid: int) -> bool:
    """Put back what the dead run on one VM left; return whether all of it was.

    Args:
        address: the node's own words, see `open_address`.
    """
    async with open_address(address) as node:
        emit = _appending_to(f"{node.log_directory}/qemu-{vmid}.log")
        ports = join_ports(node, emit=emit, guarded=False)
        return await recover_persistently(ports, vmid)


def open_address(address: Sequence[str]) -> AbstractAsyncContextManager[LocalNode | SocketNode]:
    """The node that such words name: ``--root DIR``, or ``--qmp SOCK`` and what goes with it."""
    values = dict(zip(address[::2], address[1::2], strict=True))
    if "--qmp" not in values:
        return open_node(values["--root"])
    return open_socket_vm(
        SocketVmOptions(
            qmp_socket=values["--qmp"],
            agent_socket=values.get("--agent", ""),
            state_directory=values.get("--state-dir", ""),
        )
    )


async def recover_node(address: Sequence[str], emit: Emit) -> tuple[int, ...]:
    """Recover every VM of a node; VMs left with something open."""
    async with open_address(address) as node:
        ports = join_ports(node, emit=emit, guarded=False, owner_timeout_s=_OWNER_TIMEOUT_S)
        return await recover_all(ports)


def _appending_to(path: str) -> Emit:
    clock = SystemClock()
    renderer = LogRenderer(clock.local_time)

    def append(event: Event) -> None:
        lines = [line.render() for line in renderer.render(event)]
        stamp = render_clock_time(clock.local_time(clock.wall_s()))
        try:
            with open(path, "a", encoding="utf-8") as log:
                log.writelines(f"{stamp} {line}\n" for line in lines)
        except OSError:
            return  # nobody is there to be told; the journal keeps what is open

    return append
