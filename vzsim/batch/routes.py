"""The ports of a node with several VMs: each call goes to the VM it is about, as a site of its own.

Owns whose a call is: by the VM's number where there is one, else by the path or volume. What calls
do and how they fail is left to each VM's own world and wrappers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from vzdump_qemu.disk_ports import DiskOrigin
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.ports import ArchiveTarget, VmaIntake, VolumeFacts
from vzsim.batch.planes import Planes
from vzsim.batch.system import BatchPorts
from vzsim.batch.world import BatchWorld
from vzsim.faults import Plane
from vzsim.faults.host import (
    FaultyClock,
    FaultyJournal,
    FaultyJournals,
    FaultyNode,
    FaultyStorages,
)
from vzsim.faults.machine import FaultyMachine
from vzsim.faults.packer import FaultyPacker, FaultyTransfer
from vzsim.faults.programs import FaultyCommands, FaultyHooks
from vzsim.faults.store import FaultyIntake, FaultyStore, family_of_file
from vzsim.scene import Scene, vm_of_path
from vzsim.world.clock import SimulatedIds
from vzsim.world.files import SimulatedFiles


class RoutedStorages:
    """The `Storages` port."""

    def __init__(self, job: FaultyStorages, of_vm: Mapping[int, FaultyStorages]) -> None:
        self._job = job
        self._of_vm = of_vm

    def _of_volume(self, volid: str) -> FaultyStorages:
        return self._of_vm.get(vm_of_path("/" + volid.partition(":")[2]), self._job)

    async def activate(self, volids: Sequence[str]) -> None:
        """As the port says."""
        await self._of_volume(volids[0] if volids else "").activate(volids)

    async def describe(self, volid: str) -> VolumeFacts:
        """As the port says."""
        return await self._of_volume(volid).describe(volid)

    async def backup_directory(self, storage_id: str) -> str:
        """As the port says."""
        return await self._job.backup_directory(storage_id)

    async def backup_server(self, storage_id: str) -> PbsTarget | None:
        """As the port says."""
        return await self._job.backup_server(storage_id)

    async def allocate_fleecing(
        self, storage_id: str, *, vmid: int, name: str, size_bytes: int
    ) -> VolumeFacts:
        """As the port says."""
        return await self._of_vm[vmid].allocate_fleecing(
            storage_id, vmid=vmid, name=name, size_bytes=size_bytes
        )

    async def free(self, volid: str) -> None:
        """As the port says."""
        await self._of_volume(volid).free(volid)

    def fleecing_volid(self, storage_id: str, *, vmid: int, name: str) -> str:
        """As the port says."""
        return self._of_vm[vmid].fleecing_volid(storage_id, vmid=vmid, name=name)


class RoutedNode:
    """The `Node` port.

    Args:
        locker: the VM whose plane the global lock belongs to; 0 for the job's.
    """

    def __init__(self, planes: Planes, scenes: Mapping[int, Scene], *, locker: int = 0) -> None:
        first = next(iter(scenes.values()))
        self._job = FaultyNode(planes.plane_of(locker), first.node)
        self._of_vm = {
            vmid: FaultyNode(planes.of_vm[vmid], scene.node) for vmid, scene in scenes.items()
        }
        self.name = first.node.name
        self.storages = RoutedStorages(
            self._job.storages, {vmid: node.storages for vmid, node in self._of_vm.items()}
        )

    def _of(self, vmid: int) -> FaultyNode:
        return self._of_vm.get(vmid, self._job)

    async def list_vmids(self) -> Sequence[int]:
        """As the port says."""
        return sorted(self._of_vm)

    async def read_vm_config(self, vmid: int) -> bytes:
        """As the port says."""
        return await self._of(vmid).read_vm_config(vmid)

    async def read_firewall(self, vmid: int) -> bytes | None:
        """As the port says."""
        return await self._of(vmid).read_firewall(vmid)

    async def set_vm_lock(self, vmid: int) -> None:
        """As the port says."""
        await self._of(vmid).set_vm_lock(vmid)

    async def clear_vm_lock(self, vmid: int) -> None:
        """As the port says."""
        await self._of(vmid).clear_vm_lock(vmid)

    async def record_fleecing(self, vmid: int, volids: Sequence[str]) -> None:
        """As the port says."""
        await self._of(vmid).record_fleecing(vmid, volids)

    def machine(self, vmid: int) -> FaultyMachine:
        """As the port says."""
        return self._of(vmid).machine(vmid)

    def hold_global_lock(self, *, timeout_s: float) -> AbstractAsyncContextManager[None]:
        """As the port says."""
        return self._job.hold_global_lock(timeout_s=timeout_s)


class RoutedJournals:
    """The `Journals` port."""

    def __init__(self, planes: Planes, scenes: Mapping[int, Scene]) -> None:
        self._scenes = scenes
        self._of_vm = {
            vmid: FaultyJournals(planes.of_vm[vmid], scene.journals)
            for vmid, scene in scenes.items()
        }

    def open(self, vmid: int) -> AbstractAsyncContextManager[FaultyJournal]:
        """As the port says."""
        return self._of_vm[vmid].open(vmid)

    async def list_vmids(self) -> Sequence[int]:
        """As the port says."""
        return sorted(vmid for vmid, scene in self._scenes.items() if scene.journals.journals)


class RoutedStore:
    """The `ArchiveStore` port."""

    def __init__(self, planes: Planes, scenes: Mapping[int, Scene]) -> None:
        first = next(iter(scenes.values()))
        self._job = FaultyStore(planes.job, first.store)
        self._of_vm = {
            vmid: FaultyStore(planes.of_vm[vmid], scene.store) for vmid, scene in scenes.items()
        }

    def _of(self, path: str) -> FaultyStore:
        return self._of_vm.get(vm_of_path(path), self._job)

    async def open_intake(self, target: ArchiveTarget) -> FaultyIntake:
        """As the port says."""
        return await self._of(target.temp_path).open_intake(target)

    async def create_directory(self, path: str) -> None:
        """As the port says."""
        await self._of(path).create_directory(path)

    async def write_file(self, path: str, data: bytes) -> None:
        """As the port says."""
        await self._of(path).write_file(path, data)

    async def remove_tree(self, path: str) -> None:
        """As the port says."""
        await self._of(path).remove_tree(path)

    async def remove_file(self, path: str) -> None:
        """As the port says."""
        await self._of(path).remove_file(path)

    async def exists(self, path: str) -> bool:
        """As the port says."""
        return await self._of(path).exists(path)

    async def list_names(self, path: str) -> list[str]:
        """As the port says."""
        return await self._of(path).list_names(path)


class RoutedPacker:
    """The `VmaPacker` port."""

    def __init__(self, planes: Planes, scenes: Mapping[int, Scene]) -> None:
        self._of_vm = {
            vmid: FaultyPacker(planes.of_vm[vmid], scene.packer) for vmid, scene in scenes.items()
        }

    def _of(self, origins: Sequence[DiskOrigin]) -> FaultyPacker:
        return self._of_vm[vm_of_path(origins[0].nbd_socket or origins[0].file_path)]

    async def check_readable(self, origins: Sequence[DiskOrigin]) -> None:
        """As the port says."""
        await self._of(origins).check_readable(origins)

    async def begin(
        self,
        origins: Sequence[DiskOrigin],
        intake: VmaIntake,
        *,
        uuid: str,
        configs: Sequence[tuple[str, bytes]],
        rate_limit_bytes_per_s: int,
    ) -> FaultyTransfer:
        """As the port says."""
        return await self._of(origins).begin(
            origins,
            intake,
            uuid=uuid,
            configs=configs,
            rate_limit_bytes_per_s=rate_limit_bytes_per_s,
        )


def watch_all_files(plane_of: Callable[[int], Plane], files: SimulatedFiles) -> None:
    """Make every file operation a site ``files.OPERATION`` of the VM whose file it is."""

    def hook(operation: str, path: str) -> None:
        plane = plane_of(vm_of_path(path))
        plane.call_now(f"files.{operation}", family_of_file(operation), path=path)

    files.fault = hook


def make_ports(
    planes: Planes,
    world: BatchWorld,
    *,
    ids: SimulatedIds,
    guarded_vmid: int,
    tell: Callable[[str], None],
    tell_of_run: Callable[[int, str], None],
    tell_end_of_run: Callable[[int, bool], None],
    tell_summary: Callable[[Sequence[int], str], None],
    send: Callable[[str, str, bool], None],
) -> BatchPorts:
    """All ports of a tool.

    Args:
        guarded_vmid: the only VM of a guardian; 0 for a job over all.
    """
    common = world.common
    scenes = {guarded_vmid: world.scenes[guarded_vmid]} if guarded_vmid else world.scenes
    return BatchPorts(
        node=RoutedNode(planes, scenes, locker=guarded_vmid),
        store=RoutedStore(planes, scenes),
        packer=RoutedPacker(planes, scenes),
        journals=RoutedJournals(planes, scenes),
        commands=FaultyCommands(planes.job, common.commands),
        hooks=FaultyHooks(common.hooks, planes.plane_of, world.guest_stands),
        clock=FaultyClock(planes.plane_of(guarded_vmid), common.clock),
        ids=ids,
        server=None,
        tell=tell,
        tell_end=lambda good: None,
        tell_of_run=tell_of_run,
        tell_end_of_run=tell_end_of_run,
        tell_summary=tell_summary,
        send=send,
    )
