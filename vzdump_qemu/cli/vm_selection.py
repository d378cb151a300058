"""Which VMs a job is for: those of this node, those of others, and those that are nowhere.

Owns the selection and what is known beforehand to fail. Source: host behaviour, sections 1.1
(5), 1.6 (2), 1.7 (1, 3) and 2.10.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from vzdump_qemu.cli.keeping import read_if_present, read_pool
from vzdump_qemu.cli.request import Request
from vzdump_qemu.events import BackupMode
from vzdump_qemu.formats.section_config import Section, split_sections
from vzdump_qemu.node.layout import NodeLayout
from vzdump_qemu.node.local_node import LocalNode
from vzdump_qemu.node.socket_node import SocketNode
from vzdump_qemu.stores.system import run_blocking

HA_TEXT = (
    "Cannot execute a backup with stop mode on a HA managed and enabled Service. "
    "Use snapshot mode or disable the Service."
)
_CONFIG_NAME = re.compile(r"([1-9][0-9]{2,8})\.conf")
_GUEST_KINDS = ("qemu-server", "lxc")
_HA_STARTED_STATES = frozenset(("started", "enabled"))


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSelection:
    """The VMs that a command line means.

    Attributes:
        vmids: to be backed up here, ascending; some may be unknown.
        unknown_vmids: those of them that are on no node of the cluster.
        external_vmids: guests that live on other nodes, ascending.
    """

    vmids: tuple[int, ...]
    unknown_vmids: tuple[int, ...] = ()
    external_vmids: tuple[int, ...] = ()


async def select_vms(node: LocalNode | SocketNode, request: Request) -> VmSelection:
    """What the request means on this node. Raises ConfigError for a pool that does not exist."""
    if not isinstance(node, LocalNode):
        return VmSelection(vmids=tuple(await node.list_vmids()))
    layout = node.layout
    external = await run_blocking(lambda: _find_guests_elsewhere(layout))
    wanted: Collection[int] | None = None
    if request.pool:
        wanted = read_pool(layout, request.pool)
    elif not request.all_vms:
        wanted = request.named_vmids
    here = await node.list_vmids()
    if wanted is None:
        chosen, skipped = set(here), external
    elif request.pool:
        chosen, skipped = set(wanted) & set(here), external & set(wanted)
    else:
        chosen, skipped = set(wanted) - external, external & set(wanted)
    excluded = set(request.excluded_vmids)
    # Who names the node means the guests of that node alone.
    is_alone = bool(request.given.get("node"))
    return VmSelection(
        vmids=tuple(sorted(chosen - excluded)),
        unknown_vmids=tuple(sorted(chosen - excluded - set(here) - _find_containers(layout))),
        external_vmids=() if is_alone else tuple(sorted(skipped - excluded)),
    )


def find_refusals(
    selection: VmSelection, layout: NodeLayout | None, mode: BackupMode
) -> tuple[tuple[int, str], ...]:
    """VMs whose run cannot end well whatever it does, and why."""
    refusals = {vmid: f"unable to find VM '{vmid}'" for vmid in selection.unknown_vmids}
    if mode is BackupMode.STOP and layout is not None:
        states = read_ha_states(read_if_present(f"{layout.pve_directory}/ha/resources.cfg"))
        refusals |= {
            vmid: HA_TEXT for vmid in selection.vmids if states.get(vmid) in _HA_STARTED_STATES
        }
    return tuple(refusals.items())


def read_ha_states(raw: bytes) -> Mapping[int, str]:
    """What the cluster wants of each VM that it manages: ``started`` if nothing is said."""
    states: dict[int, str] = {}
    for section in split_sections(raw):
        if isinstance(section, Section) and section.type == "vm" and section.section_id.isdecimal():
            options = {line.key: line.value for line in section.lines}
            states[int(section.section_id)] = options.get("state") or "started"
    return states


def _find_guests_elsewhere(layout: NodeLayout) -> set[int]:
    nodes_directory = f"{layout.pve_directory}/nodes"
    try:
        names = os.listdir(nodes_directory)
    except OSError:
        return set()
    return {
        vmid
        for name in names
        if name != layout.node_name
        for kind in _GUEST_KINDS
        for vmid in _list_configs(f"{nodes_directory}/{name}/{kind}")
    }


def _find_containers(layout: NodeLayout) -> set[int]:
    return _list_configs(f"{layout.pve_directory}/nodes/{layout.node_name}/lxc")


def _list_configs(directory: str) -> set[int]:
    try:
        names = os.listdir(directory)
    except OSError:
        return set()
    matches = (_CONFIG_NAME.fullmatch(name) for name in names)
    return {int(match[1]) for match in matches if match}
