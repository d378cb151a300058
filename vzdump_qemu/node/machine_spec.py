"""From a VM's configuration to the machine that a folder node starts.

Owns which options count in a folder node; how they become QEMU's words is left to
`qemu.command_line`. No software TPM runs here: its state is a volume that only a backup attaches.
Source: host behaviour, sections 3.5 and 7.2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.formats.vm_config import DriveConfig, VmConfig
from vzdump_qemu.ports import Storages
from vzdump_qemu.qemu.command_line import DriveSpec, MachineSpec

_MEMORY_DEFAULT_MIB = 512
_TPM_PREFIX = "tpmstate"
_NO_MEDIUM = ("none", "cdrom")
_MEMORY = re.compile(r"(?:current=)?([0-9]+)(?:,.*)?")


async def make_machine_spec(config: VmConfig, storages: Storages) -> MachineSpec:
    """Activate the VM's volumes and describe its machine.

    Raises:
        ConfigError: a number that is none, a volume that is missing.
    """
    drives = [drive for drive in config.drives if not drive.key.startswith(_TPM_PREFIX)]
    await storages.activate([drive.volid for drive in drives if _has_volume(drive)])
    options = config.options
    return MachineSpec(
        vmid=config.vmid,
        name=config.name,
        memory_mib=_read_memory(options.get("memory", "")),
        core_count=_read_count(options, "cores"),
        socket_count=_read_count(options, "sockets"),
        drives=tuple([await _make_drive(drive, storages) for drive in drives]),
        has_agent=config.agent.enabled,
        has_serial=options.get("serial0") == "socket",
        is_template=config.template,
        extra_arguments=options.get("args", ""),
    )


def _has_volume(drive: DriveConfig) -> bool:
    return drive.volid not in _NO_MEDIUM


async def _make_drive(drive: DriveConfig, storages: Storages) -> DriveSpec:
    is_cdrom = drive.media == "cdrom"
    read_only = drive.options.get("ro", "0") in ("1", "on", "yes", "true")
    if not _has_volume(drive):
        return DriveSpec(key=drive.key, path="", format="raw", is_cdrom=is_cdrom)
    facts = await storages.describe(drive.volid)
    return DriveSpec(
        key=drive.key,
        path=facts.path,
        # What a guest writes onto its own disk must not make another format of it.
        format=drive.format or (facts.format if facts.storage_id else "raw"),
        read_only=read_only,
        is_cdrom=is_cdrom,
    )


def _read_memory(text: str) -> int:
    if not text:
        return _MEMORY_DEFAULT_MIB
    match = _MEMORY.fullmatch(text)
    if match is None:
        raise ConfigError(f"unable to parse value of 'memory' - '{text}'")
    return int(match[1])


def _read_count(options: Mapping[str, str], key: str) -> int:
    text = options.get(key, "1")
    if not re.fullmatch(r"[1-9][0-9]{0,3}", text):
        raise ConfigError(f"unable to parse value of '{key}' - '{text}'")
    return int(text)
