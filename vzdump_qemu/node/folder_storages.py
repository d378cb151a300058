"""The `Storages` port of a folder node: what this host has without the platform's library.

Owns which volumes and directories are handed out: images in directories, block devices by their
names, disks that QEMU reaches by itself, and disks given by absolute path. How they are found is
`volume_places`, what a directory must fulfil `storage_activation`. The storage ``local`` lies
below the node's root whatever its path says. Source: host behaviour, sections 5.1 to 5.7.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from vzdump_qemu.errors import ConfigError, StorageError
from vzdump_qemu.formats.disk_address import is_disk_address
from vzdump_qemu.formats.storage_config import FILE_TYPES, StorageSection, parse_volume_id
from vzdump_qemu.formats.storage_volumes import VolumePlace
from vzdump_qemu.node.images import create_image, is_block_device, read_image_size, remove_image
from vzdump_qemu.node.layout import NodeLayout
from vzdump_qemu.node.outside_volumes import describe_address, describe_outside
from vzdump_qemu.node.storage_activation import DirectoryActivation
from vzdump_qemu.node.storage_sections import StorageSections
from vzdump_qemu.node.volume_places import HostDirectories, VolumePlaces, exists
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.ports import CommandRunner, VolumeFacts


class FolderStorages:
    """`ports.Storages` without the platform.

    Args:
        activation: of directories; what this host has if None.
        host: where devices are.
    """

    def __init__(
        self,
        layout: NodeLayout,
        *,
        commands: CommandRunner,
        activation: DirectoryActivation | None = None,
        host: HostDirectories | None = None,
    ) -> None:
        self._commands = commands
        self._activation = activation or DirectoryActivation(layout.default_storage_path)
        self._places = VolumePlaces(layout, commands=commands, host=host)
        self._sections = StorageSections(
            path=layout.storage_config,
            secret_directory=layout.secret_directory,
            node_name=layout.node_name,
            allow_qcow2=commands.find("qemu-img") is not None,
        )

    async def activate(self, volids: Sequence[str]) -> None:
        """See `ports.Storages.activate`; paths and addresses are taken as they are."""
        active: set[str] = set()
        for volid in volids:
            if self._is_outside(volid):
                continue
            section, place = self._locate(volid)
            if section.storage_id not in active and section.type in FILE_TYPES:
                await self._activation.activate(section)
            active.add(section.storage_id)
            await self._places.require(section, volid, place)

    async def describe(self, volid: str) -> VolumeFacts:
        """See `ports.Storages.describe`."""
        if volid.startswith("/"):
            return await describe_outside(volid, commands=self._commands)
        if self._is_outside(volid):
            return await describe_address(volid, volid=volid, commands=self._commands)
        section, place = self._locate(volid)
        if is_disk_address(place.path):
            facts = await describe_address(place.path, volid=volid, commands=self._commands)
            return replace(facts, storage_id=section.storage_id)
        if section.type in FILE_TYPES and not await exists(place.path):
            raise StorageError(f"no such volume '{volid}'")
        await self._places.require(section, volid, place)
        size_bytes = await read_image_size(place.path, place.format, commands=self._commands)
        return VolumeFacts(
            volid=volid,
            storage_id=section.storage_id,
            path=place.path,
            size_bytes=size_bytes,
            format=place.format,
            is_block_device=is_block_device(place.path),
        )

    async def backup_directory(self, storage_id: str) -> str:
        """See `ports.Storages.backup_directory`; the first thing that is wrong is told."""
        section = self._sections.require(storage_id)
        if section.type in FILE_TYPES:
            await self._activation.activate(section)
        if "backup" not in section.content:
            raise StorageError(
                f"can't use storage '{storage_id}' for backups - wrong content type",
                hint=self._sections.remarks(storage_id),
            )
        if section.type not in FILE_TYPES:
            raise StorageError(
                f"storage '{storage_id}' of type '{section.type}' needs a PVE node",
                hint="a folder node keeps backups in storages of files and of type 'pbs'",
            )
        return await self._activation.writable_directory(section, "backup")

    async def backup_server(self, storage_id: str) -> PbsTarget | None:
        """See `ports.Storages.backup_server`."""
        return self._sections.backup_server(storage_id)

    async def allocate_fleecing(
        self, storage_id: str, *, vmid: int, name: str, size_bytes: int
    ) -> VolumeFacts:
        """See `ports.Storages.allocate_fleecing`; a left-over of that name is replaced."""
        section = self._sections.require(storage_id)
        if section.type not in FILE_TYPES or section.type == "cephfs":
            raise StorageError(
                f"storage '{storage_id}' of type '{section.type}' needs a PVE node "
                "to make an image there",
                hint="a folder node makes images in storages of files",
            )
        await self._activation.activate(section)
        names = self._sections.fleecing_names(storage_id, vmid=vmid, name=name)
        path = self._locate(names.volid)[1].path
        remove_image(path)
        await create_image(
            path, size_bytes=size_bytes, image_format=names.format, commands=self._commands
        )
        return replace(await self.describe(names.volid), size_bytes=size_bytes)

    async def free(self, volid: str) -> None:
        """See `ports.Storages.free`; removes files of storages and nothing else."""
        if self._is_outside(volid):
            raise StorageError(f"'{volid}' belongs to no storage and is not removed")
        section, place = self._locate(volid)
        if section.type not in FILE_TYPES:
            raise StorageError(f"volume '{volid}' is no file and is not removed")
        remove_image(place.path)
        # The VM's image directory goes with its last image.
        directory = os.path.dirname(place.path)
        with suppress(OSError):
            os.rmdir(directory)
            if section.type == "btrfs":
                os.rmdir(os.path.dirname(directory))

    def fleecing_volid(self, storage_id: str, *, vmid: int, name: str) -> str:
        """See `ports.Storages.fleecing_volid`; only storages of files will also make it."""
        return self._sections.fleecing_names(storage_id, vmid=vmid, name=name).volid

    def _is_outside(self, volid: str) -> bool:
        """A path or an address, unless a storage is called like the address's protocol."""
        if volid.startswith("/"):
            return True
        if not is_disk_address(volid):
            return False
        return not self._sections.has(volid.partition(":")[0])

    def _locate(self, volid: str) -> tuple[StorageSection, VolumePlace]:
        """Storage and place of a volume, by its name alone."""
        try:
            storage_id, name = parse_volume_id(volid)
        except ConfigError as error:
            raise StorageError(error.message, hint=error.hint) from error
        section = self._sections.require(storage_id)
        return section, self._places.locate(section, name)
