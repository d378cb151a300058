"""The configuration file of one VM, ``ID.conf``: reading it, and editing single lines of it.

Owns lines, sections and the description's encoding. What an option may hold is left to
`vm_options` and `drive`, edits of the file's bytes to `vm_config_edit` (named here as well, so
that callers need one import). Source: host behaviour, sections 3.2 to 3.5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from urllib.parse import unquote_to_bytes

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.formats.drive import DRIVE_KEYS, DriveConfig, parse_drive
from vzdump_qemu.formats.property_string import parse_boolean, parse_property_string
from vzdump_qemu.formats.vm_config_edit import (
    remove_lock_line,
    set_fleecing_images,
    set_lock_line,
)
from vzdump_qemu.formats.vm_options import AGENT_SCHEMA, UNUSED_COUNT, check_option

__all__ = [
    "AgentSettings",
    "DriveConfig",
    "VmConfig",
    "decode_description",
    "encode_description",
    "parse_vm_config",
    "remove_lock_line",
    "set_fleecing_images",
    "set_lock_line",
]

_HEADER = re.compile(r"\[(.*)\]\s*", re.DOTALL | re.ASCII)
_SPECIAL_NAMES = ("cloudinit", "fleecing")
_SNAPSHOT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]+")
_OPTION = re.compile(r"([a-z][a-z_-]*[0-9]*):\s*(\S.*?)\s*", re.DOTALL | re.ASCII)
_BLANKS = " \t\r\n\f\v"
_LIST_SEPARATORS = re.compile(r"[\s,;]+")
_KEY_ALIASES = {"cdrom": "ide2"}
_DRIVE_KEYS = frozenset(DRIVE_KEYS)
# A run reads its VM's file several times, and other runs theirs meanwhile. (Files may be large.)
_MEMO_COUNT = 64
_UNUSED_KEYS = tuple(f"unused{index}" for index in range(UNUSED_COUNT))


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """What the ``agent`` option says; all defaults unless the agent is enabled.

    Attributes:
        freeze_fs: whether file systems may be frozen for a backup.
        type: ``virtio`` or ``isa``.
    """

    enabled: bool = False
    freeze_fs: bool = True
    type: str = "virtio"


@dataclass(frozen=True, slots=True, kw_only=True)
class VmConfig:
    """One VM's configuration.

    Attributes:
        warnings: a line for each thing that was not understood and is ignored.
        options: the main section's raw values by key, without the description.
        name: empty if there is none; likewise `lock` and `description`.
        bios: ``seabios`` or ``ovmf``.
        drives: in the fixed order of drive keys; drives that cannot be used are absent.
        unused: key and volume of each ``unusedN``, in the order of N.
        pending: raw values of ``[PENDING]``.
        snapshots: raw values by snapshot name.
        special: raw values of ``[special:NAME]`` by lower-case NAME.
        fleecing_images: volume ids that an earlier backup still has to remove.
    """

    vmid: int
    warnings: tuple[str, ...]
    options: Mapping[str, str]
    name: str
    lock: str
    template: bool
    bios: str
    agent: AgentSettings
    drives: tuple[DriveConfig, ...]
    unused: tuple[tuple[str, str], ...]
    description: str
    pending: Mapping[str, str]
    snapshots: Mapping[str, Mapping[str, str]]
    special: Mapping[str, Mapping[str, str]]
    fleecing_images: tuple[str, ...]


def parse_vm_config(raw: bytes, *, vmid: int) -> VmConfig:
    """Read a configuration file.

    Lines that are not understood cost a warning, never an error; bytes that are no UTF-8 are
    kept as escapes like ``\\xff``.
    """
    return _parse(raw, vmid)


@lru_cache(maxsize=_MEMO_COUNT)
def _parse(raw: bytes, vmid: int) -> VmConfig:
    parser = _Parser(vmid=vmid)
    for line in raw.decode("utf-8", errors="backslashreplace").split("\n"):
        parser.feed(line)
    parser.finish_section()
    main = parser.main
    description = main.pop("description", "")
    return VmConfig(
        vmid=vmid,
        warnings=tuple(parser.warnings),
        options=MappingProxyType(main),
        name=main.get("name", ""),
        lock=main.get("lock", ""),
        template=parse_boolean(main.get("template", "0")),
        bios=main.get("bios", "seabios"),
        agent=_read_agent(main.get("agent", "")),
        drives=tuple(parser.drives[key] for key in DRIVE_KEYS if key in parser.drives),
        unused=tuple((key, main[key]) for key in _UNUSED_KEYS if key in main),
        description=description,
        pending=MappingProxyType(parser.pending),
        snapshots=_sealed(parser.snapshots),
        special=_sealed(parser.special),
        fleecing_images=tuple(
            volid
            for volid in _LIST_SEPARATORS.split(
                parser.special.get("fleecing", {}).get("fleecing-images", "")
            )
            if volid
        ),
    )


def _sealed(sections: Mapping[str, Mapping[str, str]]) -> Mapping[str, Mapping[str, str]]:
    """One value serves all who read the same text: nobody may change it."""
    return MappingProxyType({name: MappingProxyType(part) for name, part in sections.items()})


def decode_description(text: str) -> str:
    """Undo the percent-encoding of one description line."""
    return unquote_to_bytes(text).decode("utf-8", errors="replace")


def encode_description(text: str) -> str:
    """Write a description as ``#`` lines, each with its line feed; empty for an empty text."""
    if not text:
        return ""
    return "".join(f"#{_encode_line(line)}\n" for line in text.split("\n"))


def _encode_line(line: str) -> str:
    return "".join(
        chr(byte) if 0x20 <= byte <= 0x7E and byte not in b"%:" else f"%{byte:02X}"
        for byte in line.encode("utf-8", errors="replace")
    )


def _read_agent(text: str) -> AgentSettings:
    values = parse_property_string(text, AGENT_SCHEMA)
    if not values.get("enabled"):
        return AgentSettings()
    return AgentSettings(
        enabled=True,
        freeze_fs=bool(values.get("freeze-fs", True)),
        type=str(values.get("type", "virtio")),
    )


@dataclass(slots=True, kw_only=True)
class _Parser:
    """Takes the lines in turn; `finish_section` after the last."""

    vmid: int
    warnings: list[str] = field(default_factory=list)
    main: dict[str, str] = field(default_factory=dict)
    # Of the main section.
    drives: dict[str, DriveConfig] = field(default_factory=dict)
    pending: dict[str, str] = field(default_factory=dict)
    snapshots: dict[str, dict[str, str]] = field(default_factory=dict)
    special: dict[str, dict[str, str]] = field(default_factory=dict)
    _section: str = ""
    # None while the lines belong to an unknown section.
    _values: dict[str, str] | None = None
    _description: list[str] = field(default_factory=list)
    _has_pending: bool = False

    def __post_init__(self) -> None:
        self._values = self.main

    def feed(self, line: str) -> None:
        if not line.strip(_BLANKS):
            return
        header = _HEADER.fullmatch(line)
        if header is not None:
            self.finish_section()
            self._open_section(header[1])
        elif self._values is not None:
            self._take_line(line, self._values)

    def finish_section(self) -> None:
        if self._description and self._values is not None:
            self._values["description"] = "\n".join(self._description).rstrip()
        self._description = []

    def _warn(self, text: str) -> None:
        self.warnings.append(f"vm {self.vmid} - {text}")

    def _open_section(self, title: str) -> None:
        values: dict[str, str] = {}
        lower = title.lower()
        kind, _, special_name = lower.partition(":")
        self._section, self._values = "", values
        if lower == "pending":
            self._section = "pending"
            if self._has_pending:
                self._warn(f"duplicate section: {title}")
            self.pending, self._has_pending = values, True
        elif kind == "special" and special_name in _SPECIAL_NAMES:
            self._section = lower
            if special_name in self.special:
                self._warn(f"duplicate special section: {special_name}")
            self.special[special_name] = values
        elif _SNAPSHOT_NAME.fullmatch(title):
            if title in self.snapshots:
                self._warn(f"duplicate snapshot section: {title}")
            self.snapshots[title] = values
        else:
            self._warn(f"skipping unknown section: '{title}'")
            self._values = None

    def _take_line(self, line: str, values: dict[str, str]) -> None:
        if line.startswith("#"):
            self._description.append(decode_description(line[1:]))
            return
        match = _OPTION.fullmatch(line)
        if match is None:
            self._warn(f"unable to parse config: {line}")
            return
        key, value = _KEY_ALIASES.get(match[1], match[1]), match[2]
        if key == "description":
            self._description.append(decode_description(value))
        elif key == "delete":
            if self._section == "pending":
                values[key] = value
            else:
                self._warn("property 'delete' is only allowed in [PENDING]")
        elif self._section.startswith("special:") and (
            self._section == "special:cloudinit" or key == "fleecing-images"
        ):
            values[key] = value
        else:
            self._take_option(key, value, values)

    def _take_option(self, key: str, value: str, values: dict[str, str]) -> None:
        try:
            if key not in _DRIVE_KEYS:
                check_option(key, value, vmid=self.vmid)
            else:
                drive = parse_drive(key, value, vmid=self.vmid)
                if values is self.main:
                    self.drives[key] = drive
        except ConfigError as error:
            self._warn(f"unable to parse value of '{key}' - {error.message}")
        else:
            values[key] = value
