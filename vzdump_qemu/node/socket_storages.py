"""The `Storages` port of a VM known by its sockets: its disks, and scratch images in a directory.

There are no storages. A disk is what QEMU said it is, and is read through QEMU alone; a scratch
image is a file whose path is its volume id. Source: architecture, section 5.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from vzdump_qemu.errors import StorageError
from vzdump_qemu.formats.described_vm import DescribedVm
from vzdump_qemu.node.images import create_image, remove_image
from vzdump_qemu.node.socket_layout import SocketLayout, is_fleecing_path
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.ports import CommandRunner, VolumeFacts

_FORMAT = "qcow2"


class SocketStorages:
    """`ports.Storages` for one VM.

    Args:
        described: the VM as it was described last. Raises ConfigError if it was not yet.
    """

    def __init__(
        self,
        layout: SocketLayout,
        described: Callable[[], DescribedVm],
        *,
        commands: CommandRunner,
    ) -> None:
        self._layout = layout
        self._described = described
        self._commands = commands

    async def activate(self, volids: Sequence[str]) -> None:
        """Nothing is to be done: a running QEMU has its disks open."""

    async def describe(self, volid: str) -> VolumeFacts:
        """See `ports.Storages.describe`; by the description of the VM, not by the file."""
        for drive in self._described().drives:
            if drive.volid == volid:
                return VolumeFacts(
                    volid=volid,
                    storage_id="",
                    path=drive.file_name,
                    size_bytes=drive.size_bytes,
                    format=drive.image_format,
                    is_block_device=False,
                    device_path=drive.device_path,
                )
        raise StorageError(f"no such volume '{volid}'")

    async def backup_directory(self, storage_id: str) -> str:
        """See `ports.Storages.backup_directory`; there is none."""
        raise StorageError(
            f"there is no storage '{storage_id}' without a node",
            hint="say where the archive goes with --dumpdir",
        )

    async def backup_server(self, storage_id: str) -> PbsTarget | None:
        """See `ports.Storages.backup_server`; there is none."""
        return None

    async def allocate_fleecing(
        self, storage_id: str, *, vmid: int, name: str, size_bytes: int
    ) -> VolumeFacts:
        """See `ports.Storages.allocate_fleecing`; a left-over of that name is replaced."""
        path = self.fleecing_volid(storage_id, vmid=vmid, name=name)
        if not os.path.isdir(os.path.dirname(path)):
            raise StorageError(
                f"fleecing directory '{os.path.dirname(path)}' does not exist",
                hint="create it, or name another with --fleecing-dir",
            )
        remove_image(path)
        await create_image(
            path, size_bytes=size_bytes, image_format=_FORMAT, commands=self._commands
        )
        return VolumeFacts(
            volid=path,
            storage_id="",
            path=path,
            size_bytes=size_bytes,
            format=_FORMAT,
            is_block_device=False,
        )

    async def free(self, volid: str) -> None:
        """See `ports.Storages.free`; removes nothing that bears another name than ours."""
        if not is_fleecing_path(volid):
            raise StorageError(f"'{volid}' is no scratch image and is not removed")
        remove_image(volid)

    def fleecing_volid(self, storage_id: str, *, vmid: int, name: str) -> str:
        """See `ports.Storages.fleecing_volid`: the path of the file."""
        return self._layout.fleecing_path(name)
