"""A PVE node whose tools and library are stand-ins: what it asks of them."""

from __future__ import annotations

import pytest

from vzdump_qemu.errors import StorageError
from vzdump_qemu.node.pve_node import is_pve_node, open_pve_node

STORAGE_CONFIG = """\
nfs: nas
\tpath /mnt/pve/nas
\tserver 192.0.2.1
\texport /data
\tcontent backup,images

lvmthin: thin
\tvgname pve
\tthinpool data
\tcontent images

linstor: linbit
\tresourcegroup x
\tcontent images,backup
"""


class FakeCommands:
    """A host with some programs, none of which does anything."""

    def __init__(self, *programs: str) -> None:
        self.programs = programs

    async def run(self, argv, *, stdout_fd=None):
        return 0, []

    def find(self, program):
        return f"/usr/bin/{program}" if program in self.programs else None


@pytest.fixture
async def node(tmp_path, bridge):
    (tmp_path / "etc/pve/nodes/pve1/qemu-server").mkdir(parents=True)
    (tmp_path / "etc/pve/storage.cfg").write_text(STORAGE_CONFIG)
    opened = open_pve_node(
        commands=FakeCommands("qm"),
        process_id=7,
        root=str(tmp_path),
        node_name="pve1",
        bridge=bridge,
    )
    async with opened:
        yield opened


async def test_describe_asks_the_library(node):
    facts = await node.storages.describe("nas:100/vm-100-disk-0.qcow2")
    assert facts.path == "/mnt/pve/nas/images/100/vm-100-disk-0.qcow2"
    assert (facts.storage_id, facts.size_bytes, facts.format) == ("nas", 4 << 30, "qcow2")


async def test_describe_absolute_path_does_not(node, tmp_path, stub_calls):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1024))
    facts = await node.storages.describe(str(path))
    assert (facts.storage_id, facts.size_bytes, facts.format) == ("", 1024, "raw")
    assert stub_calls() == []


async def test_activate_leaves_absolute_paths_out(node, stub_calls):
    await node.storages.activate(["/dev/sdb", "thin:vm-100-disk-0"])
    await node.storages.activate(["/dev/sdb"])
    assert stub_calls() == [["activate_volumes", ["thin:vm-100-disk-0"]]]


async def test_backup_directory_is_the_librarys(node):
    assert await node.storages.backup_directory("nas") == "/mnt/pve/nas/dump"


@pytest.mark.parametrize(
    ("storage_id", "volid", "asked"),
    [
        (
            "nas",
            "nas:100/vm-100-fleece-0.qcow2",
            ["nas", 100, "qcow2", "vm-100-fleece-0.qcow2", 1024],
        ),
        ("thin", "thin:vm-100-fleece-0", ["thin", 100, "raw", "vm-100-fleece-0", 1024]),
    ],
)
async def test_fleecing_image_is_named_as_the_library_names_it(
    node, stub_calls, storage_id, volid, asked
):
    assert node.storages.fleecing_volid(storage_id, vmid=100, name="0") == volid
    facts = await node.storages.allocate_fleecing(
        storage_id, vmid=100, name="0", size_bytes=1 << 20
    )
    assert facts.volid == volid
    assert ["vdisk_alloc", *asked] in stub_calls()
    await node.storages.free(volid)
    assert stub_calls()[-1] == ["vdisk_free", volid]


async def test_row_5_1_type_of_a_plugin_is_the_librarys_business(node):
    """Not known to our grammar, it is no backup server, and the library activates it."""
    assert await node.storages.backup_server("linbit") is None
    assert node.storages.fleecing_volid("linbit", vmid=100, name="0") == "linbit:vm-100-fleece-0"


async def test_fleecing_on_unknown_storage_is_refused(node):
    with pytest.raises(StorageError, match=r"^storage 'nope' does not exist$"):
        node.storages.fleecing_volid("nope", vmid=100, name="0")


async def test_power_of_a_vm_goes_through_the_platform(node, stub_calls):
    await node.machine(100).power.start_paused()
    assert stub_calls()[0][0] == "vm_start"


def test_another_root_is_no_pve_node(tmp_path):
    assert not is_pve_node(str(tmp_path), commands=FakeCommands("qm"))


def test_a_host_without_the_platforms_tool_is_no_pve_node():
    assert not is_pve_node("/", commands=FakeCommands())
