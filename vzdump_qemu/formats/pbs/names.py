"""Names in a PBS: backups, their groups and files, namespaces, datastores.

Owns what a name may look like and how names join to paths; whether anything of that name exists
is the server's to say. Source: PBS formats, sections 1 and 10; QMP backup interface, section 9.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from vzdump_qemu.errors import PbsError
from vzdump_qemu.formats.pbs.times import BACKUP_TIME_S_MIN, TIME_S_MAX, parse_utc, render_utc

MANIFEST_NAME: Final = "index.json.blob"
CONFIG_NAME: Final = "qemu-server.conf.blob"
FIREWALL_NAME: Final = "fw.conf.blob"
RSA_KEY_NAME: Final = "rsa-encrypted.key.blob"
CLIENT_LOG_NAME: Final = "client.log.blob"

DATASTORE_LETTERS_MIN: Final = 3
DATASTORE_LETTERS_MAX: Final = 32
NAMESPACE_DEPTH_MAX: Final = 7
NAMESPACE_LETTERS_MAX: Final = 256
# Names become file names on the server; no file system of its takes more.
NAME_LETTERS_MAX: Final = 255

SAFE_ID_PATTERN: Final = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_SAFE_ID = re.compile(SAFE_ID_PATTERN)
_DISK_INDEX_SUFFIX = ".img.fidx"


class BackupType(enum.Enum):
    """What was backed up; a VM is always `VM`."""

    VM = "vm"
    CONTAINER = "ct"
    HOST = "host"


class FileKind(enum.Enum):
    """What a file of a backup holds, told by its suffix."""

    FIXED_INDEX = ".fidx"
    DYNAMIC_INDEX = ".didx"
    DATA_BLOB = ".blob"


def is_safe_id(text: str) -> bool:
    """Whether the text may be an id, and so one component of a path."""
    return len(text) <= NAME_LETTERS_MAX and _SAFE_ID.fullmatch(text) is not None


def check_datastore(name: str) -> str:
    """Return the name of a datastore.

    Raises:
        PbsError: no datastore can have that name.
    """
    if not (DATASTORE_LETTERS_MIN <= len(name) <= DATASTORE_LETTERS_MAX and is_safe_id(name)):
        raise PbsError(
            f"not a datastore name: {_shown(name)}",
            hint="3 to 32 letters, digits, '_', '-' and '.', the first no '-' or '.'",
        )
    return name


# Asked for every entry of every manifest, of a few names.
@lru_cache(maxsize=64)
def file_kind(name: str) -> FileKind:
    """What a file of that name holds.

    Raises:
        PbsError: not the name of a file of a backup.
    """
    if is_safe_id(name):
        for kind in FileKind:
            if name.endswith(kind.value) and len(name) > len(kind.value):
                return kind
    raise PbsError(f"not a file name of a backup: {_shown(name)}")


def disk_index_name(device_id: str) -> str:
    """Name of the index of a disk, ``drive-scsi0.img.fidx``.

    Raises:
        PbsError: the device id has letters that no file name may have, or too many.
    """
    name = device_id + _DISK_INDEX_SUFFIX
    if not device_id or not is_safe_id(name):
        raise PbsError(f"disk {_shown(device_id)} cannot be named in a backup")
    return name


def disk_of_index(index_name: str) -> str | None:
    """Device id of the disk whose index has that name, None if it is no disk's."""
    device_id = index_name.removesuffix(_DISK_INDEX_SUFFIX)
    return device_id if device_id and device_id != index_name else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """A branch of a datastore; without parts it is the root.

    Raises:
        PbsError: a part that is no safe id, too many of them, or too long as a whole.
    """

    parts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        text = "/".join(self.parts)
        if len(self.parts) > NAMESPACE_DEPTH_MAX or len(text) > NAMESPACE_LETTERS_MAX:
            raise PbsError(
                f"namespace {_shown(text)} is too long",
                hint=f"{NAMESPACE_DEPTH_MAX} parts and {NAMESPACE_LETTERS_MAX} letters at most",
            )
        if not all(is_safe_id(part) for part in self.parts):
            raise PbsError(f"not a namespace: {_shown(text)}")

    @classmethod
    def parse(cls, text: str) -> Namespace:
        """A namespace written ``a/b/c``; the empty text is the root.

        Raises:
            PbsError: not a namespace.
        """
        # Bounded before it is split, so that a long text costs nothing.
        if len(text) > NAMESPACE_LETTERS_MAX:
            raise PbsError(f"namespace {_shown(text)} is too long")
        return cls(parts=tuple(text.split("/")) if text else ())

    @property
    def is_root(self) -> bool:
        """The root is told to a server by leaving the parameter out."""
        return not self.parts

    @property
    def directory(self) -> str:
        """Path under the datastore, ``ns/a/ns/b``; empty for the root."""
        return "/".join(f"ns/{part}" for part in self.parts)

    def __str__(self) -> str:
        return "/".join(self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupGroup:
    """All backups of one thing: one VM, for our part.

    Raises:
        PbsError: an id that is no safe id.
    """

    backup_type: BackupType
    backup_id: str

    def __post_init__(self) -> None:
        if not is_safe_id(self.backup_id):
            raise PbsError(f"not a backup id: {_shown(self.backup_id)}")

    @classmethod
    def parse(cls, text: str) -> BackupGroup:
        """A group written ``vm/100``.

        Raises:
            PbsError: not a group.
        """
        backup_type, _, backup_id = text.partition("/")
        return cls(backup_type=parse_backup_type(backup_type), backup_id=backup_id)

    @property
    def path(self) -> str:
        """``vm/100``."""
        return f"{self.backup_type.value}/{self.backup_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupRef:
    """One backup: its group and its time, which has whole seconds and is unique in the group.

    Raises:
        PbsError: a time that no server accepts.
    """

    backup_group: BackupGroup
    backup_time_s: int

    def __post_init__(self) -> None:
        if not BACKUP_TIME_S_MIN <= self.backup_time_s <= TIME_S_MAX:
            raise PbsError(f"backup time {self.backup_time_s} is out of range")

    @classmethod
    def parse(cls, text: str) -> BackupRef:
        """A backup written ``vm/100/2023-11-14T22:13:20Z``.

        Raises:
            PbsError: not a backup.
        """
        group, _, time = text.rpartition("/")
        return cls(backup_group=BackupGroup.parse(group), backup_time_s=parse_utc(time))

    @property
    def path(self) -> str:
        """``vm/100/2023-11-14T22:13:20Z``."""
        return f"{self.backup_group.path}/{render_utc(self.backup_time_s)}"

    def directory(self, namespace: Namespace) -> str:
        """Path of the backup under its datastore."""
        return self.path if namespace.is_root else f"{namespace.directory}/{self.path}"


def parse_backup_type(text: str) -> BackupType:
    """The backup type of that name.

    Raises:
        PbsError: there is none.
    """
    try:
        return BackupType(text)
    except ValueError as error:
        raise PbsError(f"not a backup type: {_shown(text)}") from error


def _shown(text: str) -> str:
    return ascii(text[:80])
