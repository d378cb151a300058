"""Recovery as a process does it: node, ports, engine, and what is told about it.

Shared by the guardian, which appends to the dead run's log, and by the verb ``recover``.
"""

from __future__ import annotations

from vzdump_qemu.api import join_ports, open_node
from vzdump_qemu.cli.effective import LOG_DIRECTORY
from vzdump_qemu.cli.log_line import render_clock_time
from vzdump_qemu.cli.render_vzdump import LogRenderer
from vzdump_qemu.engine.recovery import recover_all, recover_persistently
from vzdump_qemu.events import Emit, Event
from vzdump_qemu.stores.system import SystemClock

# A run that lives is left alone; a guardian at its work is soon done.
_OWNER_TIMEOUT_S = 5.0


async def recover_after_death(root: str, vmid: int) -> bool:
    """Put back what the dead run on one VM left; return whether all of it was."""
    emit = _appending_to(f"{root.rstrip('/')}{LOG_DIRECTORY}/qemu-{vmid}.log")
    async with open_node(root) as node:
        ports = join_ports(node, emit=emit, guarded=False)
        return await recover_persistently(ports, vmid)


async def recover_node(root: str, emit: Emit) -> tuple[int, ...]:
    """Recover every VM of a node; VMs left with something open."""
    async with open_node(root) as node:
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
