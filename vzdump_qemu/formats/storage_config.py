"""The storage configuration ``storage.cfg`` and volume ids.

Owns which types there are with their required keys and contents, the storage ``local`` that
always exists, and whether a storage may be used on a node. The grammar of sections is
`section_config`'s; paths are left to `storage_volumes`, activation to `node`. Source: host
behaviour, sections 5.1, 5.2 and 5.4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from vzdump_qemu.errors import ConfigError, StorageError
from vzdump_qemu.formats.property_string import parse_boolean, parse_integer
from vzdump_qemu.formats.section_config import Section, SectionLine, split_sections

LOCAL_ID = "local"
LOCAL_PATH = "/var/lib/vz"
FILE_NAME = "storage.cfg"

_ID = r"[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])"
_STORAGE_ID = re.compile(_ID)
_VOLUME_ID = re.compile(rf"({_ID}):(.+)", re.DOTALL)
_LIST_SEPARATORS = re.compile(r"[\s,;]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageType:
    """What one storage type requires and may hold.

    Attributes:
        required: keys that a section must have.
        contents: kinds of content that it may hold.
        default_contents: what it holds where the section does not say.
        is_shared: the same storage on every node, whatever the section says.
    """

    required: tuple[str, ...]
    contents: frozenset[str]
    default_contents: frozenset[str]
    is_shared: bool = False


def _type(
    required: str, contents: str, default_contents: str = "", *, is_shared: bool = False
) -> StorageType:
    return StorageType(
        required=tuple(required.split()),
        contents=frozenset(contents.split()),
        default_contents=frozenset((default_contents or contents).split()),
        is_shared=is_shared,
    )


_FILES = "images rootdir vztmpl iso backup snippets import"
_FILES_OR_NONE = f"{_FILES} none"
_DISKS = "images rootdir"
STORAGE_TYPES: Mapping[str, StorageType] = {
    "dir": _type("path", _FILES_OR_NONE, _DISKS),
    "nfs": _type("server export", _FILES, "images", is_shared=True),
    "cifs": _type("server share", _FILES, "images", is_shared=True),
    "cephfs": _type("", "vztmpl iso backup snippets import", "backup", is_shared=True),
    "btrfs": _type("path", _FILES_OR_NONE, _DISKS),
    "lvm": _type("vgname", _DISKS, "images"),
    "lvmthin": _type("vgname thinpool", _DISKS),
    "zfspool": _type("pool", _DISKS),
    "zfs": _type("portal target pool blocksize iscsiprovider", "images", is_shared=True),
    "rbd": _type("", _DISKS, "images", is_shared=True),
    "iscsi": _type("portal target", "images none", "images", is_shared=True),
    "iscsidirect": _type("portal target", "images none", "images", is_shared=True),
    "pbs": _type("server datastore", "backup none", "backup", is_shared=True),
    "esxi": _type("server username", "import"),
}
"""Every storage type that is known."""

# Storages of these types keep everything as files below a directory.
FILE_TYPES = frozenset({"dir", "nfs", "cifs", "cephfs", "btrfs"})

_BOOLEAN_KEYS = frozenset(
    (
        "disable", "shared", "krbd", "mkdir", "create-base-path", "create-subdirs", "sparse",
        "fuse", "tagged_only", "saferemove", "nocow", "nowritecache", "skip-cert-verification",
        "snapshot-as-volume-chain",
    )
)  # fmt: skip
_TEXT_KEYS = frozenset(
    (
        "nodes", "content", "prune-backups", "max-protected-backups", "maxfiles", "content-dirs",
        "format", "preallocation", "bwlimit", "path", "is_mountpoint", "server", "export",
        "options", "share", "subdir", "domain", "smbversion", "username", "monhost", "fs-name",
        "keyring", "vgname", "base", "thinpool", "pool", "data-pool", "namespace", "blocksize",
        "iscsiprovider", "portal", "target", "mountpoint", "comstar_hg", "comstar_tg", "lio_tpg",
        "saferemove_throughput", "saferemove-stepsize", "datastore", "port", "fingerprint",
        "encryption-key", "master-pubkey", "password", "authsupported", "zfs-base-path",
    )
)  # fmt: skip
_ENUM_KEYS: Mapping[str, frozenset[str]] = {
    "preallocation": frozenset({"off", "metadata", "falloc", "full"}),
    "format": frozenset({"raw", "qcow2", "subvol", "vmdk"}),
}
# Smallest value that has a meaning.
_NUMBER_KEYS: Mapping[str, int] = {"maxfiles": 0, "max-protected-backups": -1, "port": 1}
_PORT_MAX = 65535
_CONTENT_WORDS = frozenset(_FILES.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSection:
    """One storage.

    Attributes:
        options: raw values by key, without content, nodes and disable; booleans without a value
            are ``1``.
        content: kinds of content; the type's default where the section does not say.
        nodes: where it may be used; empty for everywhere.
    """

    type: str
    storage_id: str
    options: Mapping[str, str]
    content: frozenset[str]
    nodes: frozenset[str]
    disabled: bool

    @property
    def is_shared(self) -> bool:
        """Whether every node sees the same volumes."""
        kind = STORAGE_TYPES.get(self.type)
        is_shared_kind = kind is not None and kind.is_shared
        return is_shared_kind or parse_boolean(self.options.get("shared", "0"))

    def has(self, name: str, *, default: bool = False) -> bool:
        """Whether a yes-or-no option is set."""
        value = self.options.get(name)
        return default if value is None else parse_boolean(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageWarning:
    """What was left aside while reading.

    Attributes:
        storage_id: whose section it is; empty outside of sections.
        text: with file and line.
    """

    storage_id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageConfig:
    """All storages by id, in the file's order; ``local`` is always among them.

    Attributes:
        foreign: sections of types that are not known here; a platform with that plugin uses them.
    """

    sections: Mapping[str, StorageSection]
    foreign: Mapping[str, StorageSection]
    remarks: tuple[StorageWarning, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Texts of everything that was left aside."""
        return tuple(remark.text for remark in self.remarks)

    def find(self, storage_id: str) -> StorageSection | None:
        """A storage of any type."""
        return self.sections.get(storage_id) or self.foreign.get(storage_id)

    def warnings_of(self, storage_id: str) -> tuple[str, ...]:
        """What was left aside of one section."""
        return tuple(remark.text for remark in self.remarks if remark.storage_id == storage_id)


def parse_storage_config(raw: bytes) -> StorageConfig:
    """Read ``storage.cfg``; what is not understood costs a warning, never an error."""
    reader = _Reader()
    for part in split_sections(raw):
        reader.take(part)
    sections = reader.sections
    sections[LOCAL_ID] = _make_local(sections.get(LOCAL_ID))
    return StorageConfig(sections=sections, foreign=reader.foreign, remarks=tuple(reader.remarks))


def require_storage(config: StorageConfig, storage_id: str, *, node: str) -> StorageSection:
    """The storage of that id, if it may be used on the node.

    Returns: also a section of a type that is not known here; using it is left to the platform.
    Raises: StorageError if it does not exist, is disabled or belongs to other nodes.
    """
    section = config.find(storage_id)
    if section is None:
        known = ", ".join(sorted(config.sections))
        remarks = "; ".join(config.warnings_of(storage_id))
        raise StorageError(
            f"storage '{storage_id}' does not exist",
            hint=remarks or f"storages of this node: {known}",
        )
    if section.disabled:
        raise StorageError(
            f"storage '{storage_id}' is disabled", hint=f"pvesm set {storage_id} --disable 0"
        )
    if section.nodes and node not in section.nodes:
        raise StorageError(
            f"storage '{storage_id}' is not available on node '{node}'",
            hint=f"it is limited to: {', '.join(sorted(section.nodes))}",
        )
    return section


def parse_volume_id(text: str) -> tuple[str, str]:
    """Split ``STORE:volname``. Raises ConfigError for anything else."""
    match = _VOLUME_ID.fullmatch(text)
    if match is None:
        raise ConfigError(f"unable to parse volume ID '{text}'")
    return match[1], match[2]


def _make_local(section: StorageSection | None) -> StorageSection:
    if (
        section is not None
        and section.type == "dir"
        and section.options["path"].rstrip("/") == LOCAL_PATH
    ):
        return StorageSection(
            type=section.type,
            storage_id=LOCAL_ID,
            options=section.options,
            content=section.content,
            nodes=frozenset(),
            disabled=section.disabled,
        )
    return StorageSection(
        type="dir",
        storage_id=LOCAL_ID,
        options={"path": LOCAL_PATH, "prune-backups": "keep-all=1"},
        content=frozenset(_FILES.split()) - {"import"},
        nodes=frozenset(),
        disabled=False,
    )


@dataclass(slots=True, kw_only=True)
class _Reader:
    """Takes the sections in turn, and the lines between them."""

    sections: dict[str, StorageSection] = field(default_factory=dict)
    foreign: dict[str, StorageSection] = field(default_factory=dict)
    remarks: list[StorageWarning] = field(default_factory=list)
    _id: str = ""

    def take(self, part: Section | SectionLine) -> None:
        if isinstance(part, SectionLine):
            self._remark(part.number, f": ignore config line: {part.text}", storage_id="")
            return
        self._id = part.section_id
        if _STORAGE_ID.fullmatch(self._id) is None:
            self._skip(part.number, f"storage ID '{self._id}' contains illegal characters")
        elif self._id in self.sections or self._id in self.foreign:
            self._skip(part.number, f"duplicate section '{self._id}'")
        elif part.type in STORAGE_TYPES:
            self._take_section(part, STORAGE_TYPES[part.type])
        else:
            self._skip(part.number, f"unsupported type '{part.type}'")
            self._take_foreign(part)

    def _take_section(self, part: Section, kind: StorageType) -> None:
        options: dict[str, str] = {}
        content_line = SectionLine(number=part.number, text="")
        for line in part.lines:
            self._take_option(line, options)
            if line.key == "content":
                content_line = line
        for key in kind.required:
            if key not in options:
                self._skip(part.number, f"missing value for required option '{key}'")
                return
        content = kind.default_contents
        if "content" in options:
            content = self._check_content(options.pop("content"), kind, content_line)
        self.sections[self._id] = _make_section(part, options, content)

    def _take_foreign(self, part: Section) -> None:
        """Nothing is known of its keys: the first of each is kept as it stands."""
        options: dict[str, str] = {}
        for line in part.lines:
            if line.key and line.key not in options:
                with suppress(ConfigError):
                    options[line.key] = _check_option(line.key, line.value, any_key=True)
        content = frozenset(_words(options.pop("content", "")))
        self.foreign[self._id] = _make_section(part, options, content)

    def _take_option(self, line: SectionLine, options: dict[str, str]) -> None:
        if not line.key:
            self._warn(line, f"ignore config line: {line.text}")
            return
        problem = f"unable to parse value of '{line.key}'"
        if line.key in options:
            self._warn(line, f"{problem}: duplicate attribute")
            return
        try:
            options[line.key] = _check_option(line.key, line.value, any_key=False)
        except ConfigError as error:
            self._warn(line, f"{problem}: {error.message}")

    def _check_content(self, text: str, kind: StorageType, line: SectionLine) -> frozenset[str]:
        words = set(_words(text))
        for word in sorted(words - kind.contents):
            self._warn(line, f"unsupported content type '{word}'")
        words &= kind.contents
        if "none" in words and len(words) > 1:
            self._warn(line, "unable to combine 'none' with other content types")
            words.discard("none")
        return frozenset(words)

    def _skip(self, number: int, problem: str) -> None:
        text = f" (skip section '{self._id}'): {problem}"
        self._remark(number, text, storage_id=self._id)

    def _warn(self, line: SectionLine, text: str) -> None:
        self._remark(line.number, f" (section '{self._id}') - {text}", storage_id=self._id)

    def _remark(self, number: int, text: str, *, storage_id: str) -> None:
        place = f"file {FILE_NAME} line {number}"
        self.remarks.append(StorageWarning(storage_id=storage_id, text=f"{place}{text}"))


def _make_section(
    part: Section, options: dict[str, str], content: frozenset[str]
) -> StorageSection:
    nodes = _words(options.pop("nodes", ""))
    return StorageSection(
        type=part.type,
        storage_id=part.section_id,
        disabled=parse_boolean(options.pop("disable", "0")),
        options=options,
        content=content,
        nodes=frozenset(nodes),
    )


def _words(text: str) -> list[str]:
    return [word for word in _LIST_SEPARATORS.split(text) if word]


def _check_option(key: str, value: str, *, any_key: bool) -> str:
    if key in _BOOLEAN_KEYS:
        return "1" if not value or parse_boolean(value) else "0"
    if key not in _TEXT_KEYS and not any_key:
        raise ConfigError(f"unexpected property '{key}'")
    if not value and not any_key:
        raise ConfigError("got undefined value")
    if key in _ENUM_KEYS and value not in _ENUM_KEYS[key]:
        allowed = ", ".join(sorted(_ENUM_KEYS[key]))
        raise ConfigError(f"value '{value}' does not have a value in the enumeration '{allowed}'")
    if key in _NUMBER_KEYS:
        _check_number(key, parse_integer(value))
    if key == "content-dirs":
        parse_content_directories(value)
    return value


def _check_number(key: str, number: int) -> None:
    if number < _NUMBER_KEYS[key]:
        raise ConfigError(f"value must have a minimum value of {_NUMBER_KEYS[key]}")
    if key == "port" and number > _PORT_MAX:
        raise ConfigError(f"value must have a maximum value of {_PORT_MAX}")


def parse_content_directories(text: str) -> dict[str, str]:
    """Read ``content-dirs``: directory below the storage's own, by kind of content.

    Raises: ConfigError.
    """
    directories = {}
    for entry in _words(text):
        name, _, relative = entry.partition("=")
        if name not in _CONTENT_WORDS or not relative.strip("/"):
            raise ConfigError(f"invalid format - invalid override '{entry}'")
        directories[name] = relative.strip("/")
    return directories
