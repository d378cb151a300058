"""The VM configuration of an archive, rewritten for the VM that is made from it.

Owns which lines go, which drives get new volumes, and that map lines and devices fit each other;
volumes and files are left to `restoring`. Pure. Source: VMA format, "Drive-map line"; host
behaviour, sections 3.2 and 3.5.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.units import render_config_size

_MAP_LINE = re.compile(r"#qmdump#map:(\S+):(\S+):(\S*):(\S*):")
_DRIVE_LINE = re.compile(r"((?:ide|scsi|virtio|sata|efidisk|tpmstate)\d+):\s*(\S.*?)\s*")
_SECTION_LINE = re.compile(r"\[.*\]\s*")
_DROPPED_LINE = re.compile(r"#qmdump#|#vzdump#|lock:|parent:|unused\d+:")
_CLOUD_INIT_FILE = re.compile(r"[:/](?:vm-\d+-)?cloudinit(?:\.\w+)?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedDisk:
    """One map line: which device of the archive is which drive of the VM."""

    key: str
    device_id: str
    storage_id: str
    format: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVolume:
    """Where a drive's data is now."""

    volid: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredConfig:
    """The rewritten configuration, and the drives that it had and the archive has no data for."""

    text: str
    left_out_keys: tuple[str, ...]


def _lines(text: str) -> list[str]:
    """Lines end in LF alone; what else Unicode calls a line end may stand in a description."""
    return text.removesuffix("\n").split("\n")


def read_map(text: str, device_ids: Iterable[str]) -> tuple[MappedDisk, ...]:
    """The map lines of a stored configuration, each matched by a device of the archive.

    Raises: ConfigError if a line has no device, a device no line, or one is named twice.
    """
    mapped: list[MappedDisk] = []
    for line in _lines(text):
        match = _MAP_LINE.fullmatch(line)
        if match is None:
            continue
        disk = MappedDisk(
            key=match[1], device_id=match[2], storage_id=match[3], format=match[4] or "raw"
        )
        if any(disk.key == other.key or disk.device_id == other.device_id for other in mapped):
            raise ConfigError(f"drive '{disk.key}' is mapped twice in the stored configuration")
        mapped.append(disk)
    present = set(device_ids)
    for disk in mapped:
        if disk.device_id not in present:
            raise ConfigError(f"archive does not contain data for drive '{disk.key}'")
    unmapped = sorted(present - {disk.device_id for disk in mapped})
    if unmapped:
        raise ConfigError(f"found no device mapping information for device '{unmapped[0]}'")
    return tuple(mapped)


def rewrite_config(text: str, volumes: Mapping[str, NewVolume]) -> RestoredConfig:
    """Rewrite a stored configuration.

    A disk that the archive has no data for, and a cloud-init drive, would still name a volume of
    the VM that was backed up: such lines become comments.

    Args:
        volumes: by drive key, for every map line.
    Raises: ConfigError if a volume's drive is not in the configuration.
    """
    kept: list[str] = []
    left_out: list[str] = []
    placed: set[str] = set()
    for line in _lines(text):
        if _SECTION_LINE.fullmatch(line):
            break
        if _DROPPED_LINE.match(line):
            continue
        match = _DRIVE_LINE.fullmatch(line)
        if match is None:
            kept.append(line)
        elif match[1] in volumes:
            kept.append(f"{match[1]}: {_rewrite_drive(match[2], volumes[match[1]])}")
            placed.add(match[1])
        elif _is_plain_medium(match[2]):
            kept.append(line)
        else:
            kept.append(f"#{line}")
            left_out.append(match[1])
    missing = sorted(volumes.keys() - placed)
    if missing:
        raise ConfigError(f"the stored configuration has no drive '{missing[0]}'")
    while kept and not kept[-1].strip():
        kept.pop()
    return RestoredConfig(text="".join(f"{line}\n" for line in kept), left_out_keys=tuple(left_out))


def _rewrite_drive(value: str, volume: NewVolume) -> str:
    properties = [volume.volid]
    for part in value.split(","):
        key, equals, _ = part.partition("=")
        if equals and key not in ("file", "volume", "format", "size"):
            properties.append(part)
    properties.append(f"size={render_config_size(volume.size_bytes)}")
    return ",".join(properties)


def _is_plain_medium(value: str) -> bool:
    parts = value.split(",")
    file = next((part for part in parts if "=" not in part), "")
    file = next((part[5:] for part in parts if part.startswith("file=")), file)
    return "media=cdrom" in parts and _CLOUD_INIT_FILE.search(file) is None
