"""Drive lines of a VM configuration: ``scsi0: STORE:vm-100-disk-0,iothread=1,size=32G``.

Owns which drive keys there are, their fixed order, and what one line says. Which drives take part
in a backup is left to `plan`. Source: host behaviour, section 3.5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.formats.property_string import (
    PropertyKind,
    PropertySchema,
    convert_properties,
    parse_size,
    split_property_string,
)

DRIVE_KEYS: tuple[str, ...] = (
    *(f"ide{index}" for index in range(4)),
    *(f"scsi{index}" for index in range(31)),
    *(f"virtio{index}" for index in range(16)),
    *(f"sata{index}" for index in range(6)),
    "efidisk0",
    "tpmstate0",
)
"""Every drive key, in the order in which drives are named."""

_TEXT, _INTEGER, _BOOLEAN = PropertyKind.TEXT, PropertyKind.INTEGER, PropertyKind.BOOLEAN
_OLD_GEOMETRY = ("cyls", "heads", "secs", "trans")
_RATES = ("bps", "mbps", "iops")
_DIRECTIONS = ("", "_rd", "_wr")

_COMMON: Mapping[str, PropertyKind] = {
    **dict.fromkeys(
        ("file", "aio", "cache", "discard", "format", "import-from", "media", "rerror"), _TEXT
    ),
    **dict.fromkeys(("serial", "size", "werror", *_OLD_GEOMETRY), _TEXT),
    **dict.fromkeys(("backup", "detect_zeroes", "replicate", "shared", "snapshot"), _BOOLEAN),
    # Rates in MB are fractions; no rate is used here, so all stay text.
    **{f"{rate}{direction}": _TEXT for rate in _RATES for direction in _DIRECTIONS},
    **{f"{rate}{direction}_max": _TEXT for rate in _RATES for direction in _DIRECTIONS},
    **{f"{rate}{way}_max_length": _TEXT for rate in ("bps", "iops") for way in _DIRECTIONS},
}
_BY_BUS: Mapping[str, Mapping[str, PropertyKind]] = {
    "ide": {**_COMMON, "model": _TEXT, "ssd": _BOOLEAN, "wwn": _TEXT},
    "scsi": {
        **_COMMON,
        **dict.fromkeys(("iothread", "ro", "scsiblock", "ssd"), _BOOLEAN),
        **dict.fromkeys(("product", "vendor", "wwn"), _TEXT),
        "queues": _INTEGER,
    },
    "virtio": {**_COMMON, "iothread": _BOOLEAN, "ro": _BOOLEAN},
    "sata": {**_COMMON, "ssd": _BOOLEAN, "wwn": _TEXT},
    "efidisk": {
        **dict.fromkeys(("file", "format", "size", "efitype", "import-from", "ms-cert"), _TEXT),
        "pre-enrolled-keys": _BOOLEAN,
    },
    "tpmstate": dict.fromkeys(("file", "format", "size", "version", "import-from"), _TEXT),
}
_ALIASES: Mapping[str, str] = {
    "volume": "file",
    **{
        f"{rate}{way}_length": f"{rate}{way}_max_length"
        for rate in ("bps", "iops")
        for way in ("_rd", "_wr")
    },
}
_SCHEMAS: Mapping[str, PropertySchema] = {
    bus: PropertySchema(keys=keys, default_key="file", aliases=_ALIASES)
    for bus, keys in _BY_BUS.items()
}
_EVERY_KEY = frozenset(key for keys in _BY_BUS.values() for key in keys) | frozenset(_ALIASES)
_BUS_OF_KEY = re.compile(r"([a-z]+)[0-9]+")
_VOLUME_ID = re.compile(r"[^:]+:.+")
_CLOUD_INIT = re.compile(r".*[:/](?:vm-[0-9]+-)?cloudinit(?:\.(?:raw|qcow2?|qed|vmdk|cloop))?")
_MEDIA = ("cdrom", "disk")


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveConfig:
    """One drive line.

    Attributes:
        key: ``scsi0``.
        volid: volume id, absolute path, or for cdroms ``none`` and ``cdrom``; old bare file names
            are given as volume ids of ``local``.
        media: ``disk`` or ``cdrom``.
        backup: whether it is to be backed up; yes where nothing is said.
        backup_given: whether the line says so itself.
        size_text: as written, empty if the line names no size.
        size_bytes: None if the line names no size.
        format: as written, empty if the line names none.
        options: every raw value but the file itself.
        is_cloud_init: the generated drive with the cloud-init data.
    """

    key: str
    volid: str
    media: str
    backup: bool
    backup_given: bool
    size_text: str
    size_bytes: int | None
    format: str
    iothread: bool
    options: Mapping[str, str]
    is_cloud_init: bool


def parse_drive(key: str, text: str, *, vmid: int) -> DriveConfig:
    """Read the value of a drive key.

    Raises: ConfigError for a line that names no usable drive; such a drive counts as absent.
    """
    match = _BUS_OF_KEY.fullmatch(key)
    if key not in DRIVE_KEYS or match is None:
        raise ConfigError(f"unknown setting '{key}'")
    bus = match[1]
    text = _without_unheard_of(text)
    raw = split_property_string(text, _SCHEMAS[bus])
    values = convert_properties(raw, _SCHEMAS[bus])
    media = raw.get("media", "disk")
    _check(bus, raw, media)
    volid = _resolve_file(raw["file"], media=media, vmid=vmid)
    size_text = raw.get("size", "")
    return DriveConfig(
        key=key,
        volid=volid,
        media=media,
        backup=bool(values.get("backup", True)),
        backup_given="backup" in values,
        size_text=size_text,
        size_bytes=parse_size(size_text) if size_text else None,
        format=raw.get("format", ""),
        iothread=bool(values.get("iothread", False)),
        options=MappingProxyType(
            {
                name: value
                for name, value in raw.items()
                if name != "file" and name not in _OLD_GEOMETRY
            }
        ),
        is_cloud_init=_CLOUD_INIT.fullmatch(volid) is not None,
    )


def _without_unheard_of(text: str) -> str:
    """Drop properties of a later platform: no disk may vanish from its backup for one of them.

    A property that only another bus has stays, and makes the line unusable as it does there.
    """
    parts = text.split(",")
    return ",".join(part for part in parts if "=" not in part or part.split("=")[0] in _EVERY_KEY)


def _check(bus: str, raw: Mapping[str, str], media: str) -> None:
    if "file" not in raw:
        raise ConfigError("file: property is missing and it is not optional")
    if media not in _MEDIA:
        raise ConfigError(
            f"media: value '{media}' does not have a value in the enumeration 'cdrom, disk'"
        )
    for rate in _RATES:
        for one_way in (f"{rate}_rd", f"{rate}_wr"):
            if rate in raw and one_way in raw:
                raise ConfigError(f"'{rate}' and '{one_way}' exclude each other")
    if media != "cdrom":
        return
    if bus == "virtio":
        raise ConfigError("'media=cdrom' is not possible on virtio")
    for name in ("snapshot", "format"):
        if name in raw:
            raise ConfigError(f"'{name}' is not possible with 'media=cdrom'")


def _resolve_file(file: str, *, media: str, vmid: int) -> str:
    if file in ("none", "cdrom"):
        if media != "cdrom":
            raise ConfigError(f"file: '{file}' needs 'media=cdrom'")
        return file
    if file.startswith("/") or _VOLUME_ID.fullmatch(file):
        return file
    if "/" in file or ":" in file:
        raise ConfigError(f"file: unable to parse volume ID '{file}'")
    return f"local:iso/{file}" if media == "cdrom" else f"local:{vmid}/{file}"
