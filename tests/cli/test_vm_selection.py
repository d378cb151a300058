"""Which VMs a job is for, in a cluster of two nodes (1.1, 1.6, 1.7, 2.10)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vzdump_qemu.cli.request import Request
from vzdump_qemu.cli.vm_selection import HA_TEXT, VmSelection, find_refusals, select_vms
from vzdump_qemu.errors import ConfigError
from vzdump_qemu.events import BackupMode
from vzdump_qemu.node import open_node
from vzdump_qemu.node.layout import NodeLayout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    guests = {
        "here/qemu-server": (100, 102),
        "here/lxc": (103,),
        "there/qemu-server": (101, 200),
        "there/lxc": (104,),
    }
    for folder, vmids in guests.items():
        directory = tmp_path / "etc/pve/nodes" / folder
        directory.mkdir(parents=True)
        for vmid in vmids:
            (directory / f"{vmid}.conf").write_text("cores: 1\n")
    (tmp_path / "etc/pve/local").symlink_to("nodes/here")
    (tmp_path / "etc/pve/user.cfg").write_text("pool:p::102,100,200,999::\n")
    return tmp_path


async def select(tree: Path, *named: int, **values: Any) -> VmSelection:
    given = {name: value for name, value in values.items() if name == "node"}
    request = Request(
        root=str(tree),
        given=given,
        named_vmids=named,
        all_vms=bool(values.get("all_vms", False)),
        excluded_vmids=values.get("excluded", ()),
        pool=values.get("pool", ""),
    )
    async with open_node(str(tree)) as node:
        return await select_vms(node, request)


async def test_row_1_6_2_named_vms_of_other_nodes_are_external(tree: Path) -> None:
    selection = await select(tree, 200, 102, 101, 100)
    assert selection == VmSelection(vmids=(100, 102), external_vmids=(101, 200))


async def test_row_1_1_5_vm_of_no_node_stays_and_fails(tree: Path) -> None:
    selection = await select(tree, 100, 999)
    assert selection == VmSelection(vmids=(100, 999), unknown_vmids=(999,))
    refusals = find_refusals(selection, _layout(tree), BackupMode.SNAPSHOT)
    assert refusals == ((999, "unable to find VM '999'"),)


async def test_row_1_1_5_container_of_this_node_is_not_unknown(tree: Path) -> None:
    assert await select(tree, 103) == VmSelection(vmids=(103,))


async def test_row_2_10_all_are_the_vms_of_this_node_but_those_excluded(tree: Path) -> None:
    selection = await select(tree, all_vms=True, excluded=(100, 200))
    assert selection == VmSelection(vmids=(102,), external_vmids=(101, 104))


async def test_row_2_10_node_drops_the_guests_of_others_without_a_word(tree: Path) -> None:
    assert await select(tree, 100, 200, node="here") == VmSelection(vmids=(100,))
    assert await select(tree, all_vms=True, node="here") == VmSelection(vmids=(100, 102))


async def test_row_2_10_pool_means_its_members_that_exist(tree: Path) -> None:
    selection = await select(tree, pool="p", excluded=(102,))
    assert selection == VmSelection(vmids=(100,), external_vmids=(200,))
    with pytest.raises(ConfigError, match="pool 'q' does not exist"):
        await select(tree, pool="q")


@pytest.mark.parametrize("state", ["", "\tstate started\n", "\tstate enabled\n"])
async def test_row_1_7_3_ha_managed_vm_is_not_stopped(tree: Path, state: str) -> None:
    _manage(tree, f"vm: 100\n{state}\tgroup g\n\nct: 102\n\tstate started\n")
    selection = await select(tree, 100, 102)
    assert find_refusals(selection, _layout(tree), BackupMode.STOP) == ((100, HA_TEXT),)
    assert find_refusals(selection, _layout(tree), BackupMode.SUSPEND) == ()


@pytest.mark.parametrize("state", ["stopped", "disabled", "ignored"])
async def test_row_1_7_3_vm_that_ha_does_not_keep_running_may_be_stopped(
    tree: Path, state: str
) -> None:
    _manage(tree, f"vm: 100\n\tstate {state}\n")
    selection = await select(tree, 100)
    assert find_refusals(selection, _layout(tree), BackupMode.STOP) == ()


def _manage(tree: Path, text: str) -> None:
    (tree / "etc/pve/ha").mkdir()
    (tree / "etc/pve/ha/resources.cfg").write_text(text)


def _layout(tree: Path) -> NodeLayout:
    return NodeLayout(root=str(tree), node_name="here")
