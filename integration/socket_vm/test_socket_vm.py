"""A QEMU started by hand, backed up by its sockets alone."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.real_lab import RealLab
from integration.socket_vm.conftest import MIB, HandVm

UUID = "0ddba11a-0000-4000-8000-00000000cafe"


def _blockdev(node: str, path: Path, driver: str = "raw", **options: object) -> tuple[str, str]:
    file = {"driver": "file", "filename": str(path)}
    return ("-blockdev", json.dumps({"driver": driver, "node-name": node, "file": file} | options))


def _kill_with_guardian(process: subprocess.Popen[str]) -> None:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(process.pid, signal.SIGSTOP)
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


def test_disks_of_drive_and_of_blockdev_are_restored_into_a_lab(
    vm: HandVm, real_lab: RealLab
) -> None:
    images = {name: vm.image(name) for name in ("virtio0", "scsi0", "scsi1", "sata0")}
    images["virtio1"] = vm.image("virtio1", image_format="qcow2")
    vm.start(
        *("-name", "guest=web 1", "-uuid", UUID, "-machine", "q35", "-smp", "4,sockets=2,cores=2"),
        *("-drive", f"file={images['virtio0']},format=raw,if=virtio"),
        *_blockdev("fmt1", images["virtio1"], "qcow2"),
        *("-device", "virtio-blk-pci,drive=fmt1,id=second"),
        *("-device", "virtio-scsi-pci,id=hba"),
        *_blockdev("fmt2", images["scsi0"]),
        *("-device", "scsi-hd,drive=fmt2,scsi-id=0,bootindex=1,serial=S3CR-1"),
        *("-drive", f"file={images['scsi1']},format=raw,if=none,id=old"),
        *("-device", "scsi-hd,drive=old,id=third,scsi-id=5"),
        *("-drive", f"file={images['sata0']},format=raw,if=none,id=last"),
        *("-device", "ide-hd,drive=last,bus=ide.0"),
        *("-device", "ide-cd,bus=ide.1"),
        *("-netdev", "user,id=u", "-device", "virtio-net-pci,netdev=u,mac=52:54:00:12:34:aa"),
    )
    vm.must("--vmid", 4711)
    vm.assert_let_go()
    config = vm.config().splitlines()
    assert {
        "boot: order=scsi0",
        "cores: 2",
        "memory: 64",
        "name: web-1",
        "net0: virtio=52:54:00:12:34:AA",
        "ostype: other",
        "sata1: none,media=cdrom",
        "scsihw: virtio-scsi-pci",
        f"smbios1: uuid={UUID}",
        "sockets: 2",
        "#qmdump#map:virtio1:drive-virtio1::qcow2:",
    } <= set(config)
    assert any("serial=S3CR-1" in line for line in config if line.startswith("scsi0:"))
    assert any(line.startswith("machine: pc-q35-") for line in config)
    real_lab.create()
    real_lab.must("restore", "--root", real_lab.root, vm.archive, 4711)
    restored = real_lab.config(4711).read_text()
    for key, image in images.items():
        path = next(
            real_lab.root / "var/lib/vz/images" / line.split("local:")[1].split(",")[0]
            for line in restored.splitlines()
            if line.startswith(f"{key}:")
        )
        # Beside a qcow2 disk lies the raw one that it was made from.
        assert path.suffix == ".raw" and path.read_bytes() == image.with_suffix(".raw").read_bytes()
    real_lab.must("lab", "start", real_lab.root, 4711)


def test_archive_is_the_point_in_time_while_the_guest_writes(vm: HandVm) -> None:
    image = vm.image("disk", size_bytes=8 * MIB)
    before = image.read_bytes()
    vm.start(*_blockdev("n", image), "-device", "virtio-blk-pci,drive=n,id=d")
    with vm.slow_backup() as process:
        with vm.monitor() as monitor:
            monitor.write_as_guest("/machine/peripheral/d/virtio-backend", 5 * MIB, 2 * MIB)
        assert process.wait(timeout=60) == 0
    assert vm.stored("virtio0") == before
    assert image.read_bytes()[5 * MIB : 7 * MIB] == b"\x99" * (2 * MIB)
    vm.assert_let_go()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_backup_leaves_qemu_as_it_was(
    vm: HandVm, number: signal.Signals, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    image = vm.image("disk", size_bytes=8 * MIB)
    vm.start(*_blockdev("n", image), "-device", "virtio-blk-pci,drive=n")
    with vm.slow_backup() as process:
        os.kill(process.pid, number)
        process.wait(timeout=30)
    wait_until(lambda: not list(vm.state.rglob("*.journal")))
    vm.assert_let_go()
    vm.must()
    assert vm.stored("virtio0") == image.read_bytes()


def test_recover_puts_back_what_a_run_without_a_guardian_left(vm: HandVm) -> None:
    vm.start(
        *_blockdev("n", vm.image("disk", size_bytes=8 * MIB)), "-device", "virtio-blk-pci,drive=n"
    )
    with vm.slow_backup() as process:
        _kill_with_guardian(process)
    assert list(vm.state.rglob("*.journal"))
    told = vm.tool("recover", "--qmp", vm.qmp, "--state-dir", vm.state)
    assert "release-disk" in told and told.endswith("nothing is left\n")
    vm.assert_let_go()


def test_next_backup_under_another_number_recovers_first(vm: HandVm) -> None:
    image = vm.image("disk", size_bytes=8 * MIB)
    vm.start(*_blockdev("n", image), "-device", "virtio-blk-pci,drive=n")
    with vm.slow_backup() as process:
        _kill_with_guardian(process)
    assert "put back after an earlier run" in vm.must("--vmid", 4711).err
    assert vm.stored("virtio0") == image.read_bytes()
    vm.assert_let_go()


def test_backup_in_suspend_mode_lets_the_guest_run_again(vm: HandVm) -> None:
    image = vm.image("disk")
    vm.start(*_blockdev("n", image), "-device", "virtio-blk-pci,drive=n")
    assert "suspending guest" in vm.must("--mode", "suspend").err
    assert vm.stored("virtio0") == image.read_bytes()
    vm.assert_let_go()


def test_end_of_qemu_is_told_and_nothing_is_left(vm: HandVm) -> None:
    vm.start(
        *_blockdev("n", vm.image("disk", size_bytes=8 * MIB)), "-device", "virtio-blk-pci,drive=n"
    )
    with vm.slow_backup() as process:
        vm.kill()
        assert process.stderr is not None
        told = process.stderr.read()
        assert process.wait(timeout=60) == 255
    assert "QEMU ended during the backup" in told
    assert not list(vm.dump.glob("*.vma*"))
    assert not list(vm.directory.rglob("*fleece*"))
    assert not list(vm.directory.rglob("*.journal"))


def test_guest_is_frozen_through_its_agents_socket(
    vm: HandVm, request: pytest.FixtureRequest, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    machine = request.getfixturevalue("machine")
    if machine.guest is None:
        pytest.skip(machine.guest_missing)
    programs = os.environ | {"PATH": f"{os.environ['PATH']}:/sbin:/usr/sbin"}
    image, console = vm.directory / "disk.raw", vm.directory / "console"
    subprocess.run(["truncate", "-s", "16M", image], check=True)
    subprocess.run(["mkfs.ext4", "-q", image], check=True, env=programs)
    vm.start(
        *("-machine", "q35", "-m", "256", *shlex.split(machine.guest.arguments(console))),
        *("-drive", f"file={image},format=raw,if=none,id=d"),
        *("-device", "virtio-blk-pci,drive=d", "-device", "virtio-serial"),
        *("-chardev", f"socket,id=a,path={vm.agent},server=on,wait=off"),
        *("-device", "virtserialport,chardev=a,name=org.qemu.guest_agent.0"),
    )
    wait_until(lambda: console.exists() and "AGENT" in console.read_text(errors="replace"))
    told = ""

    def is_frozen() -> bool:
        nonlocal told
        for old in vm.dump.glob("*.vma"):
            old.unlink()
        told = vm.must("--agent", vm.agent).err
        return "issuing guest-agent 'fs-freeze' command" in told

    # The agent's program may be a moment behind the word on the console.
    wait_until(is_frozen)
    assert "issuing guest-agent 'fs-thaw' command" in told
    (vm.directory / "restored.raw").write_bytes(vm.stored("virtio0"))
    checked = subprocess.run(
        ["e2fsck", "-fn", vm.directory / "restored.raw"],
        env=programs,
        capture_output=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout
    assert "agent: 1" in vm.config()
    vm.assert_let_go()


# -- kinds of disks --------------------------------------------------------------------------


def test_backing_chain_and_internal_snapshots_are_read_as_the_guest_sees_them(vm: HandVm) -> None:
    base = vm.image("base", image_format="qcow2")
    top = vm.directory / "top.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, top], check=True
    )
    subprocess.run(["qemu-io", "-c", "write -P 1 0 1M", top], check=True, capture_output=True)
    subprocess.run(["qemu-img", "snapshot", "-c", "old", top], check=True)
    subprocess.run(["qemu-io", "-c", "write -P 2 2M 1M", top], check=True, capture_output=True)
    vm.start("-drive", f"file={top},format=qcow2,if=virtio")
    vm.must()
    raw = base.with_suffix(".raw").read_bytes()
    expected = b"\1" * MIB + raw[MIB : 2 * MIB] + b"\2" * MIB + raw[3 * MIB :]
    assert vm.stored("virtio0") == expected
    vm.assert_let_go()


def test_throttled_disk_is_read_and_stays_throttled(vm: HandVm) -> None:
    image = vm.image("disk")
    vm.start(
        *("-object", "throttle-group,id=g,x-bps-total=8388608"),
        *_blockdev("n", image),
        *("-blockdev", "driver=throttle,node-name=slow,throttle-group=g,file=n"),
        *("-device", "virtio-blk-pci,drive=slow"),
    )
    vm.must()
    assert vm.stored("virtio0") == image.read_bytes()
    with vm.monitor() as monitor:
        [backend] = monitor.execute("query-block")
    assert backend["inserted"]["node-name"] == "slow"
    vm.assert_let_go()


def test_luks_disk_is_read_in_plain_and_the_operator_is_told(vm: HandVm) -> None:
    image, locked = vm.image("disk"), vm.directory / "disk.luks"
    secret = ("--object", "secret,id=s,data=sesame")
    target = f"driver=luks,key-secret=s,file.filename={locked}"
    sized = "key-secret=s,iter-time=10"
    create = ["qemu-img", "create", "-q", *secret, "-f", "luks", "-o", sized, locked, str(4 * MIB)]
    subprocess.run(create, check=True)
    fill = ["qemu-img", "convert", "-n", *secret, "--target-image-opts", image, target]
    subprocess.run(fill, check=True)
    vm.start(
        *("-object", "secret,id=s,data=sesame"),
        *_blockdev("n", locked, "luks", **{"key-secret": "s"}),
        *("-device", "virtio-blk-pci,drive=n"),
    )
    told = vm.must().err
    assert "WARN: disk 'virtio0' ('n') is encrypted: its archive holds plain data" in told
    assert vm.stored("virtio0") == image.read_bytes()
    vm.assert_let_go()


def test_readonly_disk_is_read_without_a_scratch_image(vm: HandVm) -> None:
    image = vm.image("disk")
    vm.start(
        *_blockdev("n", image, **{"read-only": True}),
        "-device",
        "virtio-blk-pci,drive=n,id=virtio3",
    )
    assert "fleecing" not in vm.must().err
    assert vm.stored("virtio3") == image.read_bytes()
    assert "virtio3: " in vm.config() and ",ro=1,size=4M" in vm.config()
    vm.assert_let_go()


def test_efi_variables_are_an_efi_disk_and_firmware_is_none(vm: HandVm) -> None:
    variables = vm.image("vars", size_bytes=MIB)
    code = vm.image("code", size_bytes=MIB)
    vm.start(
        *("-machine", "q35", "-S"),
        *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}"),
        *("-drive", f"if=pflash,unit=1,format=raw,file={variables}"),
    )
    vm.must()
    assert vm.stored("efidisk0") == variables.read_bytes()
    assert "bios: ovmf\n" in vm.config()
    assert vm.stored_disks() == ["drive-efidisk0"]


def test_iothread_is_refused_by_name_or_read(vm: HandVm) -> None:
    image = vm.image("disk")
    vm.start(
        *("-object", "iothread,id=t"),
        *_blockdev("n", image),
        *("-device", "virtio-blk-pci,drive=n,iothread=t"),
    )
    with vm.monitor() as monitor:
        version = monitor.execute("query-version")["qemu"]
    ended = vm.backup()
    if (version["major"], version["minor"]) < (9, 0):
        assert ended.code == 255
        assert "Device 'drive-virtio0' runs in an iothread" in ended.err
    else:
        assert vm.stored("virtio0") == image.read_bytes()
    vm.assert_let_go()


def test_shared_disk_is_refused_by_name_and_can_be_left_out(vm: HandVm) -> None:
    shared, own = vm.image("shared"), vm.image("own")
    vm.start(
        *_blockdev("s", shared),
        *("-device", "virtio-blk-pci,drive=s,share-rw=on"),
        *_blockdev("o", own),
        *("-device", "virtio-blk-pci,drive=o"),
    )
    ended = vm.backup()
    assert ended.code == 255
    assert "Device 'drive-virtio0' is shared with other writers" in ended.err
    vm.must("--exclude-disk", "s")
    assert vm.stored("virtio1") == own.read_bytes()
    vm.assert_let_go()


def test_drive_without_a_device_is_told_to_be_left_out(vm: HandVm) -> None:
    image = vm.image("disk")
    vm.start(
        *("-drive", f"file={image},format=raw,if=virtio"),
        *("-drive", f"file={vm.image('lost')},format=raw,if=none,id=lost"),
    )
    told = vm.must().err
    assert "WARN: drive 'lost' has no device of the guest: left out" in told
    assert vm.stored_disks() == ["drive-virtio0"]


@pytest.mark.parametrize("device", ["nvme,drive=n,serial=1", "usb-storage,drive=n"])
def test_disk_on_a_bus_without_keys_is_a_scsi_disk(vm: HandVm, device: str) -> None:
    image = vm.image("disk")
    vm.start(
        *("-device", "qemu-xhci", "-drive", f"file={image},format=raw,if=none,id=n"),
        *("-device", device),
    )
    vm.must()
    assert vm.stored("scsi0") == image.read_bytes()
    vm.assert_let_go()


# -- what is refused at once -----------------------------------------------------------------


def test_vm_with_another_name_is_refused(vm: HandVm) -> None:
    vm.start(*_blockdev("n", vm.image("disk")), "-name", "web", "-device", "virtio-blk-pci,drive=n")
    ended = vm.backup("--name", "mail")
    assert ended.code == 255
    assert f"the VM behind '{vm.qmp}' is 'web', not 'mail'" in ended.err
    assert vm.must("--name", "web").code == 0


def test_monitor_held_by_another_client_is_told(vm: HandVm) -> None:
    vm.start("-S")
    with socket.socket(socket.AF_UNIX) as holder:
        holder.connect(str(vm.qmp))
        ended = vm.backup()
    assert ended.code == 255
    assert f"QMP socket '{vm.qmp}' gives no greeting: another client holds it" in ended.err


def test_socket_of_a_qemu_that_ended_is_told(vm: HandVm) -> None:
    vm.start("-S")
    vm.kill()
    ended = vm.backup()
    assert ended.code == 255
    assert f"nobody listens at QMP socket '{vm.qmp}'" in ended.err


@pytest.mark.parametrize("state", ["state", "of-another-user"])
def test_second_backup_of_the_same_vm_is_refused(vm: HandVm, state: str) -> None:
    vm.start(
        *_blockdev("n", vm.image("disk", size_bytes=8 * MIB)), "-device", "virtio-blk-pci,drive=n"
    )
    with vm.slow_backup():
        other = vm.backup("--vmid", 4711, "--lockwait", 0, "--state-dir", vm.directory / state)
    assert other.code == 255
    assert f"another backup of the VM behind '{vm.qmp}' is running" in other.err
