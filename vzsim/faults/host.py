"""Fault sites of the host: configurations, locks, storages, archives, programs, time.

Wrappers around the other ports of a simulated node; see `vzsim.faults.channels` for the VM's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import Any, TypeVar

from vzdump_qemu.errors import BackupError, ConfigError, StorageError, TargetError, VmLocked
from vzdump_qemu.ports import ArchiveTarget, Reversal, VmaExpectation, VmaProof, VolumeFacts
from vzsim.faults.channels import FaultyMachine
from vzsim.faults.kinds import Family, Kind
from vzsim.faults.plane import Plane, length_of
from vzsim.faults.script import Fault
from vzsim.world.clock import SimulatedClock
from vzsim.world.commands import SimulatedCommands
from vzsim.world.journal import SimulatedJournal, SimulatedJournals
from vzsim.world.node import SimulatedNode, SimulatedStorages
from vzsim.world.store import CompressorRules, SimulatedIntake, SimulatedStore

_T = TypeVar("_T")
# Within the few kilobytes that every simulated archive has.
_PROGRAM_ENDS_AT_BYTES = 4096


class _Sites:
    """Common shape of plain calls: a name in front, one class of error."""

    def __init__(self, plane: Plane, prefix: str, family: Family, error: type[BackupError]) -> None:
        self._plane = plane
        self._prefix = prefix
        self._family = family
        self._error = error

    async def __call__(
        self,
        name: str,
        act: Callable[[], Awaitable[_T]],
        *,
        error: type[BackupError] | None = None,
        family: Family | None = None,
    ) -> _T:
        async def bend(fault: Fault, plain: Callable[[], Awaitable[Any]]) -> Any:
            text = f"simulated failure at {fault.site}#{fault.nth}"
            return await self._plane.bend_plainly(fault, plain, (error or self._error)(text))

        site = f"{self._prefix}.{name}"
        return await self._plane.call(site, family or self._family, act, bend=bend)


class FaultyStorages:
    """The `Storages` port."""

    def __init__(self, plane: Plane, inner: SimulatedStorages) -> None:
        self._call = _Sites(plane, "storages", Family.NODE, StorageError)
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
        self._call = _Sites(plane, "node", Family.NODE, ConfigError)
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
        return self._hold_global_lock(timeout_s)

    @asynccontextmanager
    async def _hold_global_lock(self, timeout_s: float) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            self._plane.hold(stack)

            async def act() -> None:
                await stack.enter_async_context(self._inner.hold_global_lock(timeout_s=timeout_s))

            try:
                await self._call("hold_global_lock", act, error=VmLocked)
                yield
            finally:
                self._plane.release(stack)


class FaultyIntake:
    """The `VmaIntake` port; a killed tool's intake does nothing any more."""

    def __init__(self, plane: Plane, inner: SimulatedIntake) -> None:
        self._plane = plane
        self._inner = inner
        self._call = _Sites(plane, "intake", Family.INTAKE, TargetError)
        plane.on_kill.append(inner.abandon)

    @property
    def write_fd(self) -> int:
        """As the port says."""
        return self._inner.write_fd

    async def write(self, data: bytes) -> None:
        """As the port says."""
        await self._call("write", lambda: self._inner.write(data))

    def close_write_end(self) -> None:
        """As the port says."""
        if not self._plane.is_dead:
            self._inner.close_write_end()

    def failure(self) -> BackupError | None:
        """As the port says."""
        return self._inner.failure()

    async def finish(self, expectation: VmaExpectation, *, timeout_s: float) -> VmaProof:
        """As the port says."""
        return await self._call(
            "finish", lambda: self._inner.finish(expectation, timeout_s=timeout_s)
        )

    async def publish(self) -> int:
        """As the port says."""
        return await self._call("publish", self._inner.publish)

    def drain(self) -> None:
        """As the port says."""
        if not self._plane.is_dead:
            self._inner.drain()

    async def discard(self) -> None:
        """As the port says."""
        await self._call("discard", self._inner.discard)


class FaultyStore:
    """The `ArchiveStore` port; file operations below it are sites of their own."""

    def __init__(self, plane: Plane, inner: SimulatedStore) -> None:
        self._plane = plane
        self._inner = inner
        self._call = _Sites(plane, "store", Family.STORE, TargetError)

    async def open_intake(self, target: ArchiveTarget) -> FaultyIntake:
        """As the port says."""

        opened: list[SimulatedIntake] = []

        async def act() -> FaultyIntake:
            self._bend_compressor(target)
            opened.append(await self._inner.open_intake(target))
            return FaultyIntake(self._plane, opened[0])

        try:
            return await self._call("open_intake", act)
        except asyncio.CancelledError:
            # As the real one: a caller that never got the intake cannot discard it.
            for intake in opened:
                await intake.discard()
            raise

    def _bend_compressor(self, target: ArchiveTarget) -> None:
        if not target.compressor:
            return
        fault = self._plane.call_now("compressor", Family.COMPRESSOR, path=target.compressor[0])
        if fault is None:
            return
        match fault.kind:
            case Kind.EXITS:
                rules = CompressorRules(exit_status=1)
            case Kind.KILLED:
                rules = CompressorRules(exit_status=-9, dies_at_bytes=_PROGRAM_ENDS_AT_BYTES)
            case _:
                stall_s = length_of(fault)
                self._plane.allowance_s += stall_s
                rules = CompressorRules(stall_at_bytes=_PROGRAM_ENDS_AT_BYTES, stall_s=stall_s)
        self._inner.compressor = rules

    async def create_directory(self, path: str) -> None:
        """As the port says."""
        await self._call("create_directory", lambda: self._inner.create_directory(path))

    async def write_file(self, path: str, data: bytes) -> None:
        """As the port says."""
        await self._call("write_file", lambda: self._inner.write_file(path, data))

    async def remove_tree(self, path: str) -> None:
        """As the port says."""
        await self._call("remove_tree", lambda: self._inner.remove_tree(path))

    async def remove_file(self, path: str) -> None:
        """As the port says."""
        await self._call("remove_file", lambda: self._inner.remove_file(path))

    async def exists(self, path: str) -> bool:
        """As the port says."""
        return await self._call("exists", lambda: self._inner.exists(path), family=Family.INTAKE)


class FaultyJournal:
    """The `Journal` port."""

    def __init__(self, plane: Plane, inner: SimulatedJournal) -> None:
        self._plane = plane
        self._inner = inner
        self._call = _Sites(plane, "journal", Family.STORE, TargetError)

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
        self._call = _Sites(plane, "journals", Family.STORE, TargetError)

    def open(self, vmid: int) -> AbstractAsyncContextManager[FaultyJournal]:
        """As the port says."""
        return self._open(vmid)

    @asynccontextmanager
    async def _open(self, vmid: int) -> AsyncIterator[FaultyJournal]:
        async with AsyncExitStack() as stack:
            self._plane.hold(stack)

            async def act() -> SimulatedJournal:
                return await stack.enter_async_context(self._inner.open(vmid))

            try:
                journal = await self._call("open", act)
                yield FaultyJournal(self._plane, journal)
            finally:
                self._plane.release(stack)

    async def list_vmids(self) -> Sequence[int]:
        """As the port says."""
        return await self._call("list_vmids", self._inner.list_vmids)


class FaultyCommands:
    """The `CommandRunner` port."""

    def __init__(self, plane: Plane, inner: SimulatedCommands) -> None:
        self._plane = plane
        self._inner = inner

    def find(self, program: str) -> str | None:
        """As the port says."""
        return self._inner.find(program)

    async def run(
        self, argv: Sequence[str], *, pass_fds: Sequence[int] = ()
    ) -> tuple[int, Sequence[str]]:
        """As the port says."""

        async def bend(fault: Fault, plain: Callable[[], Awaitable[Any]]) -> Any:
            match fault.kind:
                case Kind.EXITS:
                    return 1, (f"simulated failure at {fault.site}#{fault.nth}",)
                case Kind.KILLED:
                    return -9, ()
                case _:
                    await self._plane.wait(length_of(fault))
                    return await plain()

        async def act() -> tuple[int, Sequence[str]]:
            return await self._inner.run(argv, pass_fds=pass_fds)

        return await self._plane.call("commands.run", Family.COMMAND, act, bend=bend)


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


def watch_files(plane: Plane, store: SimulatedStore) -> None:
    """Make every file operation of the store a site ``files.OPERATION``."""

    def hook(operation: str, path: str) -> None:
        family = Family.FILES_WRITE if operation == "write" else Family.FILES
        plane.call_now(f"files.{operation}", family, path=path)

    store.files.fault = hook
