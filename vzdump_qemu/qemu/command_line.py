"""The command line of a QEMU that a folder node starts.

Owns which options make a machine out of a VM's configuration, in words that a stock QEMU and a
stand-in both take; reading configurations and finding volumes is left to `node.launcher`. Pure.
Ids are those that backups rely on: block backend ``drive-KEY``, device ``KEY``. Source: host
behaviour, section 7.2.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from vzdump_qemu.errors import PowerError

AGENT_PORT_NAME = "org.qemu.guest_agent.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveSpec:
    """One drive of the machine.

    Attributes:
        key: of the configuration, e.g. ``scsi0``.
        path: image file or device; empty for a CD drive without a medium.
        format: ``raw``, ``qcow2``, …
    """

    key: str
    path: str
    format: str
    read_only: bool = False
    is_cdrom: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    """What a machine is made of.

    Attributes:
        extra_arguments: the configuration's ``args:``, as a shell would read it.
        is_template: disks are read-only where their bus allows it.
    """

    vmid: int
    name: str
    memory_mib: int
    core_count: int
    socket_count: int
    drives: Sequence[DriveSpec]
    has_agent: bool = False
    has_serial: bool = False
    is_template: bool = False
    extra_arguments: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimePaths:
    """Where the process puts its sockets and its number."""

    qmp: str
    agent: str
    serial: str
    pid_file: str


def build_command_line(
    binary: str, spec: MachineSpec, paths: RuntimePaths, *, paused: bool, accelerator: str = "tcg"
) -> tuple[str, ...]:
    """Return the argument vector, program first.

    Raises:
        PowerError: `extra_arguments` cannot be split, or a drive key is of no known bus.
    """
    cpu_count = spec.core_count * spec.socket_count
    argv = [binary, "-name", _escape(spec.name or f"vm{spec.vmid}"), "-no-shutdown"]
    argv += [*_socket_chardev("qmp", paths.qmp), "-mon", "chardev=qmp,mode=control"]
    argv += ["-pidfile", paths.pid_file, "-daemonize", "-no-user-config", "-nodefaults"]
    argv += ["-machine", f"q35,accel={accelerator}", "-display", "none", "-vga", "none"]
    argv += ["-smp", f"{cpu_count},sockets={spec.socket_count},cores={spec.core_count}"]
    argv += ["-m", str(spec.memory_mib)]
    if paused:
        argv.append("-S")
    if spec.has_agent:
        argv += _socket_chardev("qga0", paths.agent)
        argv += ["-device", "virtio-serial,id=qga"]
        argv += ["-device", f"virtserialport,chardev=qga0,name={AGENT_PORT_NAME}"]
    if spec.has_serial:
        argv += _socket_chardev("serial0", paths.serial)
        argv += ["-device", "isa-serial,chardev=serial0"]
    argv += _drive_options(spec)
    try:
        argv += shlex.split(spec.extra_arguments)
    except ValueError as error:
        raise PowerError(f"unable to parse 'args' of VM {spec.vmid} - {error}") from error
    return tuple(argv)


def _drive_options(spec: MachineSpec) -> list[str]:
    options: list[str] = []
    buses = {_bus(drive.key) for drive in spec.drives}
    if "scsi" in buses:
        options += ["-device", "virtio-scsi-pci,id=scsihw0"]
    if "sata" in buses:
        options += ["-device", "ahci,id=ahci0"]
    for drive in spec.drives:
        options += ["-drive", _drive_text(drive, is_template=spec.is_template)]
        device = _device_text(drive)
        if device:
            options += ["-device", device]
    return options


def _drive_text(drive: DriveSpec, *, is_template: bool) -> str:
    text = f"if=none,id=drive-{drive.key}"
    if drive.path:
        text += f",file={_escape(drive.path)},format={drive.format}"
    if drive.is_cdrom:
        return f"{text},media=cdrom"
    # IDE and SATA disks cannot be read-only: QEMU refuses to start with such a pair.
    if drive.read_only or (is_template and _bus(drive.key) not in ("ide", "sata")):
        text += ",readonly=on"
    return text


def _device_text(drive: DriveSpec) -> str:
    """The device in front of a drive; an EFI disk has none, its firmware is not emulated."""
    bus, index = _bus(drive.key), int(re.sub(r"\D", "", drive.key))
    kind = "cd" if drive.is_cdrom else "hd"
    tail = f"drive=drive-{drive.key},id={drive.key}"
    match bus:
        case "scsi":
            return f"scsi-{kind},bus=scsihw0.0,channel=0,scsi-id={index},lun=0,{tail}"
        case "virtio":
            return f"virtio-blk-pci,{tail}"
        case "ide":
            return f"ide-{kind},bus=ide.{index},{tail}"
        case "sata":
            return f"ide-{kind},bus=ahci0.{index},{tail}"
        case "efidisk":
            return ""
        case _:
            raise PowerError(f"drive '{drive.key}' is of no known bus")


def _bus(key: str) -> str:
    return key.rstrip("0123456789")


def _socket_chardev(chardev_id: str, path: str) -> list[str]:
    return ["-chardev", f"socket,id={chardev_id},path={_escape(path)},server=on,wait=off"]


def _escape(value: str) -> str:
    # A comma separates options unless it stands twice.
    return value.replace(",", ",,")
