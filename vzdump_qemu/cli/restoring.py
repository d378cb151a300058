"""Making a VM of a folder node from a stored backup.

Owns the new volumes and their names, what stands in the way, and that a failure leaves neither a
volume nor a changed configuration: the configuration is written last, in one step. How a stored
configuration is rewritten is `restored_config`'s, reading the backup is left to `stores`.
"""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from vzdump_qemu.api import open_node
from vzdump_qemu.cli.lab_storages import DirectoryStorage, require_image_storage
from vzdump_qemu.cli.restored_config import MappedDisk, NewVolume, read_map, rewrite_config
from vzdump_qemu.errors import ConfigError, PowerError, TargetError, VmNotFound
from vzdump_qemu.formats.vm_config import parse_vm_config
from vzdump_qemu.node.folder_node import find_layout
from vzdump_qemu.node.layout import NodeLayout
from vzdump_qemu.node.locks import replace_file
from vzdump_qemu.stores.stored_backup import BackupContents, StoredBackup, StoredDisk

CONFIG_NAME = "qemu-server.conf"
VMID_MIN, VMID_MAX = 100, 999_999_999
_VOLUMES_PER_VM_MAX = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredDisk:
    """One disk and where it is now."""

    key: str
    volid: str
    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a restore made.

    Attributes:
        left_out_keys: drives of the stored configuration that the archive has no data for.
        removed_volids: volumes of a VM that was replaced.
    """

    vmid: int
    config_path: str
    disks: tuple[RestoredDisk, ...]
    left_out_keys: tuple[str, ...]
    removed_volids: tuple[str, ...]


def restore_vm(
    backup: StoredBackup, vmid: int, *, root: str, storage_id: str, force: bool
) -> Restored:
    """Make a VM from a backup; all or nothing.

    Args:
        force: an existing VM, if it does not run, is replaced.
    Raises:
        ConfigError: the VM exists, or the backup has no configuration that fits its disks.
        VmLocked: the VM is locked; PowerError: it runs.
        StorageError, TargetError: a volume cannot be made or written.
        VmaError, PbsError: the backup is not whole.
    """
    layout = find_layout(root)
    storage = require_image_storage(root, storage_id)
    with ExitStack() as undo:
        old_volids = _claim(root, vmid, force=force, undo=undo)
        files = _RestoreFiles(vmid, storage, undo)
        backup.restore(files.open_target, on_contents=files.take_contents)
        restored = files.finish(layout, old_volids, must_be_new=old_volids is None)
        undo.pop_all()
    for volid in restored.removed_volids:
        asyncio.run(_free(root, volid))
    return restored


def _claim(root: str, vmid: int, *, force: bool, undo: ExitStack) -> tuple[str, ...] | None:
    """Lock an existing VM and return its own volumes; None if there is no such VM."""
    if not VMID_MIN <= vmid <= VMID_MAX:
        raise ConfigError(f"strange VM ID '{vmid}'", hint=f"{VMID_MIN} to {VMID_MAX}")
    volids = asyncio.run(_lock_existing(root, vmid, force=force))
    if volids is not None:
        undo.callback(lambda: asyncio.run(_unlock(root, vmid)))
    return volids


async def _lock_existing(root: str, vmid: int, *, force: bool) -> tuple[str, ...] | None:
    async with open_node(root) as node:
        # A process may be there even if somebody removed the configuration.
        if await node.machine(vmid).is_running():
            raise PowerError(f"VM {vmid} is running", hint=f"vzdump-qemu lab stop {root} {vmid}")
        try:
            raw = await node.read_vm_config(vmid)
        except VmNotFound:
            return None
        if not force:
            raise ConfigError(
                f"unable to restore VM {vmid} - VM {vmid} already exists on node '{node.name}'",
                hint="--force replaces it, another VMID leaves it alone",
            )
        await node.set_vm_lock(vmid)
    config = parse_vm_config(raw, vmid=vmid)
    named = [drive.volid for drive in config.drives] + [volid for _, volid in config.unused]
    own = f":{vmid}/vm-{vmid}-"
    return tuple(dict.fromkeys(volid for volid in named if own in volid))


async def _unlock(root: str, vmid: int) -> None:
    async with open_node(root) as node:
        await node.clear_vm_lock(vmid)


async def _free(root: str, volid: str) -> None:
    async with open_node(root) as node:
        await node.storages.free(volid)


class _RestoreFiles:
    """The volumes and configuration files of one restore, each undone until the end."""

    def __init__(self, vmid: int, storage: DirectoryStorage, undo: ExitStack) -> None:
        self._vmid = vmid
        self._storage = storage
        self._undo = undo
        self._directory = os.path.join(storage.images_directory, str(vmid))
        self._config_text = ""
        self._firewall: bytes | None = None
        self._mapped: dict[str, MappedDisk] = {}
        self._disks: dict[str, RestoredDisk] = {}
        self._fds: list[int] = []
        undo.callback(self._close)

    def take_contents(self, contents: BackupContents) -> None:
        """Check that configuration and disks fit before anything is written."""
        configs = {config.name: config.data for config in contents.configs}
        if CONFIG_NAME not in configs:
            raise ConfigError(f"archive contains no file '{CONFIG_NAME}'")
        # surrogateescape: what is not UTF-8 goes back to the file as the bytes it was.
        self._config_text = configs[CONFIG_NAME].decode("utf-8", "surrogateescape")
        self._firewall = configs.get(contents.firewall_name)
        device_ids = [disk.name for disk in contents.disks if not disk.is_vmstate]
        self._mapped = {disk.device_id: disk for disk in read_map(self._config_text, device_ids)}
        placeholders = {
            disk.key: NewVolume(volid="x", size_bytes=1) for disk in self._mapped.values()
        }
        rewrite_config(self._config_text, placeholders)

    def open_target(self, stored: StoredDisk) -> int | None:
        """A new sparse volume for a disk; None for a RAM state, which no VM here can use."""
        if stored.is_vmstate:
            return None
        disk = self._mapped[stored.name]
        try:
            fd, name = self._create_volume()
            os.ftruncate(fd, stored.size_bytes)
        except OSError as error:
            raise TargetError(
                f"unable to create a volume in '{self._directory}' - {error.strerror}"
            ) from error
        self._disks[disk.key] = RestoredDisk(
            key=disk.key,
            volid=f"{self._storage.storage_id}:{self._vmid}/{name}",
            path=os.path.join(self._directory, name),
            size_bytes=stored.size_bytes,
        )
        return fd

    def _create_volume(self) -> tuple[int, str]:
        if not os.path.isdir(self._directory):
            os.makedirs(self._directory)
            self._undo.callback(_remove_directory_quietly, self._directory)
        for index in range(_VOLUMES_PER_VM_MAX):
            name = f"vm-{self._vmid}-disk-{index}.raw"
            path = os.path.join(self._directory, name)
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
            except FileExistsError:
                continue
            self._undo.callback(_remove_quietly, path)
            self._fds.append(fd)
            return fd, name
        raise TargetError(f"no free volume name in '{self._directory}'")

    def finish(
        self, layout: NodeLayout, old_volids: tuple[str, ...] | None, *, must_be_new: bool
    ) -> Restored:
        """Make the volumes durable and write the configuration, last of all."""
        volumes = {
            key: NewVolume(volid=disk.volid, size_bytes=disk.size_bytes)
            for key, disk in self._disks.items()
        }
        rewritten = rewrite_config(self._config_text, volumes)
        config_path = layout.vm_config(self._vmid)
        try:
            for fd in self._fds:
                os.fsync(fd)
            if self._firewall is not None:
                self._write_firewall(layout.firewall(self._vmid), self._firewall)
            if must_be_new and os.path.exists(config_path):
                raise ConfigError(f"VM {self._vmid} was created meanwhile")
            os.makedirs(os.path.dirname(config_path), exist_ok=True)
            data = rewritten.text.encode("utf-8", "surrogateescape")
            replace_file(config_path, data, process_id=os.getpid())
        except OSError as error:
            raise TargetError(
                f"unable to write the files of VM {self._vmid} - {error.strerror}"
            ) from error
        self._close()
        return Restored(
            vmid=self._vmid,
            config_path=config_path,
            disks=tuple(self._disks.values()),
            left_out_keys=rewritten.left_out_keys,
            removed_volids=old_volids or (),
        )

    def _write_firewall(self, path: str, data: bytes) -> None:
        before = None
        with suppress(FileNotFoundError), open(path, "rb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                before = file.read()
        os.makedirs(os.path.dirname(path), exist_ok=True)
        replace_file(path, data, process_id=os.getpid())
        if before is None:
            self._undo.callback(_remove_quietly, path)
        else:
            self._undo.callback(_write_quietly, path, before)

    def _close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


# An undo whose own failure must not hide the error that made it necessary.


def _remove_quietly(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


def _remove_directory_quietly(path: str) -> None:
    with suppress(OSError):
        os.rmdir(path)


def _write_quietly(path: str, data: bytes) -> None:
    with suppress(OSError):
        replace_file(path, data, process_id=os.getpid())
