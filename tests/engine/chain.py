"""Backups of one VM in a row to one target, each held against the disks as QEMU had them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.engine.world import DISKS, World
from vzdump_qemu import events
from vzdump_qemu.engine.change_tracking import IncrementalPlan, IncrementalRequest
from vzdump_qemu.engine.pull_source import PullSource
from vzdump_qemu.engine.undo import UndoStack
from vzdump_qemu.errors import JobError
from vzdump_qemu.plan.options import FleecingOptions
from vzsim.fakeqmp.bitmaps import Bitmap
from vzsim.fakeqmp.run_state import RunState
from vzsim.fakeqmp.schema import CommandError, Dialect
from vzsim.fakeqmp.script import GuestRules, Script

GRANULARITY_BYTES = 1 << 16
READING_S = 0.5
WRITING = Script(guest=GuestRules(writes_per_s=8, write_bytes=16384, seed=5))


@dataclass
class Target:
    """Keeps the newest backup's content; takes what changed and leaves the rest as it has it."""

    backup_id: str = ""
    contents: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Chain(World):
    """One VM that is backed up again and again to one target."""

    script: Script = WRITING
    dialect: Dialect = Dialect.UPSTREAM
    target: Target = field(default_factory=Target)
    target_id: str = "pbs/store/vm/100"
    granularity_bytes: int = GRANULARITY_BYTES
    refused: Callable[[str, dict[str, Any]], bool] = lambda name, arguments: False
    plans: tuple[IncrementalPlan, ...] = ()
    read_bytes: int = 0
    made_count: int = 0

    def _build(self) -> None:
        World._build(self)
        self._intercept()

    def _intercept(self) -> None:
        process = self.machine.process
        carry_out = process.carry_out

        def asked(monitor: Any, name: str, arguments: Any) -> Any:
            if self.refused(name, arguments):
                raise CommandError("simulated refusal")
            return carry_out(monitor, name, arguments)

        process.carry_out = asked  # type: ignore[method-assign]

    # -- backing up ----------------------------------------------------------------------------

    async def back_up(self, *, base_id: str | None = None, fails: bool = False) -> None:
        """One run: the target's new content is checked against the disks as QEMU had them."""
        async with self.journals.open(100) as journal:
            undo = UndoStack(self._emit, journal, self.clock)
            try:
                await self.transfer(undo, base_id=base_id, fails=fails)
            finally:
                await undo.unwind()
        assert self.journals.journals == {}
        self.assert_only_kept_bitmaps()

    async def transfer(
        self, undo: UndoStack, *, base_id: str | None = None, fails: bool = False
    ) -> None:
        source = await self.source(base_id)
        await source.prepare(undo)
        await source.fix()
        origins = await source.expose()
        self.plans = source.plans
        await asyncio.sleep(READING_S)
        self.read_bytes = 0
        contents = {origin.device_id: self._take(origin) for origin in origins}
        if fails:
            raise JobError("the target is broken")
        await source.release()
        assert contents == self.host.points_in_time
        self.made_count += 1
        self.target = Target(backup_id=f"backup-{self.made_count}", contents=contents)
        await source.keep_changes(self.target.backup_id)

    async def source(self, base_id: str | None) -> PullSource:
        request = IncrementalRequest(
            target_id=self.target_id,
            base_id=self.target.backup_id if base_id is None else base_id,
            granularity_bytes=self.granularity_bytes,
        )
        fleecing = FleecingOptions(enabled=True, storage_id="local")
        return PullSource(
            self.ports, self.machine, await self.run_disks(), fleecing, incremental=request
        )

    def _take(self, origin: Any) -> bytes:
        client = self.host.sockets.connect(origin.nbd_socket, origin.export_name)
        try:
            if not origin.bitmap_name:
                self.read_bytes += origin.size_bytes
                return client.read(0, origin.size_bytes)
            content = bytearray(self.target.contents[origin.device_id])
            for offset, length in client.changed_parts(origin.bitmap_name):
                self.read_bytes += length
                content[offset : offset + length] = client.read(offset, length)
            return bytes(content)
        finally:
            client.close()

    async def restart(self) -> None:
        """The VM is off for a moment."""
        self.machine.end_process()
        await asyncio.sleep(1)

    def boot(self) -> None:
        self.machine.boot(RunState.RUNNING)
        self._intercept()

    # -- looking in ----------------------------------------------------------------------------

    def bitmaps(self, index: int = 0) -> dict[str, Bitmap]:
        """Of the node that a disk's device uses."""
        backend = self.machine.process.block.backend(f"drive-scsi{index}")
        assert backend is not None and backend.node is not None
        return backend.node.bitmaps

    def kept(self, index: int = 0) -> Bitmap:
        """The one bitmap that is kept for a disk."""
        [bitmap] = self.bitmaps(index).values()
        return bitmap

    def reasons(self) -> set[str]:
        return {plan.reason for plan in self.plans}

    def assert_only_kept_bitmaps(self) -> None:
        if self.machine.run_state is None:
            return
        for index in range(len(DISKS)):
            assert not [name for name in self.bitmaps(index) if "-new-" in name]

    def assert_reused(self) -> None:
        assert self.reasons() == {""}
        assert 0 < self.read_bytes < sum(self.images.values()) / 2

    def assert_all_read(self, reason: str) -> None:
        """Everything was read, and the reason was told of every disk."""
        assert self.reasons() == {reason}
        assert self.read_bytes == sum(self.images.values())
        told = self.told_of(events.IncrementPlanned)[-len(DISKS) :]
        assert {event.reason for event in told} == {reason}
