"""Asking a running QEMU what its VM is made of: the monitor's answers as one value.

Owns the QMP commands and which of a QEMU's devices are disks of the guest; how that becomes a
configuration is left to `formats.described_vm`. Written for QEMU 7.2 and later; what an answer
lacks costs that detail, not the description.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vzdump_qemu.errors import ConfigError, QmpCommandError
from vzdump_qemu.formats.described_vm import (
    NIC_TYPES,
    DescribedDrive,
    DescribedVm,
    assign_keys,
)
from vzdump_qemu.formats.query_block import device_path_of
from vzdump_qemu.ports import Qmp
from vzdump_qemu.units import MIB

QUERY_TIMEOUT_S = 60.0
_NO_UUID = "00000000-0000-0000-0000-000000000000"
_CONTAINERS = ("/machine/peripheral", "/machine/peripheral-anon", "/machine/unattached")
_CHILD = re.compile(r"child<(.+)>")
_FLASH = re.compile(r"/machine/(?:system|virt)\.flash[0-9]+|.*cfi\.pflash.*")
_FINAL_NUMBER = re.compile(r"[0-9]+\Z")
_PLACES = ("addr", "unit", "channel", "scsi-id", "lun")
_FLOPPIES = frozenset({"floppy"})
# Default size of a machine that does not tell.
_MEMORY_BYTES = 512 * MIB


async def describe_vm(qmp: Qmp, *, has_agent: bool, excluded: Sequence[str]) -> DescribedVm:
    """Ask for everything.

    Args:
        excluded: disks that shall not be backed up, by key, device id or node name.
    Raises:
        QmpError: the monitor failed.
        ConfigError: an excluded disk is not there, or there are too many disks.
    """
    version = (await _ask(qmp, "query-version"))["qemu"]
    backends = await _ask(qmp, "query-block")
    drives: list[DescribedDrive] = []
    left_out: list[str] = []
    for backend in backends:
        found = await _describe_drive(qmp, backend)
        if isinstance(found, DescribedDrive):
            drives.append(found)
        elif found:
            left_out.append(found)
    machine_type = str(await _property(qmp, "/machine", "type") or "")
    socket_count, core_count = await _topology(qmp)
    uuid = str((await _ask(qmp, "query-uuid"))["UUID"]).lower()
    return DescribedVm(
        name=str((await _ask(qmp, "query-name")).get("name", "")),
        uuid="" if uuid == _NO_UUID else uuid,
        qemu_version=f"{version['major']}.{version['minor']}.{version['micro']}",
        arch=str((await _ask_softly(qmp, "query-target") or {}).get("arch", "")),
        machine=machine_type.removesuffix("-machine"),
        memory_bytes=await _memory_bytes(qmp),
        socket_count=socket_count,
        core_count=core_count,
        has_agent=has_agent,
        has_firmware_flash=any(_is_flash(each) for each in backends),
        nics=await _nics(qmp),
        drives=_exclude(assign_keys(drives), excluded),
        left_out=tuple(left_out),
    )


def label_of(backend: Mapping[str, Any]) -> str:
    """What an operator calls a disk: the id of its backend, its node or its device."""
    inserted = backend.get("inserted") or {}
    names = (backend.get("device"), inserted.get("node-name"), backend.get("qdev"))
    return next((str(name) for name in names if name and not str(name).startswith("#")), "?")


# -- disks -----------------------------------------------------------------------------------


async def _describe_drive(qmp: Qmp, backend: Mapping[str, Any]) -> DescribedDrive | str:
    """A drive of the guest, or why it is none; empty for what nobody would miss."""
    device_path = device_path_of(backend)
    inserted = backend.get("inserted") or {}
    if not device_path:
        return f"drive '{label_of(backend)}' has no device of the guest" if inserted else ""
    if _is_flash(backend) and (inserted.get("ro") or not inserted):
        return ""
    front_path = device_path.removesuffix("/virtio-backend")
    device_type = str(await _property(qmp, front_path, "type") or "")
    if device_type in _FLOPPIES:
        return f"floppy '{label_of(backend)}' is not a disk" if inserted else ""
    is_cdrom = device_type.endswith("-cd") or (not device_type and bool(backend.get("removable")))
    if not inserted and not is_cdrom:
        return ""
    parent_type = await _parent_type(qmp, front_path)
    boot_index = await _property(qmp, front_path, "bootindex")
    return DescribedDrive(
        bus="efidisk" if _is_flash(backend) else _bus(device_type, parent_type),
        device_path=device_path,
        names=_names(backend, front_path),
        label=label_of(backend),
        serial=str(await _property(qmp, front_path, "serial") or ""),
        position=await _position(qmp, front_path),
        file_name="" if is_cdrom else str(inserted.get("file", "")),
        format=str(inserted.get("drv", "raw")),
        size_bytes=int((inserted.get("image") or {}).get("virtual-size", 0)),
        is_cdrom=is_cdrom,
        read_only=bool(inserted.get("ro")),
        encrypted=bool(inserted.get("encrypted")) or inserted.get("drv") == "luks",
        controller=parent_type,
        boot_index=boot_index if isinstance(boot_index, int) and boot_index >= 0 else None,
    )


def _is_flash(backend: Mapping[str, Any]) -> bool:
    return _FLASH.fullmatch(device_path_of(backend)) is not None


def _names(backend: Mapping[str, Any], front_path: str) -> tuple[str, ...]:
    inserted = backend.get("inserted") or {}
    names = (
        front_path.rpartition("/")[2],
        str(backend.get("device") or ""),
        str(inserted.get("node-name", "")),
    )
    return tuple(name for name in names if name)


def _bus(device_type: str, parent_type: str) -> str:
    if device_type.startswith("virtio-blk"):
        return "virtio"
    if device_type.startswith("ide-"):
        return "sata" if "ahci" in parent_type else "ide"
    # NVMe, USB and SD disks have no key of their own; any guest finds its disk by SCSI.
    return "scsi"


async def _position(qmp: Qmp, front_path: str) -> tuple[int, ...]:
    """Number of the bus and of the place on it: PCI address, IDE unit, or SCSI address."""
    bus = str(await _property(qmp, front_path, "parent_bus") or "")
    number = _FINAL_NUMBER.search(bus)
    places = [await _property(qmp, front_path, name) for name in _PLACES]
    return (int(number[0]) if number else 0, *(p if isinstance(p, int) else 0 for p in places))


async def _parent_type(qmp: Qmp, front_path: str) -> str:
    """Type of the controller that a disk hangs on; empty if that cannot be told."""
    bus = str(await _property(qmp, front_path, "parent_bus") or "")
    owner = bus.rpartition("/")[0].removesuffix("/virtio-backend")
    return str(await _property(qmp, owner, "type") or "") if owner else ""


def _exclude(
    drives: Sequence[DescribedDrive], excluded: Sequence[str]
) -> tuple[DescribedDrive, ...]:
    wanted = set(excluded)
    known = {name for drive in drives for name in (drive.key, *drive.names)}
    missing = sorted(wanted - known)
    if missing:
        raise ConfigError(
            f"the VM has no disk '{missing[0]}' to leave out",
            hint=f"it has: {', '.join(drive.key for drive in drives) or 'none'}",
        )
    return tuple(
        replace(drive, excluded=not wanted.isdisjoint((drive.key, *drive.names)))
        for drive in drives
    )


# -- the machine -------------------------------------------------------------------------------


async def _memory_bytes(qmp: Qmp) -> int:
    summary = await _ask_softly(qmp, "query-memory-size-summary")
    if not isinstance(summary, Mapping):
        return _MEMORY_BYTES
    return int(summary["base-memory"]) + int(summary.get("plugged-memory", 0))


async def _topology(qmp: Qmp) -> tuple[int, int]:
    """Sockets, and cores of each, of the CPUs that are plugged in."""
    cpus = await _ask_softly(qmp, "query-cpus-fast")
    if not isinstance(cpus, list) or not cpus:
        return 1, 1
    sockets = {(cpu.get("props") or {}).get("socket-id", 0) for cpu in cpus}
    socket_count = len(sockets)
    if len(cpus) % socket_count:
        return 1, len(cpus)
    return socket_count, len(cpus) // socket_count


async def _nics(qmp: Qmp) -> tuple[tuple[str, str], ...]:
    found = []
    for container in _CONTAINERS:
        for child in await _ask_softly(qmp, "qom-list", path=container) or ():
            match = _CHILD.fullmatch(str(child.get("type", "")))
            if match is None or match[1] not in NIC_TYPES:
                continue
            mac = await _property(qmp, f"{container}/{child['name']}", "mac")
            if mac:
                found.append((match[1], str(mac)))
    return tuple(found)


async def _property(qmp: Qmp, path: str, name: str) -> object:
    """A property of an object; None if it has none of that name."""
    value: object = await _ask_softly(qmp, "qom-get", path=path, property=name)
    return value


async def _ask(qmp: Qmp, command: str) -> Any:
    return await qmp.execute(command, timeout_s=QUERY_TIMEOUT_S)


async def _ask_softly(qmp: Qmp, command: str, **arguments: str) -> Any:
    try:
        return await qmp.execute(command, arguments, timeout_s=QUERY_TIMEOUT_S)
    except QmpCommandError:
        return None
