"""The directory storages of a folder node: where their images and their archives lie.

Owns nothing but the look into ``storage.cfg`` for verbs that work on files themselves. Source:
host behaviour, sections 5.1 and 5.4.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from vzdump_qemu.errors import StorageError
from vzdump_qemu.formats.storage_config import LOCAL_ID, StorageSection, parse_storage_config
from vzdump_qemu.node.folder_node import find_layout
from vzdump_qemu.node.layout import NodeLayout

_DEFAULT_SUBDIRECTORIES = {"images": "images", "backup": "dump"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryStorage:
    """One storage of type ``dir``; the directories need not exist yet.

    Attributes:
        content: what it may hold, e.g. ``images`` and ``backup``.
    """

    storage_id: str
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
    return tuple(
        DirectoryStorage(
            storage_id=section.storage_id,
            content=section.content,
            images_directory=_subdirectory(layout, section, "images"),
            dump_directory=_subdirectory(layout, section, "backup"),
        )
        for section in sections
        if section.type == "dir" and not section.disabled
    )


def require_image_storage(root: str, storage_id: str) -> DirectoryStorage:
    """The storage of that id, if it may hold disks. Raises StorageError."""
    storages = {storage.storage_id: storage for storage in read_directory_storages(root)}
    if storage_id not in storages:
        raise StorageError(
            f"storage '{storage_id}' does not exist",
            hint=f"directory storages of this lab: {', '.join(sorted(storages))}",
        )
    if "images" not in storages[storage_id].content:
        raise StorageError(f"storage '{storage_id}' does not hold disks - wrong content type")
    return storages[storage_id]


def _subdirectory(layout: NodeLayout, section: StorageSection, content: str) -> str:
    base = section.options["path"]
    if section.storage_id == LOCAL_ID:
        base = layout.default_storage_path
    for entry in section.options.get("content-dirs", "").split(","):
        name, equals, relative = entry.partition("=")
        if equals and name.strip() == content:
            return os.path.join(base, relative.strip().lstrip("/"))
    return os.path.join(base, _DEFAULT_SUBDIRECTORIES[content])
