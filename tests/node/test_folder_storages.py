"""Directory storages and absolute paths."""

from __future__ import annotations

import os
import shutil

import pytest

from vzdump_qemu.errors import StorageError
from vzdump_qemu.node.folder_storages import FolderStorages
from vzdump_qemu.node.layout import NodeLayout
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

lvmthin: thin
\tvgname pve
\tthinpool data

dir: off
\tpath {other}
\tdisable
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


@pytest.fixture
def storages(layout):
    return FolderStorages(layout, commands=SystemCommandRunner(environment=NO_PROGRAMS))


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
        ("thin:vm-100-disk-0", "storage 'thin' of type 'lvmthin' needs a PVE node"),
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


async def test_fleecing_on_another_type_of_storage_is_refused(storages):
    with pytest.raises(StorageError, match=r"^storage 'thin' of type 'lvmthin' needs a PVE node$"):
        storages.fleecing_volid("thin", vmid=100, name="0")


async def test_free_never_removes_what_lies_outside(storages, tmp_path):
    path = str(tmp_path / "mine.img")
    _write(path, b"data")
    with pytest.raises(StorageError, match=r"belongs to no storage and is not removed$"):
        await storages.free(path)
    assert os.path.exists(path)
