"""Fault sites of the host: configurations, locks, storages, journals, time.

Wrappers around the other ports of a simulated node; see `vzsim.faults.machine` for the VM's own,
`vzsim.faults.programs` for what is run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime

from vzdump_qemu.errors import ConfigError, StorageError, TargetError, VmLocked
from vzdump_qemu.journal_ports import Reversal
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.ports import VolumeFacts
from vzsim.faults.contexts import Held
from vzsim.faults.kinds import Family
from vzsim.faults.machine import FaultyMachine
from vzsim.faults.plane import Plane
from vzsim.faults.sites import Sites
from vzsim.world.clock import SimulatedClock
from vzsim.world.journal import SimulatedJournal, SimulatedJournals
from vzsim.world.node import SimulatedNode, SimulatedStorages


class FaultyStorages:
    """The `Storages` port."""

    def __init__(self, plane: Plane, inner: SimulatedStorages) -> None:
        self._call = Sites(plane, "storages", Family.NODE, StorageError)
        self._inner = inner

    async def activate(self, volids: Sequence[str]) -> None:
        """As the port says."""
        await self._call("activate", lambda: self._inner.activate(volids))

    async def describe(self, volid: str) -> VolumeFacts:
        """As the port says."""
        return await self._call("describe", lambda: self._inner.describe(volid))

    async def backup_directory(self, storage_id: str) -> str:
        """As the port says."""
        return await self._call(
            "backup_directory", lambda: self._inner.backup_directory(storage_id)
        )

    async def backup_server(self, storage_id: str) -> PbsTarget | None:
        """As the port says."""
        return await self._call("backup_server", lambda: self._inner.backup_server(storage_id))

    async def allocate_fleecing(
        self, storage_id: str, *, vmid: int, name: str, size_bytes: int
    ) -> VolumeFacts:
        """As the port says."""
        return await self._call(
            "allocate_fleecing",
            lambda: self._inner.allocate_fleecing(
                storage_id, vmid=vmid, name=name, size_bytes=size_bytes
            ),
        )

    async def free(self, volid: str) -> None:
        """As the port says."""
        await self._call("free", lambda: self._inner.free(volid))

    def fleecing_volid(self, storage_id: str, *, vmid: int, name: str) -> str:
        """As the port says."""
        return self._inner.fleecing_volid(storage_id, vmid=vmid, name=name)


class FaultyNode:
    """The `Node` port."""

    def __init__(self, plane: Plane, inner: SimulatedNode) -> None:
        self._plane = plane
        self._call = Sites(plane, "node", Family.NODE, ConfigError)
        self._inner = inner
        self.name = inner.name
        self.storages = FaultyStorages(plane, inner.storages)

    async def list_vmids(self) -> Sequence[int]:
        """As the port says."""
        return await self._call("list_vmids", self._inner.list_vmids)

    async def read_vm_config(self, vmid: int) -> bytes:
        """As the port says."""
        return await self._call("read_vm_config", lambda: self._inner.read_vm_config(vmid))

    async def read_firewall(self, vmid: int) -> bytes | None:
        """As the port says."""
        return await self._call("read_firewall", lambda: self._inner.read_firewall(vmid))

    async def set_vm_lock(self, vmid: int) -> None:
        """As the port says."""
        await self._call("set_vm_lock", lambda: self._inner.set_vm_lock(vmid), error=VmLocked)

    async def clear_vm_lock(self, vmid: int) -> None:
        """As the port says."""
        await self._call("clear_vm_lock", lambda: self._inner.clear_vm_lock(vmid))

    async def record_fleecing(self, vmid: int, volids: Sequence[str]) -> None:
        """As the port says."""
        await self._call("record_fleecing", lambda: self._inner.record_fleecing(vmid, volids))

    def machine(self, vmid: int) -> FaultyMachine:
        """As the port says."""
        return FaultyMachine(self._plane, self._inner.machine(vmid))

    def hold_global_lock(self, *, timeout_s: float) -> AbstractAsyncContextManager[None]:
        """As the port says."""
        return Held(
            self._plane,
            lambda: self._inner.hold_global_lock(timeout_s=timeout_s),
            lambda act: self._call("hold_global_lock", act, error=VmLocked),
        )


class FaultyJournal:
    """The `Journal` port."""

    def __init__(self, plane: Plane, inner: SimulatedJournal) -> None:
        self._plane = plane
        self._inner = inner
        self._call = Sites(plane, "journal", Family.STORE, TargetError)

    @property
    def open_entries(self) -> Sequence[tuple[int, Reversal]]:
        """As the port says."""
        return self._inner.open_entries

    async def note(self, reversal: Reversal) -> int:
        """As the port says."""
        return await self._call("note", lambda: self._inner.note(reversal))

    def strike(self, index: int) -> None:
        """As the port says; a dead tool strikes nothing."""
        if not self._plane.is_dead:
            self._inner.strike(index)


class FaultyJournals:
    """The `Journals` port."""

    def __init__(self, plane: Plane, inner: SimulatedJournals) -> None:
        self._plane = plane
        self._inner = inner
        self._call = Sites(plane, "journals", Family.STORE, TargetError)

    def open(self, vmid: int) -> AbstractAsyncContextManager[FaultyJournal]:
        """As the port says."""
        return Held(self._plane, lambda: self._inner.open(vmid), self._open)

    async def _open(self, act: Callable[[], Awaitable[SimulatedJournal]]) -> FaultyJournal:
        return FaultyJournal(self._plane, await self._call("open", act))

    async def list_vmids(self) -> Sequence[int]:
        """As the port says."""
        return await self._call("list_vmids", self._inner.list_vmids)


class FaultyClock:
    """The `Clock` port: a place where a signal can find the tool asleep."""

    def __init__(self, plane: Plane, inner: SimulatedClock) -> None:
        self._plane = plane
        self._inner = inner

    def now_ns(self) -> int:
        """As the port says."""
        return self._inner.now_ns()

    def wall_s(self) -> float:
        """As the port says."""
        return self._inner.wall_s()

    def local_time(self, wall_s: float) -> datetime:
        """As the port says."""
        return self._inner.local_time(wall_s)

    async def sleep(self, seconds: float) -> None:
        """As the port says."""
        await self._plane.call("clock.sleep", Family.QUIET, lambda: asyncio.sleep(seconds))
