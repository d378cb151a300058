"""Which devices a backup takes: the device list and the fleecing images, looked up.

Source: PVE interface, sections 2 and 8.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vzdump_qemu.units import SECTOR_BYTES
from vzsim.fakeqmp.nodes import EmptyDrive, Node
from vzsim.fakeqmp.schema import CommandError

if TYPE_CHECKING:
    from vzsim.fakeqmp.machine import Machine

_NOT_FLEECED = ("drive-efidisk", "drive-tpmstate")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenDevice:
    """One entry of the device list, looked up."""

    name: str
    node: Node
    fleecing: Node | None


def choose_devices(machine: Machine, device_list: object, *, fleecing: bool) -> list[ChosenDevice]:
    """The devices of a list, in its order; without a list all that a guest may write.

    Raises: CommandError. A drive without a medium kills the real process, and so this one.
    """
    if isinstance(device_list, str):
        names = re.split("[,;:]", device_list) if device_list else []
    else:
        names = machine.block.default_names()
    if not names:
        raise CommandError("empty device list")
    chosen = []
    for name in names:
        try:
            node = machine.block.find(name)
        except EmptyDrive:
            machine.die("SIGSEGV")
            raise CommandError("the process died") from None
        machine.jobs.refuse_if_busy(name)
        below = None
        if fleecing and not name.startswith(_NOT_FLEECED):
            below = find_fleecing(machine, name, node)
        chosen.append(ChosenDevice(name=name, node=node, fleecing=below))
    return chosen


def find_fleecing(machine: Machine, name: str, node: Node) -> Node:
    """The fleecing image of a device. Raises: CommandError."""
    fleecing_name = f"{name}-fleecing"
    below = machine.block.find(fleecing_name)
    if below.size_bytes != node.size_bytes:
        raise CommandError(
            f"Size mismatch for '{fleecing_name}' - sector count"
            f" {below.size_bytes // SECTOR_BYTES} != {node.size_bytes // SECTOR_BYTES}"
        )
    return below
