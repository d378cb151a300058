"""Labs end to end: made, run with a real QEMU, shown, destroyed."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from vzdump_qemu.errors import ConfigError, StorageError
from vzdump_qemu.node import lab, open_node
from vzdump_qemu.node.lab import LabDisk, create_lab, destroy_lab, read_status, start_vm, stop_vm
from vzdump_qemu.node.lab_config import LabConfig, read_lab_config
from vzdump_qemu.stores.commands import SystemCommandRunner

MIB = 1024 * 1024
DISKS = (LabDisk(key="scsi0", size_bytes=3 * MIB + 512), LabDisk(key="virtio1", size_bytes=MIB))


@pytest.fixture
def root(short_directory):
    return str(short_directory / "lab")


async def _make(root, *vmids, disks=DISKS, qemu="qemu-system-x86_64", **more):
    config = LabConfig(qemu=qemu)
    await create_lab(root, vmids=vmids or (100,), disks=disks, config=config, **more)


def _digests(root: str, vmid: int) -> list[str]:
    directory = Path(root) / f"var/lib/vz/images/{vmid}"
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())]


async def test_create_lab_is_laid_out_like_a_node(root):
    await _make(root, 100, 101, has_agent=True)
    base = Path(root)
    assert os.readlink(base / "etc/pve/local") == "nodes/lab"
    assert (base / "etc/pve/qemu-server/100.conf").read_text() == (
        "agent: 1\ncores: 1\nmemory: 64\nname: lab-100\n"
        "scsi0: local:100/vm-100-disk-0.raw,size=3146240\n"
        "virtio1: local:100/vm-100-disk-1.raw,size=1M\n"
    )
    image = base / "var/lib/vz/images/100/vm-100-disk-0.raw"
    assert image.stat().st_size == 3 * MIB + 512
    assert image.stat().st_blocks == 0
    assert read_lab_config(str(base / "etc/vzdump-qemu/lab.conf")) == LabConfig()
    async with open_node(root) as node:
        assert node.name == "lab"
        assert await node.list_vmids() == [100, 101]


async def test_create_lab_fill_depends_on_seed_vm_and_disk_only(root, short_directory):
    await _make(root, 100, 101, fill_seed=7)
    other = str(short_directory / "other")
    await _make(other, 101, fill_seed=7)
    third = str(short_directory / "third")
    await _make(third, 101, fill_seed=8)
    assert _digests(root, 101) == _digests(other, 101)
    assert not set(_digests(root, 100)) & set(_digests(root, 101))
    assert not set(_digests(root, 101)) & set(_digests(third, 101))


async def test_create_lab_fill_writes_about_half(root):
    await _make(root, disks=[LabDisk(key="scsi0", size_bytes=16 * MIB)], fill_seed=1)
    data = (Path(root) / "var/lib/vz/images/100/vm-100-disk-0.raw").read_bytes()
    used = sum(1 for at in range(0, len(data), 4096) if any(data[at : at + 4096]))
    assert 0.4 < used / 4096 < 0.6


async def test_create_lab_adds_vms_to_an_existing_one(root):
    await _make(root, 100)
    await _make(root, 101)
    assert [status.vmid for status in await read_status(root)] == [100, 101]


async def test_create_lab_existing_vm_is_refused_and_kept(root):
    await _make(root, 100, fill_seed=1)
    before = _digests(root, 100)
    with pytest.raises(ConfigError, match=r"^VM 100 already exists on node 'lab'$"):
        await _make(root, 101, 100)
    assert _digests(root, 100) == before
    assert [status.vmid for status in await read_status(root)] == [100]


async def test_create_lab_existing_image_is_refused_and_kept(root):
    await _make(root, 100, fill_seed=1)
    config = Path(root) / "etc/pve/qemu-server/100.conf"
    config.unlink()
    before = _digests(root, 100)
    with pytest.raises(StorageError, match=r"exists already$"):
        await _make(root, 100, fill_seed=2)
    assert _digests(root, 100) == before
    assert not config.exists()


async def test_create_lab_in_a_folder_with_other_things_is_refused(root):
    os.makedirs(root)
    Path(root, "thesis.txt").touch()
    with pytest.raises(ConfigError) as caught:
        await _make(root)
    assert str(caught.value) == f"'{root}' is not empty and not a lab"
    assert os.listdir(root) == ["thesis.txt"]


async def test_create_lab_below_too_long_path_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"is too long for the sockets of a lab$"):
        await _make(str(tmp_path / ("x" * 100)))


async def test_create_lab_qcow2_without_tool_is_refused_whole(root, tmp_path):
    commands = SystemCommandRunner(environment={"PATH": str(tmp_path)})
    disks = [LabDisk(key="scsi0", size_bytes=MIB, format="qcow2")]
    with pytest.raises(StorageError) as caught:
        await _make(root, disks=disks, commands=commands)
    assert str(caught.value) == "unable to find command 'qemu-img'"
    assert caught.value.hint == "install qemu-utils, or use raw images"
    assert not os.path.exists(f"{root}/var/lib/vz/images/100")
    assert await read_status(root) == []


async def test_create_lab_qcow2_has_size_and_content(root):
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is not installed")
    disks = [LabDisk(key="scsi0", size_bytes=2 * MIB, format="qcow2")]
    await _make(root, disks=disks, fill_seed=3)
    async with open_node(root) as node:
        facts = await node.storages.describe("local:100/vm-100-disk-0.qcow2")
    assert (facts.size_bytes, facts.format) == (2 * MIB, "qcow2")
    assert os.listdir(f"{root}/var/lib/vz/images/100") == ["vm-100-disk-0.qcow2"]
    raw = f"{root}/check.raw"
    await SystemCommandRunner().run(["qemu-img", "convert", "-O", "raw", facts.path, raw])
    assert any(Path(raw).read_bytes())


@pytest.mark.slow
async def test_lab_vm_starts_shows_its_state_and_stops(root, qemu_binary):
    await _make(root, 100, 101, qemu=qemu_binary, has_agent=True)
    await start_vm(root, 100)
    try:
        first, second = await read_status(root)
        assert (first.is_running, first.run_state, first.name) == (True, "running", "lab-100")
        assert (second.is_running, second.run_state) == (False, "")
    finally:
        await stop_vm(root, 100)
    assert [status.is_running for status in await read_status(root)] == [False, False]


@pytest.mark.slow
async def test_destroy_lab_stops_vms_and_removes_the_folder(root, qemu_binary):
    await _make(root, qemu=qemu_binary)
    await start_vm(root, 100)
    async with open_node(root) as node:
        pid = int(Path(node.layout.pid_file(100)).read_text())
        # Even a VM whose configuration somebody removed is not left running.
        os.unlink(node.layout.vm_config(100))
    await destroy_lab(root)
    assert not os.path.exists(root)
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or ") Z " in state.read_text()


@pytest.mark.parametrize("act", [destroy_lab, read_status])
async def test_folder_that_is_no_lab_is_left_alone(tmp_path, act):
    (tmp_path / "etc/pve/nodes/pve1/qemu-server").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"is not a lab$"):
        await act(str(tmp_path))
    assert (tmp_path / "etc/pve/nodes/pve1/qemu-server").is_dir()


@pytest.mark.parametrize("path", ["/", "//", "/etc/.."])
async def test_destroy_lab_never_takes_the_root_directory(path):
    with pytest.raises(ConfigError, match=r"is not a lab$"):
        await destroy_lab(path)


async def test_destroy_lab_through_a_link_is_refused(root, short_directory):
    await _make(root)
    link = short_directory / "link"
    link.symlink_to(root)
    with pytest.raises(ConfigError, match=r"is not a lab$"):
        await destroy_lab(str(link))
    assert os.path.isdir(root)


async def test_unknown_vm_cannot_be_started_or_stopped(root):
    await _make(root)
    for act in (start_vm, stop_vm):
        with pytest.raises(ConfigError) as caught:
            await act(root, 555)
        assert str(caught.value) == "unable to find configuration file for VM 555 on node 'lab'"


def test_lab_node_name_is_a_word():
    assert lab.LAB_NODE_NAME.isalnum()


@pytest.mark.parametrize("text", ["qemu\n", "qemu:\n", "speed: 3\n"])
def test_lab_config_odd_line_is_refused(tmp_path, text):
    path = tmp_path / "lab.conf"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"^unable to parse 'lab.conf': "):
        read_lab_config(str(path))


def test_lab_config_survives_writing_and_reading(tmp_path):
    path = tmp_path / "lab.conf"
    config = LabConfig(qemu="/opt/my qemu/bin/x", accelerator="kvm:tcg")
    path.write_text("# a comment\n\n" + config.render())
    assert read_lab_config(str(path)) == config
    assert read_lab_config(str(tmp_path / "none.conf")) is None
