"""Fault sites of disks being read and packed: opening them, and losing the process meanwhile.

A wrapper around the `VmaPacker` port of a simulated node.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from vzdump_qemu.disk_ports import DiskOrigin, TransferProgress
from vzdump_qemu.errors import BackupError, DiskReadError
from vzdump_qemu.ports import VmaIntake
from vzsim.faults.kinds import Family
from vzsim.faults.plane import Plane
from vzsim.faults.script import Fault
from vzsim.world.packer import SimulatedPacker, SimulatedTransfer


class FaultyTransfer:
    """The `DiskTransfer` port; a dead tool moves nothing."""

    def __init__(self, plane: Plane, inner: SimulatedTransfer) -> None:
        self._plane = plane
        self._inner = inner
        plane.on_kill.append(inner.abandon)

    def progress(self) -> TransferProgress:
        """As the port says."""
        return self._inner.progress()

    def failure(self) -> BackupError | None:
        """As the port says."""
        return self._inner.failure()

    async def finish(self) -> None:
        """As the port says."""
        await self._plane.call(
            "transfer.finish", Family.INTAKE, self._inner.finish, bend=self._bend
        )

    async def cancel(self) -> None:
        """As the port says; it does not fail."""
        await self._inner.cancel()

    async def _bend(self, fault: Fault, plain: Callable[[], Awaitable[Any]]) -> Any:
        text = f"simulated failure at {fault.site}#{fault.nth}"
        return await self._plane.bend_plainly(fault, plain, DiskReadError(text))


class FaultyPacker:
    """The `VmaPacker` port."""

    def __init__(self, plane: Plane, inner: SimulatedPacker) -> None:
        self._plane = plane
        self._inner = inner

    async def check_readable(self, origins: Sequence[DiskOrigin]) -> None:
        """As the port says; it is not worth a site of its own: the exports behind it fail."""
        if not self._plane.is_dead:
            await self._inner.check_readable(origins)

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

        async def act() -> FaultyTransfer:
            transfer = await self._inner.begin(
                origins,
                intake,
                uuid=uuid,
                configs=configs,
                rate_limit_bytes_per_s=rate_limit_bytes_per_s,
            )
            return FaultyTransfer(self._plane, transfer)

        async def bend(fault: Fault, plain: Callable[[], Awaitable[Any]]) -> Any:
            text = f"simulated failure at {fault.site}#{fault.nth}"
            return await self._plane.bend_plainly(fault, plain, DiskReadError(text))

        return await self._plane.call("packer.begin", Family.INTAKE, act, bend=bend)
