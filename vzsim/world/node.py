"""A simulated node: configurations, locks and storages, as the `Node` and `Storages` ports.

Owns who may touch a VM. Locks are told in `lock_log`, so that a test can see their order.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from vzdump_qemu.errors import ConfigError, StorageError, VmLocked, VmNotFound
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.ports import VolumeFacts
from vzsim.fakeqmp.disks import CrampedDisk, Disk, MemoryDisk
from vzsim.world.files import SimulatedFiles
from vzsim.world.machine import SimulatedMachine

NODE_NAME = "node1"
DUMP_DIRECTORY = "/var/lib/vz/dump"
# A file of that name beside an archive keeps it from being removed.
PROTECTED_SUFFIX = ".protected"
_LOCK = re.compile(rb"^lock: (\S+)\n", re.MULTILINE)


class SimulatedStorages:
    """One directory storage ``local`` that holds every image, and absolute paths.

    Attributes:
        volume_bytes: sizes by path of volumes that are larger than what QEMU sees of them.
        fleecing_bytes: how much fits into each fleecing image; 0 for all of it.
        servers: storages of type ``pbs``.
    """

    def __init__(self, images: dict[str, Disk]) -> None:
        self._images = images
        self.activated: list[str] = []
        self.offline: set[str] = set()
        self.volume_bytes: dict[str, int] = {}
        self.fleecing_bytes = 0
        self.servers: dict[str, PbsTarget] = {}

    def path_of(self, volid: str) -> str:
        """Where a volume's image is."""
        if volid.startswith("/"):
            return volid
        return "/var/lib/vz/images/" + volid.partition(":")[2]

    async def activate(self, volids: Sequence[str]) -> None:
        """Remember what was activated."""
        for volid in volids:
            if volid.partition(":")[0] in self.offline:
                raise StorageError(f"storage '{volid.partition(':')[0]}' is not online")
            self.activated.append(volid)

    async def describe(self, volid: str) -> VolumeFacts:
        """Facts of an image."""
        path = self.path_of(volid)
        disk = self._images.get(path)
        if disk is None:
            raise StorageError(f"volume '{volid}' does not exist")
        return VolumeFacts(
            volid=volid,
            storage_id="" if volid.startswith("/") else volid.partition(":")[0],
            path=path,
            size_bytes=self.volume_bytes.get(path, disk.size_bytes),
            format="raw",
            is_block_device=False,
        )

    async def backup_directory(self, storage_id: str) -> str:
        """The one dump directory."""
        if storage_id != "local":
            raise StorageError(f"storage '{storage_id}' does not exist")
        return DUMP_DIRECTORY

    async def backup_server(self, storage_id: str) -> PbsTarget | None:
        """One of those that were set up; ``local`` is a directory."""
        return self.servers.get(storage_id)

    def fleecing_volid(self, storage_id: str, *, vmid: int, name: str) -> str:
        """The id before anything exists."""
        return f"{storage_id}:{vmid}/vm-{vmid}-fleece-{name}.qcow2"

    async def allocate_fleecing(
        self, storage_id: str, *, vmid: int, name: str, size_bytes: int
    ) -> VolumeFacts:
        """A zeroed image."""
        volid = self.fleecing_volid(storage_id, vmid=vmid, name=name)
        disk: Disk = MemoryDisk(size_bytes=size_bytes)
        if self.fleecing_bytes:
            disk = CrampedDisk(disk, room_bytes=self.fleecing_bytes)
        self._images[self.path_of(volid)] = disk
        return await self.describe(volid)

    async def free(self, volid: str) -> None:
        """Delete an image."""
        self._images.pop(self.path_of(volid), None)


class SimulatedNode:
    """The `Node` port."""

    name = NODE_NAME

    def __init__(self, files: SimulatedFiles, images: dict[str, Disk]) -> None:
        self.files = files
        self.storages = SimulatedStorages(images)
        self.machines: dict[int, SimulatedMachine] = {}
        self.configs: dict[int, bytes] = {}
        self.firewalls: dict[int, bytes] = {}
        self.fleecing_records: dict[int, list[str]] = {}
        self.lock_log: list[str] = []
        # How long the lock that was given back last had been held.
        self.lock_held_s = 0.0
        self._locked_at_s = 0.0
        self.global_lock = asyncio.Lock()
        files.make_directories(DUMP_DIRECTORY)
        files.make_directories("/var/tmp")

    async def list_vmids(self) -> Sequence[int]:
        """All VMs, ascending."""
        return sorted(self.configs)

    async def read_vm_config(self, vmid: int) -> bytes:
        """The raw configuration."""
        if vmid not in self.configs:
            raise VmNotFound(
                f"unable to find configuration file for VM {vmid} on node '{self.name}'"
            )
        return self.configs[vmid]

    async def read_firewall(self, vmid: int) -> bytes | None:
        """The raw firewall file."""
        return self.firewalls.get(vmid)

    def lock_of(self, vmid: int) -> str:
        """Value of the ``lock:`` line, or empty."""
        found = _LOCK.search(self.configs[vmid])
        return found[1].decode() if found else ""

    async def set_vm_lock(self, vmid: int) -> None:
        """Write the lock line."""
        await self.read_vm_config(vmid)
        if self.lock_of(vmid):
            raise VmLocked(f"VM is locked ({self.lock_of(vmid)})")
        self.configs[vmid] = b"lock: backup\n" + self.configs[vmid]
        self.lock_log.append(f"lock {vmid}")
        self._locked_at_s = asyncio.get_running_loop().time()

    async def clear_vm_lock(self, vmid: int) -> None:
        """Remove the lock line."""
        lock = self.lock_of(vmid)
        if not lock:
            raise ConfigError("no lock found trying to remove 'backup'  lock")
        if lock != "backup":
            raise ConfigError(f"found lock '{lock}' trying to remove 'backup' lock")
        self.configs[vmid] = _LOCK.sub(b"", self.configs[vmid], count=1)
        self.lock_log.append(f"unlock {vmid}")
        self.lock_held_s = asyncio.get_running_loop().time() - self._locked_at_s

    async def record_fleecing(self, vmid: int, volids: Sequence[str]) -> None:
        """Keep the list as the special section would."""
        self.fleecing_records[vmid] = list(volids)

    def machine(self, vmid: int) -> SimulatedMachine:
        """One VM."""
        if vmid not in self.machines:
            raise VmNotFound(
                f"unable to find configuration file for VM {vmid} on node '{self.name}'"
            )
        return self.machines[vmid]

    @asynccontextmanager
    async def hold_global_lock(self, *, timeout_s: float) -> AsyncIterator[None]:
        """One job per node."""
        try:
            async with asyncio.timeout(max(timeout_s, 1e-6)):
                await self.global_lock.acquire()
        except TimeoutError as error:
            raise VmLocked("can't acquire lock '/var/run/vzdump.lock' - got timeout") from error
        try:
            yield
        finally:
            self.global_lock.release()
