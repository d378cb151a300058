"""The node's storages as configured: reading the file, and names of volumes to come.

Owns the look into ``storage.cfg`` for both kinds of node; its grammar is `formats.storage_config`.
Source: host behaviour, sections 5.1, 5.4 and 6.8.
"""

from __future__ import annotations

from dataclasses import dataclass

from vzdump_qemu.errors import StorageError
from vzdump_qemu.formats.storage_config import (
    StorageConfig,
    StorageSection,
    parse_storage_config,
    require_storage,
)
from vzdump_qemu.node import pbs_storage
from vzdump_qemu.pbs_target import PbsTarget

# Storages that keep images as files offer qcow2, but for btrfs; names there end in the format.
_QCOW2_TYPES = frozenset({"dir", "nfs", "cifs"})
_FILE_TYPES = _QCOW2_TYPES | {"btrfs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FleecingNames:
    """What a fleecing image will be called.

    Attributes:
        file_name: the part that the storage is told.
    """

    volid: str
    file_name: str
    format: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSections:
    """Reads the file anew at each question: it may change while a job runs.

    Attributes:
        path: of ``storage.cfg``; a missing file holds nothing but ``local``.
        secret_directory: where the secrets of backup servers lie.
        allow_qcow2: whether images of that format can be made here.
    """

    path: str
    secret_directory: str
    node_name: str
    allow_qcow2: bool = True

    def require(self, storage_id: str) -> StorageSection:
        """The storage, if this node may use it; of whatever type. Raises StorageError."""
        return require_storage(self._read(), storage_id, node=self.node_name)

    def has(self, storage_id: str) -> bool:
        """Whether there is such a storage, be it for others. Raises StorageError."""
        return self._read().find(storage_id) is not None

    def remarks(self, storage_id: str) -> str:
        """What of its section was not understood, with file and line; empty for nothing."""
        return "; ".join(self._read().warnings_of(storage_id))

    def backup_server(self, storage_id: str, *, for_reading: bool = False) -> PbsTarget | None:
        """The server of a storage of type ``pbs``; None for any other.

        Args:
            for_reading: no backup will be made, so that a key that is missing is no obstacle.
        Raises:
            StorageError: no such storage here, or what a backup needs is missing.
        """
        section = self.require(storage_id)
        if section.type != pbs_storage.TYPE:
            return None
        return pbs_storage.read_pbs_target(section, self.secret_directory, for_reading=for_reading)

    def _read(self) -> StorageConfig:
        try:
            with open(self.path, "rb") as file:
                raw = file.read()
        except FileNotFoundError:
            raw = b""
        except OSError as error:
            raise StorageError(f"unable to read '{self.path}' - {error.strerror}") from error
        return parse_storage_config(raw)

    def fleecing_names(self, storage_id: str, *, vmid: int, name: str) -> FleecingNames:
        """Names of image number `name`, before anything exists. Raises StorageError."""
        kind = self.require(storage_id).type
        image_format = "qcow2" if kind in _QCOW2_TYPES and self.allow_qcow2 else "raw"
        file_name = f"vm-{vmid}-fleece-{name}"
        volume_name = file_name
        if kind in _FILE_TYPES:
            file_name = f"{file_name}.{image_format}"
            volume_name = f"{vmid}/{file_name}"
        return FleecingNames(
            volid=f"{storage_id}:{volume_name}", file_name=file_name, format=image_format
        )
