"""The argument vector of a folder node's QEMU."""

from __future__ import annotations

import itertools

import pytest

from vzdump_qemu.errors import PowerError
from vzdump_qemu.qemu.command_line import (
    DriveSpec,
    MachineSpec,
    RuntimePaths,
    build_command_line,
)

PATHS = RuntimePaths(
    qmp="/r/100.qmp", agent="/r/100.qga", serial="/r/100.serial0", pid_file="/r/100.pid"
)


def _build(*drives, paused=False, **changes):
    values = {"vmid": 100, "name": "web", "memory_mib": 512, "core_count": 2, "socket_count": 1}
    spec = MachineSpec(**(values | changes), drives=drives)
    return build_command_line("/usr/bin/qemu-system-x86_64", spec, PATHS, paused=paused)


def _after(argv, option):
    return [value for name, value in itertools.pairwise(argv) if name == option]


def test_command_line_names_monitor_and_pid_file():
    argv = _build()
    assert argv[:4] == ("/usr/bin/qemu-system-x86_64", "-name", "web", "-no-shutdown")
    assert _after(argv, "-chardev") == ["socket,id=qmp,path=/r/100.qmp,server=on,wait=off"]
    assert _after(argv, "-mon") == ["chardev=qmp,mode=control"]
    assert _after(argv, "-pidfile") == ["/r/100.pid"]
    assert _after(argv, "-machine") == ["q35,accel=tcg"]
    assert "-daemonize" in argv
    assert "-S" not in argv
    assert "-id" not in argv


def test_command_line_paused_stops_processors():
    assert "-S" in _build(paused=True)


def test_command_line_processors_and_memory():
    argv = _build(core_count=4, socket_count=2, memory_mib=2048)
    assert _after(argv, "-smp") == ["8,sockets=2,cores=4"]
    assert _after(argv, "-m") == ["2048"]


@pytest.mark.parametrize(
    ("key", "device"),
    [
        ("scsi3", "scsi-hd,bus=scsihw0.0,channel=0,scsi-id=3,lun=0,drive=drive-scsi3,id=scsi3"),
        ("virtio15", "virtio-blk-pci,drive=drive-virtio15,id=virtio15"),
        ("ide2", "ide-hd,bus=ide.2,drive=drive-ide2,id=ide2"),
        ("sata5", "ide-hd,bus=ahci0.5,drive=drive-sata5,id=sata5"),
    ],
)
def test_command_line_disk_has_backend_and_device(key, device):
    argv = _build(DriveSpec(key=key, path="/v/d.qcow2", format="qcow2"))
    assert f"if=none,id=drive-{key},file=/v/d.qcow2,format=qcow2" in _after(argv, "-drive")
    assert device in _after(argv, "-device")


def test_command_line_efi_disk_has_backend_only():
    argv = _build(DriveSpec(key="efidisk0", path="/v/e.raw", format="raw"))
    assert _after(argv, "-drive") == ["if=none,id=drive-efidisk0,file=/v/e.raw,format=raw"]
    assert _after(argv, "-device") == []


def test_command_line_cd_drive_without_medium_has_no_file():
    argv = _build(DriveSpec(key="ide2", path="", format="raw", is_cdrom=True))
    assert _after(argv, "-drive") == ["if=none,id=drive-ide2,media=cdrom"]
    assert _after(argv, "-device") == ["ide-cd,bus=ide.2,drive=drive-ide2,id=ide2"]


def test_command_line_template_disks_are_read_only_where_the_bus_allows():
    argv = _build(
        DriveSpec(key="scsi0", path="/v/a.raw", format="raw"),
        DriveSpec(key="sata0", path="/v/b.raw", format="raw"),
        is_template=True,
    )
    scsi, sata = _after(argv, "-drive")
    assert scsi.endswith(",readonly=on")
    assert "readonly" not in sata


def test_command_line_commas_are_doubled():
    argv = _build(DriveSpec(key="scsi0", path="/v/a,b.raw", format="raw"), name="a,b")
    assert _after(argv, "-name") == ["a,,b"]
    assert "file=/v/a,,b.raw" in _after(argv, "-drive")[0]


def test_command_line_agent_gets_its_channel():
    argv = _build(has_agent=True)
    assert "socket,id=qga0,path=/r/100.qga,server=on,wait=off" in _after(argv, "-chardev")
    assert "virtserialport,chardev=qga0,name=org.qemu.guest_agent.0" in _after(argv, "-device")


def test_command_line_serial_port_gets_its_socket():
    argv = _build(has_serial=True)
    assert "socket,id=serial0,path=/r/100.serial0,server=on,wait=off" in _after(argv, "-chardev")


def test_command_line_extra_arguments_come_last_as_a_shell_reads_them():
    argv = _build(extra_arguments="-device 'virtio rng' -kernel /boot/vmlinuz")
    assert argv[-4:] == ("-device", "virtio rng", "-kernel", "/boot/vmlinuz")


def test_command_line_unfinished_quote_is_refused():
    with pytest.raises(PowerError, match=r"^unable to parse 'args' of VM 100 - No closing quota"):
        _build(extra_arguments="-name 'x")


def test_command_line_unknown_bus_is_refused():
    with pytest.raises(PowerError, match=r"^drive 'floppy0' is of no known bus$"):
        _build(DriveSpec(key="floppy0", path="/v/a", format="raw"))
