"""Disks on block devices, and disks that only QEMU's own drivers reach, of a real QEMU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.block_devices.conftest import (
    MIB,
    ODD_BYTES,
    PROGRAMS,
    BlockLab,
    Devices,
    data,
    host,
)
from integration.socket_vm.conftest import HandVm
from integration.stock_qemu.monitor import Monitor

CONTENT = data(ODD_BYTES, seed=1)
ALIGNED = data(8 * MIB, seed=2)
DEVICE = "/machine/peripheral/scsi0"
PULLED = "data path: pull (QEMU "
OFFLINE = "data path: offline (the VM is off"


def _read(device: Path, size_bytes: int) -> bytes:
    with open(device, "rb") as file:
        return file.read(size_bytes)


@pytest.mark.parametrize(
    ("make", "content"),
    [
        (lambda loops: loops.loop(CONTENT), CONTENT),
        (lambda loops: loops.loop(ALIGNED, "--sector-size", "4096"), ALIGNED),
        (lambda loops: loops.partition(CONTENT), CONTENT),
        (lambda loops: loops.qcow2(CONTENT), CONTENT),
    ],
    ids=["odd size", "sectors of 4096 bytes", "partition", "qcow2 on a device"],
)
def test_device_is_pulled_as_it_was_while_the_guest_writes_and_read_when_it_is_off(
    block_lab: BlockLab, loops: Devices, make: Callable[[Devices], Path], content: bytes
) -> None:
    device = make(loops)
    is_raw = device.stat().st_size == 0 and _read(device, 4) != b"QFI\xfb"
    block_lab.create(f"{device},size=8M" if is_raw else f"{device},format=qcow2,size=8M")
    log = block_lab.back_up()
    assert OFFLINE in log
    assert block_lab.stored() == content
    _forget(block_lab)
    block_lab.start()
    log = _pull_amid_writes(block_lab)
    assert PULLED in log
    assert block_lab.stored() == content
    block_lab.assert_nothing_left()
    if is_raw:
        assert _read(device, len(content)) != content


def _forget(block_lab: BlockLab) -> None:
    for path in block_lab.lab.dump.iterdir():
        path.unlink()
    block_lab.lab.config(101).unlink()
    block_lab.lab.image(vmid=101).unlink()


def _pull_amid_writes(block_lab: BlockLab) -> str:
    """Back up, and let the guest write as soon as the point in time is fixed."""
    lab = block_lab.lab
    argv = [sys.executable, "-m", "vzdump_qemu", "--root", lab.root, 100, "--bwlimit", 4096]
    process = subprocess.Popen([str(word) for word in argv], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "resuming VM again" in line:
            with Monitor(lab.run_directory / "100.qmp") as monitor:
                for offset_bytes in range(0, 8 * MIB, 2 * MIB):
                    monitor.write_as_guest(DEVICE, offset_bytes, MIB)
    assert process.wait(timeout=120) == 0, "".join(lines)
    return "".join(lines)


def test_write_protected_device_is_read_whether_the_vm_is_on_or_off(
    block_lab: BlockLab, loops: Devices
) -> None:
    device = loops.loop(CONTENT, "-r")
    block_lab.create(f"{device},ro=1,size=8M")
    assert OFFLINE in block_lab.back_up()
    assert block_lab.stored() == CONTENT
    _forget(block_lab)
    block_lab.start()
    assert PULLED in block_lab.back_up()
    assert block_lab.stored() == CONTENT


@pytest.mark.parametrize(
    ("storage", "volume", "link"),
    [
        ("lvm: blocks\n\tvgname {pid}\n", "vm-100-disk-0", "{pid}/vm-100-disk-0"),
        (
            "lvmthin: blocks\n\tvgname {pid}\n\tthinpool data\n",
            "vm-100-disk-0",
            "{pid}/vm-100-disk-0",
        ),
        ("zfspool: blocks\n\tpool {pid}/vm\n", "vm-100-disk-0", "zvol/{pid}/vm/vm-100-disk-0"),
        (
            "iscsi: blocks\n\tportal 192.0.2.1\n\ttarget iqn.2001-04.example:x\n",
            "0.0.1.{pid}",
            "disk/by-id/{pid}",
        ),
    ],
    ids=["lvm", "lvmthin", "zfspool", "iscsi"],
)
def test_volume_of_a_storage_is_the_device_of_its_name(
    block_lab: BlockLab, loops: Devices, storage: str, volume: str, link: str
) -> None:
    own = f"vzdump-test-{os.getpid()}"
    loops.link(link.format(pid=own), loops.loop(CONTENT))
    block_lab.create(f"blocks:{volume.format(pid=own)},size=8M", storages=storage.format(pid=own))
    block_lab.start()
    assert PULLED in block_lab.back_up()
    assert block_lab.stored() == CONTENT
    block_lab.lab.must("lab", "stop", block_lab.lab.root, 100)
    _forget(block_lab)
    assert OFFLINE in block_lab.back_up()
    assert block_lab.stored() == CONTENT


def test_volume_that_is_not_active_is_refused_before_anything_is_done(block_lab: BlockLab) -> None:
    storage = "lvmthin: blocks\n\tvgname nowhere\n\tthinpool data\n"
    block_lab.create("blocks:vm-100-disk-0,size=8M", storages=storage)
    ended = block_lab.lab.tool("--root", block_lab.lab.root, 100)
    assert ended.code == 255
    assert "no such logical volume nowhere/vm-100-disk-0" in ended.err or (
        "volume 'blocks:vm-100-disk-0' is not active" in ended.err
    )
    block_lab.assert_nothing_left()


@pytest.mark.parametrize("clients", [1, 4])
def test_disk_at_an_nbd_server_is_read_however_many_clients_that_takes(
    block_lab: BlockLab, devices: Devices, clients: int
) -> None:
    path = devices.nbd_server(CONTENT, f"--shared={clients}")
    block_lab.create(f"nbd:unix:{path},size=8M")
    log = block_lab.back_up()
    assert OFFLINE in log
    assert block_lab.stored() == CONTENT
    _forget(block_lab)
    block_lab.start()
    log = _pull_amid_writes(block_lab)
    assert PULLED in log
    assert block_lab.stored() == CONTENT


def test_export_of_an_nbd_server_is_named_by_a_uri(block_lab: BlockLab, devices: Devices) -> None:
    path = devices.nbd_server(CONTENT, "-x", "web disk")
    block_lab.create(f"file=nbd+unix:///web%20disk?socket={path},size=8M")
    assert OFFLINE in block_lab.back_up()
    assert block_lab.stored() == CONTENT


def test_nbd_server_that_is_gone_is_a_bounded_refusal(block_lab: BlockLab) -> None:
    block_lab.create("nbd:unix:/nonexistent/socket,size=8M")
    ended = block_lab.lab.tool("--root", block_lab.lab.root, 100)
    assert ended.code == 255
    assert "/nonexistent/socket" in ended.err
    block_lab.assert_nothing_left()


def test_disk_at_an_iscsi_target_is_read_whether_the_vm_is_on_or_off(
    block_lab: BlockLab, iscsi: Devices
) -> None:
    portal, target = iscsi.iscsi_target(ALIGNED)
    storage = f"iscsidirect: san\n\tportal {portal}\n\ttarget {target}\n"
    block_lab.create("san:lun1,size=8M", storages=storage)
    assert OFFLINE in block_lab.back_up()
    assert block_lab.stored() == ALIGNED
    _forget(block_lab)
    block_lab.start()
    assert PULLED in _pull_amid_writes(block_lab)
    assert block_lab.stored() == ALIGNED


def test_vm_of_sockets_may_have_its_disks_on_a_device_and_at_a_server(
    vm: HandVm, loops: Devices
) -> None:
    device, path = loops.loop(CONTENT), loops.nbd_server(ALIGNED)
    vm.start(
        *("-drive", f"file={device},format=raw,if=virtio"),
        *("-drive", f"file=nbd:unix:{path},format=raw,if=virtio"),
    )
    vm.must("--vmid", 4711)
    assert vm.stored("virtio0") == CONTENT
    assert vm.stored("virtio1") == ALIGNED
    vm.assert_let_go()


def test_vm_of_sockets_may_have_its_disk_at_an_iscsi_target(vm: HandVm, iscsi: Devices) -> None:
    portal, target = iscsi.iscsi_target(ALIGNED)
    vm.start("-drive", f"file=iscsi://{portal}/{target}/1,format=raw,if=virtio")
    vm.must("--vmid", 4711)
    assert vm.stored("virtio0") == ALIGNED
    vm.assert_let_go()


def test_target_whose_file_system_hangs_is_refused_in_bounded_time(
    block_lab: BlockLab, tmp_path: Path
) -> None:
    """A FUSE file system whose server never answers, as a network storage whose server is gone."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("NOT covered: a file system that hangs needs root and /dev/fuse")
    storage = f"dir: hanging\n\tpath {tmp_path}/h\n\tis_mountpoint 1\n\tcontent backup\n"
    block_lab.lab.create("--disk", "scsi0=1M")
    path = block_lab.lab.root / "etc/pve/storage.cfg"
    path.write_text(f"{path.read_text().rstrip()}\n\n{storage}")
    (tmp_path / "h").mkdir()
    mount = [sys.executable, "-c", _HANGING_MOUNT, str(tmp_path / "h")]
    server = subprocess.Popen(mount, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        if server.stdout.readline() != "mounted\n":
            pytest.skip("NOT covered: FUSE file systems cannot be mounted here")
        ended = block_lab.lab.tool("--root", block_lab.lab.root, 100, "--storage", "hanging")
    finally:
        server.kill()
        server.wait()
        subprocess.run(["umount", "-l", tmp_path / "h"], env=PROGRAMS, check=False)
    assert ended.code == 255
    assert (
        f"could not activate storage 'hanging': unable to activate storage 'hanging' - "
        f"directory '{tmp_path}/h' does not exist or is unreachable"
    ) in ended.err


def test_target_that_is_read_only_is_refused_before_a_guest_is_stopped(
    block_lab: BlockLab, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT covered: only root can mount a file system")
    storage = f"dir: frozen\n\tpath {tmp_path}\n\tcontent backup\n"
    lab = block_lab.lab
    lab.create("--disk", "scsi0=1M")
    path = lab.root / "etc/pve/storage.cfg"
    path.write_text(f"{path.read_text().rstrip()}\n\n{storage}")
    (tmp_path / "dump").mkdir()
    block_lab.start()
    pid = (lab.run_directory / "100.pid").read_text()
    host("mount", "-t", "tmpfs", "-o", "size=1m", "small", tmp_path)
    try:
        (tmp_path / "dump").mkdir()
        host("mount", "-o", "remount,ro", tmp_path)
        words = ("--storage", "frozen", "--mode", "stop", "--tmpdir", lab.root)
        ended = lab.tool("--root", lab.root, 100, *words)
    finally:
        host("umount", tmp_path)
    assert ended.code == 255
    told = f"storage 'frozen' cannot be written to: '{tmp_path}/dump' is read-only"
    assert told in ended.err, ended.err
    assert "stopping virtual guest" not in ended.err
    assert (lab.run_directory / "100.pid").read_text() == pid


_HANGING_MOUNT = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
done = libc.mount(b"hanging", sys.argv[1].encode(), b"fuse", 0, options)
print("mounted" if done == 0 else "refused", flush=True)
time.sleep(600)
"""
