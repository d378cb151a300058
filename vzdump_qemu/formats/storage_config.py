"""The storage configuration ``storage.cfg`` and volume ids.

Owns the grammar of sections, which types there are with their required keys and contents, the
storage ``local`` that always exists, and whether a storage may be used on a node. Activation,
paths and sizes are left to `stores`. Source: host behaviour, sections 5.1, 5.2 and 5.4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from vzdump_qemu.errors import ConfigError, StorageError
from vzdump_qemu.formats.property_string import parse_boolean

LOCAL_ID = "local"
LOCAL_PATH = "/var/lib/vz"

_ID = r"[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])"
_STORAGE_ID = re.compile(_ID)
_VOLUME_ID = re.compile(rf"({_ID}):(.+)", re.DOTALL)
_HEADER = re.compile(r"(\S+):\s*(\S+)\s*", re.ASCII)
_OPTION = re.compile(r"\s+(\S+)(?:\s+(.*?))?\s*", re.ASCII | re.DOTALL)
_LIST_SEPARATORS = re.compile(r"[\s,;]+")
_BLANKS = " \t\r\n\f\v"


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
        return STORAGE_TYPES[self.type].is_shared or parse_boolean(self.options.get("shared", "0"))


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageConfig:
    """All storages by id, in the file's order; ``local`` is always among them."""

    sections: Mapping[str, StorageSection]
    warnings: tuple[str, ...]


def parse_storage_config(raw: bytes) -> StorageConfig:
    """Read ``storage.cfg``; what is not understood costs a warning, never an error."""
    reader = _Reader()
    for line in raw.decode("utf-8", errors="backslashreplace").split("\n"):
        reader.feed(line)
    reader.finish_section()
    sections = reader.sections
    sections[LOCAL_ID] = _make_local(sections.get(LOCAL_ID))
    return StorageConfig(sections=sections, warnings=tuple(reader.warnings))


def require_storage(config: StorageConfig, storage_id: str, *, node: str) -> StorageSection:
    """The storage of that id, if it may be used on the node.

    Raises: StorageError if it does not exist, is disabled or belongs to other nodes.
    """
    section = config.sections.get(storage_id)
    if section is None:
        known = ", ".join(sorted(config.sections))
        raise StorageError(
            f"storage '{storage_id}' does not exist", hint=f"storages of this node: {known}"
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
    """Takes the lines in turn; `finish_section` after the last."""

    sections: dict[str, StorageSection] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    _type: str = ""
    _id: str = ""
    _is_open: bool = False
    # None while the lines belong to a section that is skipped.
    _options: dict[str, str] | None = None

    def feed(self, line: str) -> None:
        stripped = line.strip(_BLANKS)
        if not line:
            self.finish_section()
        elif not stripped or stripped.startswith("#"):
            return
        elif self._is_open:
            self._take_option(line)
        else:
            self._open_section(line)

    def _open_section(self, line: str) -> None:
        match = _HEADER.fullmatch(line)
        if match is None:
            self.warnings.append(f"ignore config line: {line}")
            return
        self._is_open = True
        self._type, self._id, self._options = match[1].lower(), match[2], {}
        problem = ""
        if _STORAGE_ID.fullmatch(self._id) is None:
            problem = f"storage ID '{self._id}' contains illegal characters"
        elif self._type not in STORAGE_TYPES:
            problem = f"unsupported type '{self._type}'"
        elif self._id in self.sections:
            problem = f"duplicate section '{self._id}'"
        if problem:
            self.warnings.append(f"(skip section '{self._id}'): {problem}")
            self._options = None

    def _take_option(self, line: str) -> None:
        if self._options is None:
            return
        match = _OPTION.fullmatch(line)
        if match is None:
            self._warn(f"ignore config line: {line}")
            return
        key, value = match[1], match[2] or ""
        if key in self._options:
            self._warn(f"duplicate attribute '{key}'")
            return
        try:
            self._options[key] = _check_option(key, value)
        except ConfigError as error:
            self._warn(f"unable to parse value of '{key}' - {error.message}")

    def finish_section(self) -> None:
        options, self._options, self._is_open = self._options, None, False
        if options is None:
            return
        kind = STORAGE_TYPES[self._type]
        for key in kind.required:
            if key not in options:
                self.warnings.append(
                    f"(skip section '{self._id}'): missing value for required option '{key}'"
                )
                return
        content = self._read_content(options.pop("content", None), kind)
        nodes = _LIST_SEPARATORS.split(options.pop("nodes", ""))
        self.sections[self._id] = StorageSection(
            type=self._type,
            storage_id=self._id,
            disabled=parse_boolean(options.pop("disable", "0")),
            options=options,
            content=content,
            nodes=frozenset(node for node in nodes if node),
        )

    def _read_content(self, text: str | None, kind: StorageType) -> frozenset[str]:
        if text is None:
            return kind.default_contents
        words = {word for word in _LIST_SEPARATORS.split(text) if word}
        for word in sorted(words - kind.contents):
            self._warn(f"unsupported content type '{word}'")
        words &= kind.contents
        if "none" in words and len(words) > 1:
            self._warn("unable to combine 'none' with other content types")
            words.discard("none")
        return frozenset(words)

    def _warn(self, text: str) -> None:
        self.warnings.append(f"section '{self._id}' - {text}")


def _check_option(key: str, value: str) -> str:
    if key in _BOOLEAN_KEYS:
        return "1" if not value or parse_boolean(value) else "0"
    if key not in _TEXT_KEYS:
        raise ConfigError(f"unexpected property '{key}'")
    if not value:
        raise ConfigError("value is missing")
    return value
