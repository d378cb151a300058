"""The directory storages of a folder node: where their images and their archives lie.

Owns nothing but the look into ``storage.cfg`` for verbs that work on files themselves. Source:
host behaviour, sections 5.1 and 5.4.
"""

from __future__ import annotations

from dataclasses import dataclass

from vzdump_qemu.errors import StorageError
from vzdump_qemu.formats.storage_config import FILE_TYPES, parse_storage_config
from vzdump_qemu.formats.storage_volumes import content_directory
from vzdump_qemu.node.folder_node import find_layout


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryStorage:
    """One storage of files; the directories need not exist yet.

    Attributes:
        content: what it may hold, e.g. ``images`` and ``backup``.
    """

    storage_id: str
    type: str
    content: frozenset[str]
    images_directory: str
    dump_directory: str


def read_directory_storages(root: str) -> tuple[DirectoryStorage, ...]:
    """All usable directory storages of the node in a folder.

    Raises: ConfigError if it is no node, StorageError if its storages cannot be read.
    """
    layout = find_layout(root)
    try:
        with open(layout.storage_config, "rb") as file:
            raw = file.read()
    except FileNotFoundError:
        raw = b""
    except OSError as error:
        raise StorageError(
            f"unable to read '{layout.storage_config}' - {error.strerror}"
        ) from error
    sections = parse_storage_config(raw).sections.values()
    local_path = layout.default_storage_path
    return tuple(
        DirectoryStorage(
            storage_id=section.storage_id,
            type=section.type,
            content=section.content,
            images_directory=content_directory(section, "images", local_path),
            dump_directory=content_directory(section, "backup", local_path),
        )
        for section in sections
        if section.type in FILE_TYPES and not section.disabled
    )


def require_image_storage(root: str, storage_id: str) -> DirectoryStorage:
    """The storage of that id, if it may hold disks. Raises StorageError."""
    # Where others are mounted, and whether they are, is not looked at here.
    storages = {
        storage.storage_id: storage
        for storage in read_directory_storages(root)
        if storage.type == "dir"
    }
    if storage_id not in storages:
        raise StorageError(
            f"storage '{storage_id}' does not exist",
            hint=f"directory storages of this lab: {', '.join(sorted(storages))}",
        )
    if "images" not in storages[storage_id].content:
        raise StorageError(f"storage '{storage_id}' does not hold disks - wrong content type")
    return storages[storage_id]
