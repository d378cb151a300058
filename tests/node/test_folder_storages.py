"""Storages without the platform's library: directories, block devices, addresses and paths."""

from __future__ import annotations

import os
import shutil

import pytest

from vzdump_qemu.errors import StorageError
from vzdump_qemu.node.folder_storages import FolderStorages
from vzdump_qemu.node.layout import NodeLayout
from vzdump_qemu.node.storage_activation import DirectoryActivation
from vzdump_qemu.node.volume_places import HostDirectories
from vzdump_qemu.stores.commands import SystemCommandRunner

STORAGE_CONFIG = """\
dir: local
\tpath /var/lib/vz
\tcontent images,backup

dir: other
\tpath {other}
\tcontent images
\tcontent-dirs images=disks,backup=save

dir: gone
\tpath {other}/nowhere
\tcontent backup
\tmkdir 0

lvmthin: thin
\tvgname pve
\tthinpool data

dir: off
\tpath {other}
\tdisable

lvm: thick
\tvgname pve

zfspool: tank
\tpool tank/vm

rbd: ceph
\tmonhost 192.0.2.1

rbd: mapped
\tpool vms
\tkrbd

iscsi: san
\tportal 192.0.2.1
\ttarget iqn.x:y

btrfs: tree
\tpath {other}-tree

zfs: far
\tportal p
\ttarget q
\tpool t
\tblocksize 4k
\tiscsiprovider LIO

linstor: foreign
\tresourcegroup x
\tcontent images,backup

nfs: wrong
\tserver s
\texport /e
\tcontent images,nonsense
\tpath {other}
"""
NO_PROGRAMS = {"PATH": "/nonexistent"}


@pytest.fixture
def layout(tmp_path):
    layout = NodeLayout(root=str(tmp_path / "node"), node_name="lab")
    os.makedirs(layout.pve_directory)
    os.makedirs(layout.default_storage_path)
    (tmp_path / "other").mkdir()
    with open(layout.storage_config, "w") as file:
        file.write(STORAGE_CONFIG.format(other=tmp_path / "other"))
    return layout


class FakeLvm:
    """A host whose ``lvs`` knows these volumes."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.calls = []

    def find(self, program):
        return f"/sbin/{program}" if program == "lvs" else None

    async def run(self, argv):
        self.calls.append(argv)
        return (0, ["  x"]) if argv[-1] in self.names else (5, ["Failed to find logical volume"])


@pytest.fixture
def devices(tmp_path):
    """A directory in place of ``/dev``; its devices are files."""
    (tmp_path / "dev").mkdir()
    return tmp_path / "dev"


@pytest.fixture
def make_storages(layout, devices, tmp_path):
    """Storages on a host with those commands."""

    def make(commands=None):
        (tmp_path / "mountinfo").write_text(
            f"1 1 0:1 / {tmp_path}/other rw - nfs4 s:/e rw\n2 1 0:1 / / rw - btrfs x rw\n"
        )
        return FolderStorages(
            layout,
            commands=commands or SystemCommandRunner(environment=NO_PROGRAMS),
            activation=DirectoryActivation(
                layout.default_storage_path, mounts_path=str(tmp_path / "mountinfo")
            ),
            host=HostDirectories(
                devices=str(devices),
                block_devices=str(tmp_path / "block"),
                ceph_conf=str(tmp_path / "ceph.conf"),
            ),
        )

    return make


@pytest.fixture
def storages(make_storages):
    return make_storages()


def _write(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


async def test_describe_raw_volume_of_local_lies_below_the_root(storages, layout):
    path = f"{layout.root}/var/lib/vz/images/100/vm-100-disk-0.raw"
    _write(path, bytes(1000))
    facts = await storages.describe("local:100/vm-100-disk-0.raw")
    assert (facts.storage_id, facts.path, facts.format) == ("local", path, "raw")
    assert facts.size_bytes == 1024
    assert not facts.is_block_device


async def test_describe_qcow2_volume_reads_the_size_from_its_header(storages, layout):
    header = b"QFI\xfb" + bytes(20) + (5 << 30).to_bytes(8, "big") + bytes(100)
    _write(f"{layout.root}/var/lib/vz/images/100/vm-100-disk-1.qcow2", header)
    facts = await storages.describe("local:100/vm-100-disk-1.qcow2")
    assert (facts.size_bytes, facts.format) == (5 << 30, "qcow2")


async def test_describe_format_is_a_matter_of_name_not_of_content(storages, layout):
    """A guest could write a header of another format into its own raw disk."""
    header = b"QFI\xfb" + bytes(20) + (1 << 40).to_bytes(8, "big") + bytes(480)
    _write(f"{layout.root}/var/lib/vz/images/100/vm-100-disk-0.raw", header)
    facts = await storages.describe("local:100/vm-100-disk-0.raw")
    assert (facts.size_bytes, facts.format) == (512, "raw")
    _write(f"{layout.root}/var/lib/vz/images/100/vm-100-disk-1.qcow2", bytes(512))
    with pytest.raises(StorageError, match=r"is not a qcow2 image$"):
        await storages.describe("local:100/vm-100-disk-1.qcow2")


async def test_describe_linked_clone_and_iso(storages, layout):
    _write(f"{layout.root}/var/lib/vz/images/101/vm-101-disk-0.raw", bytes(512))
    facts = await storages.describe("local:100/base-100-disk-0.raw/101/vm-101-disk-0.raw")
    assert facts.size_bytes == 512
    _write(f"{layout.root}/var/lib/vz/template/iso/x.iso", bytes(2048))
    assert (await storages.describe("local:iso/x.iso")).size_bytes == 2048


async def test_describe_other_storage_with_directories_of_its_own(storages, tmp_path):
    path = str(tmp_path / "other/disks/100/vm-100-disk-0.raw")
    _write(path, bytes(512))
    assert (await storages.describe("other:100/vm-100-disk-0.raw")).path == path


async def test_describe_absolute_path_is_probed(storages, tmp_path):
    raw, qcow2 = str(tmp_path / "a.img"), str(tmp_path / "b.img")
    _write(raw, bytes(4096))
    _write(qcow2, b"QFI\xfb" + bytes(20) + (8192).to_bytes(8, "big"))
    facts = await storages.describe(raw)
    assert (facts.storage_id, facts.size_bytes, facts.format) == ("", 4096, "raw")
    facts = await storages.describe(qcow2)
    assert (facts.size_bytes, facts.format) == (8192, "qcow2")
    facts = await storages.describe(str(tmp_path / "none.img"))
    assert (facts.size_bytes, facts.format) == (0, "")


@pytest.mark.parametrize(
    ("volid", "text"),
    [
        ("local:100/vm-100-disk-9.raw", "no such volume 'local:100/vm-100-disk-9.raw'"),
        ("nope:100/x.raw", "storage 'nope' does not exist"),
        ("off:100/x.raw", "storage 'off' is disabled"),
        ("far:vm-100-disk-0", "storage 'far' of type 'zfs' needs a PVE node"),
        ("foreign:vm-100-disk-0", "storage 'foreign' of type 'linstor' needs a PVE node"),
        ("local:../../etc/passwd", "unable to parse directory volume name '../../etc/passwd'"),
        ("local:iso/..", "unable to parse directory volume name 'iso/..'"),
        ("x", "unable to parse volume ID 'x'"),
    ],
)
async def test_describe_unusable_volume_is_refused(storages, volid, text):
    with pytest.raises(StorageError) as caught:
        await storages.describe(volid)
    assert str(caught.value) == text


async def test_activate_missing_volume_is_refused(storages):
    await storages.activate(["/nonexistent/outside"])
    with pytest.raises(StorageError) as caught:
        await storages.activate(["local:100/vm-100-disk-0.raw"])
    assert str(caught.value) == "volume 'local:100/vm-100-disk-0.raw' does not exist"


async def test_backup_directory_is_made(storages, layout):
    path = await storages.backup_directory("local")
    assert path == f"{layout.root}/var/lib/vz/dump"
    assert os.path.isdir(path)


async def test_backup_directory_of_storage_without_backups_is_refused(storages):
    with pytest.raises(StorageError) as caught:
        await storages.backup_directory("other")
    assert str(caught.value) == "can't use storage 'other' for backups - wrong content type"


async def test_backup_directory_of_missing_storage_directory_is_refused(storages, tmp_path):
    with pytest.raises(StorageError) as caught:
        await storages.backup_directory("gone")
    assert str(caught.value) == (
        f"unable to activate storage 'gone' - directory '{tmp_path}/other/nowhere' does not exist"
        " or is unreachable"
    )


async def test_fleecing_without_tool_is_raw_and_named_before_it_exists(storages, layout):
    volid = storages.fleecing_volid("local", vmid=100, name="0")
    assert volid == "local:100/vm-100-fleece-0.raw"
    facts = await storages.allocate_fleecing("local", vmid=100, name="0", size_bytes=1 << 20)
    assert (facts.volid, facts.size_bytes, facts.format) == (volid, 1 << 20, "raw")
    assert os.path.getsize(facts.path) == 1 << 20
    await storages.free(volid)
    await storages.free(volid)
    assert os.listdir(f"{layout.root}/var/lib/vz/images") == []


async def test_fleecing_with_tool_is_qcow2_and_replaces_a_left_over(layout):
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is not installed")
    storages = FolderStorages(layout, commands=SystemCommandRunner())
    for size_bytes in (1 << 20, 2 << 20):
        facts = await storages.allocate_fleecing("local", vmid=100, name="1", size_bytes=size_bytes)
        assert facts.volid == "local:100/vm-100-fleece-1.qcow2"
        assert (facts.size_bytes, facts.format) == (size_bytes, "qcow2")
    await storages.free(facts.volid)


@pytest.mark.parametrize("storage_id", ["thin", "ceph", "foreign"])
async def test_fleecing_on_another_type_of_storage_is_named_and_not_made(storages, storage_id):
    """A disk may lie there, and its image is then made elsewhere: by the name alone."""
    volid = storages.fleecing_volid(storage_id, vmid=100, name="0")
    assert volid == f"{storage_id}:vm-100-fleece-0"
    with pytest.raises(StorageError, match=f"^storage '{storage_id}' of type '.*' needs a PVE"):
        await storages.allocate_fleecing(storage_id, vmid=100, name="0", size_bytes=1 << 20)
    with pytest.raises(StorageError, match="is no file and is not removed"):
        await storages.free("thin:vm-100-fleece-0")


async def test_fleecing_on_btrfs_is_a_directory_of_its_own(storages, tmp_path):
    facts = await storages.allocate_fleecing("tree", vmid=100, name="0", size_bytes=1 << 20)
    assert facts.path == f"{tmp_path}/other-tree/images/100/vm-100-fleece-0/disk.raw"
    await storages.free(facts.volid)
    assert list((tmp_path / "other-tree/images").iterdir()) == []


@pytest.mark.parametrize(
    ("volid", "name", "storage_id"),
    [
        ("thick:vm-100-disk-0", "pve/vm-100-disk-0", "thick"),
        ("thin:vm-100-disk-0", "pve/vm-100-disk-0", "thin"),
        ("tank:base-9-disk-0/vm-100-disk-0", "zvol/tank/vm/vm-100-disk-0", "tank"),
        ("san:0.0.1.scsi-36", "disk/by-id/scsi-36", "san"),
    ],
)
async def test_row_5_4_volume_is_the_device_of_its_name(storages, devices, volid, name, storage_id):
    _write(str(devices / name), bytes(1536))
    await storages.activate([volid])
    facts = await storages.describe(volid)
    assert (facts.path, facts.storage_id) == (str(devices / name), storage_id)
    assert (facts.size_bytes, facts.format) == (1536, "raw")
    with pytest.raises(StorageError, match="is no file and is not removed"):
        await storages.free(volid)


async def test_row_5_4_lvm_volume_named_qcow2_is_one(storages, devices):
    header = b"QFI\xfb" + bytes(20) + (5 << 30).to_bytes(8, "big") + bytes(100)
    _write(str(devices / "pve/vm-100-disk-0.qcow2"), header)
    facts = await storages.describe("thick:vm-100-disk-0.qcow2")
    assert (facts.size_bytes, facts.format) == (5 << 30, "qcow2")


async def test_row_5_3_lvm_volume_that_is_not_active_is_refused_with_what_helps(
    make_storages, devices
):
    commands = FakeLvm("pve/vm-100-disk-0")
    storages = make_storages(commands)
    with pytest.raises(StorageError) as caught:
        await storages.activate(["thin:vm-100-disk-0"])
    assert caught.value.message == (
        f"volume 'thin:vm-100-disk-0' is not active: there is no '{devices}/pve/vm-100-disk-0'"
    )
    assert caught.value.hint.startswith("lvchange -ay -K pve/vm-100-disk-0")
    # Looked at, never activated: that is left to whoever set the volume up.
    assert [argv[0] for argv in commands.calls] == ["/sbin/lvs"]


async def test_row_5_3_lvmthin_volume_that_does_not_exist(make_storages):
    with pytest.raises(StorageError) as caught:
        await make_storages(FakeLvm()).activate(["thin:vm-100-disk-9"])
    assert caught.value.message == "no such logical volume pve/vm-100-disk-9"


@pytest.mark.parametrize(
    ("volid", "text"),
    [
        (
            "tank:vm-100-disk-0",
            "volume 'tank:vm-100-disk-0' has no device link '{dev}/zvol/tank/vm/vm-100-disk-0'",
        ),
        ("san:0.0.1.scsi-36", "volume 'san:0.0.1.scsi-36' not part of target 'iqn.x:y'"),
        (
            "mapped:vm-100-disk-0",
            "volume 'mapped:vm-100-disk-0' is not mapped: there is no "
            "'{dev}/rbd/vms/vm-100-disk-0'",
        ),
    ],
)
async def test_row_5_3_device_that_is_missing_is_told_by_its_kind(storages, devices, volid, text):
    for act in (storages.activate([volid]), storages.describe(volid)):
        with pytest.raises(StorageError) as caught:
            await act
        assert caught.value.message == text.format(dev=devices)
        assert "only a PVE node does that by itself" in caught.value.hint


async def test_row_5_5_librbd_volume_is_qemus_address(storages, layout):
    await storages.activate(["ceph:vm-100-disk-0"])
    facts = await storages.describe("ceph:vm-100-disk-0")
    # Without qemu-img nothing tells the size; a QEMU that has the disk open does.
    assert (facts.size_bytes, facts.format, facts.storage_id) == (0, "raw", "ceph")
    assert facts.path == "rbd:rbd/vm-100-disk-0:mon_host=192.0.2.1:auth_supported=none"
    _write(f"{layout.pve_directory}/priv/ceph/ceph.keyring", b"")
    _write(f"{layout.pve_directory}/priv/ceph/ceph.conf", b"")
    facts = await storages.describe("ceph:vm-100-disk-0")
    assert facts.path == (
        f"rbd:rbd/vm-100-disk-0:conf={layout.pve_directory}/priv/ceph/ceph.conf"
        ":mon_host=192.0.2.1:auth_supported=cephx"
        f":id=admin:keyring={layout.pve_directory}/priv/ceph/ceph.keyring"
    )


async def test_row_5_5_krbd_device_is_of_our_cluster(storages, layout, devices, tmp_path):
    _write(f"{layout.pve_directory}/ceph.conf", b"[global]\n\tfsid = f-1\n")
    _write(str(devices / "rbd0"), bytes(512))
    (devices / "rbd/vms").mkdir(parents=True)
    (devices / "rbd/vms/vm-100-disk-0").symlink_to(devices / "rbd0")
    _write(str(tmp_path / "block/rbd0/device/cluster_fsid"), b"f-2\n")
    with pytest.raises(StorageError, match=r"is not mapped: there is no '.*/rbd-pve/f-1/vms/"):
        await storages.describe("mapped:vm-100-disk-0")
    _write(str(tmp_path / "block/rbd0/device/cluster_fsid"), b"f-1\n")
    facts = await storages.describe("mapped:vm-100-disk-0")
    assert facts.path == str(devices / "rbd/vms/vm-100-disk-0")
    _write(str(devices / "rbd-pve/f-1/vms/vm-100-disk-0"), bytes(1024))
    assert (await storages.describe("mapped:vm-100-disk-0")).size_bytes == 1024


async def test_row_5_7_absolute_path_and_address_are_used_as_they_are(storages):
    volid = "nbd:unix:/nonexistent/socket"
    await storages.activate(["/nonexistent/outside", volid])
    facts = await storages.describe(volid)
    assert (facts.storage_id, facts.path, facts.format) == ("", volid, "raw")
    with pytest.raises(StorageError, match="belongs to no storage and is not removed"):
        await storages.free(volid)


async def test_row_5_2_storage_called_like_a_protocol_is_a_storage(storages, layout):
    _write(layout.storage_config, b"dir: nbd\n\tpath /x\n")
    with pytest.raises(StorageError, match="unable to parse directory volume name 'host:10809'"):
        await storages.describe("nbd:host:10809")


@pytest.mark.parametrize(
    ("storage_id", "text", "hint"),
    [
        ("thin", "can't use storage 'thin' for backups - wrong content type", ""),
        (
            "foreign",
            "storage 'foreign' of type 'linstor' needs a PVE node",
            "a folder node keeps backups in storages of files and of type 'pbs'",
        ),
        (
            "wrong",
            "can't use storage 'wrong' for backups - wrong content type",
            "unsupported content type 'nonsense'",
        ),
        ("off", "storage 'off' is disabled", "pvesm set off --disable 0"),
        ("nope", "storage 'nope' does not exist", "storages of this node: "),
    ],
)
async def test_row_5_1_backup_directory_of_unusable_storage(storages, storage_id, text, hint):
    with pytest.raises(StorageError) as caught:
        await storages.backup_directory(storage_id)
    assert caught.value.message == text
    assert hint in caught.value.hint


async def test_free_never_removes_what_lies_outside(storages, tmp_path):
    path = str(tmp_path / "mine.img")
    _write(path, b"data")
    with pytest.raises(StorageError, match=r"belongs to no storage and is not removed$"):
        await storages.free(path)
    assert os.path.exists(path)
