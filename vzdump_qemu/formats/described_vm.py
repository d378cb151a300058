"""A VM configuration written from what a running QEMU tells of itself; pure.

Owns which drive key each device gets and the text of the configuration; asking QEMU is left to
`node.vm_description`. What a configuration has no word for is left out: the disks, and enough of
the machine to start them, are what a restore needs. Source: host behaviour, sections 3.2 to 3.5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.formats.drive import DRIVE_KEYS
from vzdump_qemu.formats.vm_config import encode_description
from vzdump_qemu.units import MIB, render_config_size

EFI_KEY = "efidisk0"
_NO_VOLUME = "none"
_KEY = re.compile(r"(?:drive-)?((ide|scsi|virtio|sata)[0-9]+)")
# What the property grammar, and the tools that rewrite such lines, take as one word.
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9_./+@%-]+")
_NAME_JUNK = re.compile(r"[^A-Za-z0-9.-]+")
# QEMU's own serial numbers, QM00001 and on, are no one's choice.
_SERIAL = re.compile(r"(?!QM[0-9]{5}\Z)[A-Za-z0-9_.-]{1,20}")
# Where a BIOS looks first when nobody told it.
_BOOT_BUSES = ("ide", "sata", "virtio", "scsi")
_MACHINE = re.compile(r"(?:pc-q35|pc-i440fx|virt)-[0-9]+(?:\.[0-9]+)+")
_NIC_MODELS: Mapping[str, str] = {
    "virtio-net-pci": "virtio",
    "virtio-net-pci-non-transitional": "virtio",
    "virtio-net-pci-transitional": "virtio",
    **{
        model: model
        for model in (
            *("e1000", "e1000e", "i82551", "i82557b", "i82559er", "ne2k_isa", "ne2k_pci"),
            *("pcnet", "rtl8139", "vmxnet3", "e1000-82544gc", "e1000-82545em"),
        )
    },
}
NIC_TYPES = frozenset(_NIC_MODELS)
_SCSI_CONTROLLERS: Mapping[str, str] = {
    "lsi53c895a": "lsi",
    "lsi53c810": "lsi53c810",
    "megasas": "megasas",
    "megasas-gen2": "megasas",
    "pvscsi": "pvscsi",
}
_IMAGE_FORMATS = ("raw", "qcow2", "vmdk")


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedDrive:
    """One drive in front of which the guest has a device.

    Attributes:
        bus: ``virtio``, ``scsi``, ``ide``, ``sata`` or ``efidisk``.
        key: drive key; empty until `assign_keys` gave one.
        device_path: QOM path of the device.
        names: ids of the device and of its backend; one that is a drive key is kept.
        position: where on its buses the device is; sorts the drives as the guest meets them.
        serial: number that the guest sees; may be empty.
        file_name: as QEMU gives it; empty without a medium.
        controller: QOM type of the SCSI controller; empty for other buses.
        boot_index: as the device has it; None if it has none.
        encrypted: QEMU deciphers it: what the guest sees, and a backup reads, is plain.
        label: what an operator calls it.
    """

    bus: str
    device_path: str
    names: tuple[str, ...]
    label: str
    key: str = ""
    position: tuple[int, ...] = ()
    serial: str = ""
    file_name: str = ""
    format: str = "raw"
    size_bytes: int = 0
    is_cdrom: bool = False
    read_only: bool = False
    controller: str = ""
    boot_index: int | None = None
    encrypted: bool = False
    excluded: bool = False

    @property
    def volid(self) -> str:
        """What stands for its bytes in the configuration: the file's path, where it is a word."""
        if self.is_cdrom:
            return _NO_VOLUME
        if _PLAIN_PATH.fullmatch(self.file_name):
            return self.file_name
        return f"qemu:{self.key}"

    @property
    def image_format(self) -> str:
        """Format that a restore is to give the new volume."""
        return self.format if self.format in _IMAGE_FORMATS else "raw"


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedVm:
    """What a QEMU tells of its VM.

    Attributes:
        name: as QEMU has it; may be empty, and need not be a host name.
        uuid: lower case with hyphens; empty if it has none of its own.
        machine: its type without ``-machine``.
        nics: QOM type and MAC address of each network card.
        has_firmware_flash: the firmware is in flash memory, so it is no BIOS.
        drives: with their keys.
        left_out: what holds data and cannot be a disk of a configuration, in words.
    """

    name: str
    uuid: str
    qemu_version: str
    arch: str
    machine: str
    memory_bytes: int
    socket_count: int
    core_count: int
    has_agent: bool
    has_firmware_flash: bool
    nics: tuple[tuple[str, str], ...]
    drives: tuple[DescribedDrive, ...]
    left_out: tuple[str, ...] = ()


def assign_keys(drives: Sequence[DescribedDrive]) -> tuple[DescribedDrive, ...]:
    """Give every drive a key of its bus: its own name if that is one, else the first free one.

    A drive beyond the last key of its bus becomes a SCSI disk. Raises ConfigError if even those
    are used up.
    """
    kept: dict[str, str] = {}
    drives = sorted(drives, key=lambda drive: drive.position)
    for drive in drives:
        for name in drive.names:
            match = _KEY.fullmatch(name)
            if match and match[2] == drive.bus and match[1] in DRIVE_KEYS:
                kept.setdefault(match[1], drive.device_path)
    of_device = {path: key for key, path in kept.items()}
    used = set(of_device.values())
    assigned = []
    for drive in drives:
        key = of_device.get(drive.device_path) or _first_free(drive, used)
        used.add(key)
        assigned.append(replace(drive, key=key))
    return _with_own_volids(assigned)


def _first_free(drive: DescribedDrive, used: set[str]) -> str:
    for bus in (drive.bus, "scsi"):
        for key in DRIVE_KEYS:
            if key.rstrip("0123456789") == bus and key not in used:
                return key
    raise ConfigError(
        f"no drive key is left for '{drive.label}'",
        hint="a VM configuration knows 31 SCSI disks at most: leave disks out (--exclude-disk)",
    )


def _with_own_volids(drives: Sequence[DescribedDrive]) -> tuple[DescribedDrive, ...]:
    """No two drives may go by one name, though QEMU can have one read-only file twice."""
    seen: set[str] = set()
    own = []
    for drive in drives:
        own.append(replace(drive, file_name="") if drive.volid in seen else drive)
        seen.add(drive.volid)
    return tuple(own)


def render_described_vm(vm: DescribedVm) -> bytes:
    """The configuration file."""
    lines = {
        "agent": "1" if vm.has_agent else "",
        "arch": vm.arch if vm.arch == "aarch64" else "",
        "bios": "ovmf" if vm.has_firmware_flash else "",
        "boot": _boot_order(vm.drives),
        "cores": str(vm.core_count),
        "machine": _machine(vm.machine),
        "memory": str(max(vm.memory_bytes // MIB, 16)),
        "name": _host_name(vm.name),
        "ostype": "other",
        "scsihw": _scsi_hardware(vm.drives),
        "smbios1": f"uuid={UUID(vm.uuid)}" if vm.uuid else "",
        "sockets": str(vm.socket_count),
    }
    for index, (nic_type, mac) in enumerate(vm.nics[:32]):
        lines[f"net{index}"] = f"{_NIC_MODELS[nic_type]}={mac.upper()}"
    for drive in vm.drives:
        lines[drive.key] = _drive_value(drive)
    title = f"VM '{vm.name}'" if vm.name else "A VM"
    about = f"{title} of QEMU {vm.qemu_version}, described from its monitor"
    body = "".join(f"{key}: {value}\n" for key, value in sorted(lines.items()) if value)
    return (encode_description(about) + body).encode()


def _drive_value(drive: DescribedDrive) -> str:
    if drive.is_cdrom:
        return f"{drive.volid},media=cdrom"
    words = [drive.volid]
    if drive.excluded:
        words.append("backup=0")
    if drive.read_only and drive.key.startswith(("scsi", "virtio")):
        words.append("ro=1")
    if drive.key != EFI_KEY and _SERIAL.fullmatch(drive.serial):
        words.append(f"serial={drive.serial}")
    return ",".join([*words, f"size={render_config_size(drive.size_bytes)}"])


def _boot_order(drives: Sequence[DescribedDrive]) -> str:
    """By the devices' own boot indices; without any, the first disk."""
    bootable = [drive for drive in drives if drive.bus != "efidisk"]
    indexed = [drive for drive in bootable if drive.boot_index is not None]
    indexed.sort(key=lambda drive: drive.boot_index or 0)
    disks = [drive for bus in _BOOT_BUSES for drive in bootable if drive.bus == bus]
    chosen = indexed or [drive for drive in disks if not drive.is_cdrom][:1]
    return f"order={';'.join(drive.key for drive in chosen)}" if chosen else ""


def _machine(name: str) -> str:
    if _MACHINE.fullmatch(name):
        return name
    # A distribution's own name for a version; the platform has none such.
    return "q35" if "q35" in name else ""


def _host_name(name: str) -> str:
    labels = (label.strip("-")[:63].strip("-") for label in _NAME_JUNK.sub("-", name).split("."))
    return ".".join(label for label in labels if label)


def _scsi_hardware(drives: Sequence[DescribedDrive]) -> str:
    disks = [drive for drive in drives if drive.key.startswith("scsi")]
    if not disks:
        return ""
    found = [_SCSI_CONTROLLERS.get(drive.controller, "") for drive in disks]
    return next((controller for controller in found if controller), "virtio-scsi-pci")
