"""Backups of VMs that Debian's QEMU runs: pulled over NBD, or read while they are off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.real_lab import RealLab
from integration.stock_qemu.monitor import Monitor

MIB = 1 << 20
# Reading 24 MiB takes long enough for everything that happens meanwhile.
SLOW = ("--bwlimit", 4096)
DEVICE = "/machine/peripheral/scsi0"


def _image_bytes(lab: RealLab, index: int, image_format: str) -> bytes:
    path = lab.image(index, image_format=image_format)
    if image_format == "raw":
        return path.read_bytes()
    raw = lab.root / f"compare-{index}.raw"
    subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", path, raw], check=True)
    return raw.read_bytes()


def _restored(lab: RealLab, key: str) -> bytes:
    [path] = lab.dump.glob("*.vma*")
    directory = lab.root / "extracted"
    if not directory.exists():
        lab.must("extract", path, directory)
    return (directory / f"disk-drive-{key}.raw").read_bytes()


def _monitor(lab: RealLab) -> Monitor:
    return Monitor(lab.run_directory / "100.qmp")


def _assert_let_go(lab: RealLab) -> None:
    """QEMU runs as before; of ours there is nothing in it, nor beside it."""
    with _monitor(lab) as monitor:
        assert not {name for name in monitor.node_names() if name.startswith("vzdump-")}
        assert monitor.execute("query-block-exports") == []
    assert not [path for path in lab.run_directory.iterdir() if path.suffix == ".nbd"]
    assert not list(lab.image().parent.glob("*fleece*"))
    assert "lock:" not in lab.config().read_text() and "fleecing" not in lab.config().read_text()
    assert not list((lab.root / "var/lib/vzdump-qemu").glob("*.journal"))


def _run_state(lab: RealLab) -> str:
    [row] = json.loads(lab.must("lab", "status", lab.root, "--json").out)
    return str(row["run_state"])


@contextmanager
def _backup_under_way(lab: RealLab, *words: object) -> Iterator[subprocess.Popen[str]]:
    """A slow backup whose point in time is fixed by now."""
    argv = [sys.executable, "-m", "vzdump_qemu", "--root", lab.root, 100, *SLOW, *words]
    process = subprocess.Popen(
        [str(word) for word in argv], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "resuming VM again" in line:
                break
        yield process
    finally:
        process.kill()
        process.communicate()


def _wait_until(holds: Callable[[], bool], *, limit_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline_s, "it did not come"
        time.sleep(0.05)


@pytest.mark.parametrize("key", ["scsi0", "virtio1", "sata0", "ide0"])
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_running_vm_is_pulled_without_any_option(
    real_lab: RealLab, key: str, image_format: str
) -> None:
    real_lab.create("--disk", f"{key}=8M,format={image_format}", "--fill", 1)
    real_lab.must("lab", "start", real_lab.root, 100)
    ended = real_lab.must("--root", real_lab.root, 100)
    assert "data path: pull (QEMU " in ended.err
    assert _restored(real_lab, key) == _image_bytes(real_lab, 0, image_format)
    assert _run_state(real_lab) == "running"
    _assert_let_go(real_lab)


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_vm_that_is_off_is_read_without_a_qemu(real_lab: RealLab, image_format: str) -> None:
    disks = ("--disk", f"scsi0=8M,format={image_format}", "--disk", "scsi1=1049088")
    real_lab.create(*disks, "--fill", 1)
    ended = real_lab.must("--root", real_lab.root, 100)
    assert "data path: offline (the VM is off" in ended.err
    assert "starting kvm" not in ended.err
    assert _restored(real_lab, "scsi0") == _image_bytes(real_lab, 0, image_format)
    assert _restored(real_lab, "scsi1") == _image_bytes(real_lab, 1, "raw")
    assert list(real_lab.run_directory.iterdir()) == []


def test_archive_is_the_point_in_time_while_the_guest_writes(real_lab: RealLab) -> None:
    real_lab.create("--disk", "scsi0=24M", "--disk", "scsi1=8M", "--fill", 1)
    before = [_image_bytes(real_lab, index, "raw") for index in (0, 1)]
    real_lab.must("lab", "start", real_lab.root, 100)
    with _backup_under_way(real_lab) as process:
        with _monitor(real_lab) as monitor:
            for offset_bytes in range(0, 24 * MIB, 3 * MIB):
                monitor.write_as_guest(DEVICE, offset_bytes, MIB)
            monitor.write_as_guest("/machine/peripheral/scsi1", 4 * MIB, 4 * MIB)
        assert process.wait(timeout=60) == 0
    assert [_restored(real_lab, key) for key in ("scsi0", "scsi1")] == before
    assert _image_bytes(real_lab, 0, "raw")[:MIB] == b"\x99" * MIB
    assert _image_bytes(real_lab, 1, "raw")[4 * MIB :] == b"\x99" * (4 * MIB)
    _assert_let_go(real_lab)


def test_full_fleecing_image_costs_the_backup_and_not_the_guest(real_lab: RealLab) -> None:
    real_lab.create("--disk", "scsi0=24M", "--fill", 1)
    real_lab.must("lab", "start", real_lab.root, 100)
    with _backup_under_way(real_lab, "--fleecing-limit", 4) as process:
        with _monitor(real_lab) as monitor:
            monitor.write_as_guest(DEVICE, 12 * MIB, 12 * MIB)
            assert monitor.execute("query-status")["status"] == "running"
        assert process.stderr is not None
        told = process.stderr.read()
        assert process.wait(timeout=60) == 255
    assert "the point in time of VM 100 cannot be read any more" in told
    assert not list(real_lab.dump.glob("*.vma*"))
    assert _image_bytes(real_lab, 0, "raw")[12 * MIB :] == b"\x99" * (12 * MIB)
    assert _run_state(real_lab) == "running"
    _assert_let_go(real_lab)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_backup_leaves_qemu_as_it_was(real_lab: RealLab, number: signal.Signals) -> None:
    real_lab.create("--disk", "scsi0=24M", "--disk", "virtio1=8M,format=qcow2", "--fill", 1)
    real_lab.must("lab", "start", real_lab.root, 100)
    with _backup_under_way(real_lab) as process:
        with _monitor(real_lab) as monitor:
            monitor.write_as_guest(DEVICE, 20 * MIB, MIB)
        os.kill(process.pid, number)
        process.wait(timeout=30)
    journals = real_lab.root / "var/lib/vzdump-qemu"
    _wait_until(lambda: not list(journals.glob("*.journal")))
    assert _run_state(real_lab) == "running"
    _assert_let_go(real_lab)
    real_lab.must("--root", real_lab.root, 100)
    assert _restored(real_lab, "scsi0") == _image_bytes(real_lab, 0, "raw")


def test_end_of_qemu_is_told_and_nothing_is_left(real_lab: RealLab) -> None:
    real_lab.create("--disk", "scsi0=24M", "--fill", 1)
    real_lab.must("lab", "start", real_lab.root, 100)
    with _backup_under_way(real_lab) as process:
        [qemu] = real_lab.processes()
        os.kill(qemu, signal.SIGKILL)
        assert process.stderr is not None
        told = process.stderr.read()
        assert process.wait(timeout=60) == 255
    assert "VM 100 not running: QEMU ended during the backup" in told
    assert not list(real_lab.dump.glob("*.vma*"))
    assert not list(real_lab.image().parent.glob("*fleece*"))
    assert not [path for path in real_lab.run_directory.iterdir() if path.suffix == ".nbd"]


@pytest.mark.parametrize("mode", ["suspend", "snapshot"])
def test_paused_vm_is_pulled_and_stays_paused(real_lab: RealLab, mode: str) -> None:
    real_lab.create("--disk", "scsi0=8M", "--fill", 1)
    real_lab.must("lab", "start", real_lab.root, 100, "--paused")
    real_lab.must("--root", real_lab.root, 100, "--mode", mode)
    assert _restored(real_lab, "scsi0") == _image_bytes(real_lab, 0, "raw")
    assert _run_state(real_lab) == "prelaunch"
    _assert_let_go(real_lab)


def test_template_is_read_without_a_qemu(real_lab: RealLab) -> None:
    real_lab.create("--disk", "scsi0=8M,format=qcow2", "--fill", 1)
    with open(real_lab.config(), "a", encoding="utf-8") as config:
        config.write("template: 1\n")
    ended = real_lab.must("--root", real_lab.root, 100)
    assert "data path: offline" in ended.err
    assert _restored(real_lab, "scsi0") == _image_bytes(real_lab, 0, "qcow2")


def test_running_vm_is_not_read_offline(real_lab: RealLab) -> None:
    real_lab.create("--disk", "scsi0=8M")
    real_lab.must("lab", "start", real_lab.root, 100)
    ended = real_lab.tool("--root", real_lab.root, 100, "--data-path", "offline")
    assert ended.code == 255
    assert "VM 100 is running: its disks cannot be read offline" in ended.err
    assert not list(real_lab.dump.glob("*.vma*"))


def test_directory_of_the_socket_is_ours_alone(real_lab: RealLab) -> None:
    real_lab.create("--disk", "scsi0=24M", "--fill", 1)
    real_lab.must("lab", "start", real_lab.root, 100)
    with _backup_under_way(real_lab):
        directory: Path = real_lab.run_directory / "100.nbd"
        assert directory.stat().st_mode & 0o777 == 0o700
        assert (directory / "s").is_socket()
