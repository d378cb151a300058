"""The `Storages` port of a folder node: directories, and disks given by absolute path.

Owns paths below a directory storage; other storage types need a PVE node and are refused. The
storage ``local`` lies below the node's root whatever its path says. Source: host behaviour,
sections 5.1 to 5.4 and 5.7.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from vzdump_qemu.errors import ConfigError, StorageError
from vzdump_qemu.formats.storage_config import LOCAL_ID, StorageSection, parse_volume_id
from vzdump_qemu.node.images import create_image, is_block_device, read_image_size, remove_image
from vzdump_qemu.node.layout import NodeLayout
from vzdump_qemu.node.outside_volumes import describe_outside
from vzdump_qemu.node.storage_sections import StorageSections
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.ports import CommandRunner, VolumeFacts

_SUBDIRECTORIES = {
    "images": "images",
    "backup": "dump",
    "iso": "template/iso",
    "vztmpl": "template/cache",
    "snippets": "snippets",
}
_IMAGE_NAME = re.compile(
    r"(?:[0-9]+/[^/\s]+/)?(?P<owner>[0-9]+)/(?P<name>[^/\s]+\.(?P<format>raw|qcow2?|qed|vmdk|cloop))"
)
_FILE_NAME = re.compile(r"(?P<content>iso|vztmpl|snippets|backup)/(?P<name>[^/\s]+)")


class FolderStorages:
    """`ports.Storages` on plain directories."""

    def __init__(self, layout: NodeLayout, *, commands: CommandRunner) -> None:
        self._layout = layout
        self._commands = commands
        self._sections = StorageSections(
            path=layout.storage_config,
            secret_directory=layout.secret_directory,
            node_name=layout.node_name,
            allow_qcow2=commands.find("qemu-img") is not None,
        )

    async def activate(self, volids: Sequence[str]) -> None:
        """See `ports.Storages.activate`; absolute paths are taken as they are."""
        for volid in volids:
            if volid.startswith("/"):
                continue
            if not os.path.exists(self._locate(volid)[1]):
                raise StorageError(f"volume '{volid}' does not exist")

    async def describe(self, volid: str) -> VolumeFacts:
        """See `ports.Storages.describe`."""
        if volid.startswith("/"):
            return await describe_outside(volid, commands=self._commands)
        storage_id, path, image_format = self._locate(volid)
        if not os.path.exists(path):
            raise StorageError(f"no such volume '{volid}'")
        size_bytes = await read_image_size(path, image_format, commands=self._commands)
        return VolumeFacts(
            volid=volid,
            storage_id=storage_id,
            path=path,
            size_bytes=size_bytes,
            format=image_format,
            is_block_device=is_block_device(path),
        )

    async def backup_directory(self, storage_id: str) -> str:
        """See `ports.Storages.backup_directory`."""
        section = self._require(storage_id)
        self._activate_storage(section)
        if "backup" not in section.content:
            raise StorageError(f"can't use storage '{storage_id}' for backups - wrong content type")
        path = self._subdirectory(section, "backup")
        try:
            os.makedirs(path, exist_ok=True)
        except OSError as error:
            raise StorageError(f"unable to create '{path}' - {error.strerror}") from error
        return path

    async def backup_server(self, storage_id: str) -> PbsTarget | None:
        """See `ports.Storages.backup_server`."""
        return self._sections.backup_server(storage_id)

    async def allocate_fleecing(
        self, storage_id: str, *, vmid: int, name: str, size_bytes: int
    ) -> VolumeFacts:
        """See `ports.Storages.allocate_fleecing`; a left-over of that name is replaced."""
        self._activate_storage(self._require(storage_id))
        names = self._sections.fleecing_names(storage_id, vmid=vmid, name=name)
        path = self._locate(names.volid)[1]
        remove_image(path)
        await create_image(
            path, size_bytes=size_bytes, image_format=names.format, commands=self._commands
        )
        return replace(await self.describe(names.volid), size_bytes=size_bytes)

    async def free(self, volid: str) -> None:
        """See `ports.Storages.free`; never removes what lies outside the storages."""
        if volid.startswith("/"):
            raise StorageError(f"'{volid}' belongs to no storage and is not removed")
        path = self._locate(volid)[1]
        remove_image(path)
        # The VM's image directory goes with its last image.
        with suppress(OSError):
            os.rmdir(os.path.dirname(path))

    def fleecing_volid(self, storage_id: str, *, vmid: int, name: str) -> str:
        """See `ports.Storages.fleecing_volid`."""
        self._require(storage_id)
        return self._sections.fleecing_names(storage_id, vmid=vmid, name=name).volid

    def _require(self, storage_id: str) -> StorageSection:
        section = self._sections.require(storage_id)
        if section.type != "dir":
            raise StorageError(
                f"storage '{storage_id}' of type '{section.type}' needs a PVE node",
                hint="a folder node has storages of type 'dir' only",
            )
        return section

    def _activate_storage(self, section: StorageSection) -> None:
        path = self._base(section)
        if not os.path.isdir(path):
            raise StorageError(
                f"unable to activate storage '{section.storage_id}' - directory '{path}' does not"
                " exist or is unreachable"
            )

    def _base(self, section: StorageSection) -> str:
        if section.storage_id == LOCAL_ID:
            return self._layout.default_storage_path
        return section.options["path"]

    def _subdirectory(self, section: StorageSection, content: str) -> str:
        for entry in section.options.get("content-dirs", "").split(","):
            name, equals, relative = entry.partition("=")
            if equals and name.strip() == content:
                return os.path.join(self._base(section), relative.strip().lstrip("/"))
        return os.path.join(self._base(section), _SUBDIRECTORIES[content])

    def _locate(self, volid: str) -> tuple[str, str, str]:
        """Storage id, path and format of a volume, by its name alone."""
        try:
            storage_id, name = parse_volume_id(volid)
        except ConfigError as error:
            raise StorageError(error.message, hint=error.hint) from error
        section = self._require(storage_id)
        image = _IMAGE_NAME.fullmatch(name)
        if image is not None:
            directory = os.path.join(self._subdirectory(section, "images"), image["owner"])
            return storage_id, os.path.join(directory, image["name"]), image["format"]
        file = _FILE_NAME.fullmatch(name)
        if file is None or file["name"] == "..":
            raise StorageError(f"unable to parse directory volume name '{name}'")
        directory = self._subdirectory(section, file["content"])
        return storage_id, os.path.join(directory, file["name"]), "raw"
