"""Fault sites of archives on their way: the store, the intake, the compressor, the files below.

Wrappers around the archive ports of a simulated node; see `vzsim.faults.host` for the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType

from vzdump_qemu.errors import BackupError, TargetError
from vzdump_qemu.ports import ArchiveTarget, VmaExpectation, VmaProof
from vzdump_qemu.units import MIB
from vzsim.faults.kinds import Family, Kind
from vzsim.faults.plane import Plane, length_of
from vzsim.faults.sites import Sites
from vzsim.world.store import CompressorRules, SimulatedIntake, SimulatedStore

# Within the few kilobytes that every simulated archive has.
_PROGRAM_ENDS_AT_BYTES = 4096
_FILE_FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "mkdir": Family.FILES_MAKE,
        "create": Family.FILES_MAKE,
        "write": Family.FILES_WRITE,
        "fsync": Family.FILES_SYNC,
        "fsync-directory": Family.FILES_SYNC,
        "rename": Family.FILES_RENAME,
        "unlink": Family.FILES_REMOVE,
        "remove-tree": Family.FILES_REMOVE,
    }
)


class FaultyIntake:
    """The `VmaIntake` port; a killed tool's intake does nothing any more."""

    def __init__(self, plane: Plane, inner: SimulatedIntake) -> None:
        self._plane = plane
        self._inner = inner
        self._call = Sites(plane, "intake", Family.INTAKE, TargetError)
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
        self._call = Sites(plane, "store", Family.STORE, TargetError)

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
                with suppress(BackupError):
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
            case Kind.KILLED_LATE:
                rules = CompressorRules(exit_status=-9)
            case Kind.SLOW:
                s_per_mib = length_of(fault)
                self._plane.allowance_s += 2 * s_per_mib
                rules = CompressorRules(bytes_per_s=MIB / s_per_mib)
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

    async def list_names(self, path: str) -> list[str]:
        """As the port says."""
        return await self._call(
            "list_names", lambda: self._inner.list_names(path), family=Family.INTAKE
        )


def family_of_file(operation: str) -> Family:
    """How an operation on a file can fail."""
    return _FILE_FAMILIES[operation]


def watch_files(plane: Plane, store: SimulatedStore) -> None:
    """Make every file operation of the store a site ``files.OPERATION``."""

    def hook(operation: str, path: str) -> None:
        plane.call_now(f"files.{operation}", _FILE_FAMILIES[operation], path=path)

    store.files.fault = hook
