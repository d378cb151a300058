"""Increments in a row, with faults between: what a target puts together is the point in time."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.engine.world import World
from vzdump_qemu import events
from vzdump_qemu.engine.attachments import RunDisk
from vzdump_qemu.engine.change_tracking import (
    NO_BASE,
    NO_BITMAP,
    OTHER_BASE,
    OTHER_SIZE,
    IncrementalPlan,
    IncrementalRequest,
)
from vzdump_qemu.engine.context import EnginePorts
from vzdump_qemu.engine.pull_source import PullSource
from vzdump_qemu.engine.recovery import recover_vm
from vzdump_qemu.engine.undo import UndoStack
from vzdump_qemu.errors import BackupError, JobError
from vzdump_qemu.plan.options import FleecingOptions
from vzsim.fakeqmp.bitmaps import Bitmap
from vzsim.fakeqmp.run_state import RunState
from vzsim.fakeqmp.schema import CommandError, Dialect
from vzsim.fakeqmp.script import GuestRules, Script
from vzsim.kernel import Chance, run_simulated
from vzsim.world.clock import SimulatedIds

DISKS = ("scsi0", "scsi1")
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
    ports: EnginePorts = field(init=False)
    made_count: int = 0

    def play(self, scene: Callable[[Chain], Awaitable[None]]) -> None:
        """Let the scene happen in virtual time."""
        run_simulated(self._play(scene))

    async def _play(self, scene: Callable[[Chain], Awaitable[None]]) -> None:
        self._build()
        self._intercept()
        await asyncio.sleep(1)
        self.ports = EnginePorts(
            node=self.node,
            store=self.store,
            packer=self.packer,
            journals=self.journals,
            commands=self.commands,
            clock=self.clock,
            ids=SimulatedIds(Chance(self.seed).of("tool").stream()),
            emit=self._emit,
        )
        await scene(self)

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
        storages = self.node.storages
        disks = [
            RunDisk(
                key=key,
                device_id=f"drive-{key}",
                facts=await storages.describe(f"local:100/vm-100-disk-{index}.raw"),
            )
            for index, key in enumerate(DISKS)
        ]
        request = IncrementalRequest(
            target_id=self.target_id,
            base_id=self.target.backup_id if base_id is None else base_id,
            granularity_bytes=self.granularity_bytes,
        )
        fleecing = FleecingOptions(enabled=True, storage_id="local")
        return PullSource(self.ports, self.machine, disks, fleecing, incremental=request)

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


@pytest.fixture
def chain() -> Chain:
    """A guest that writes, and a target that has nothing yet."""
    return Chain()


@contextmanager
def _refusing(chain: Chain, name: str, nth: int) -> Iterator[None]:
    seen = 0

    def refused(asked: str, arguments: dict[str, Any]) -> bool:
        nonlocal seen
        seen += asked == name
        return asked == name and seen == nth

    chain.refused = refused
    yield
    chain.refused = lambda name, arguments: False


async def _lasting(chain: Chain) -> None:
    """Nothing was lost: the next ones reuse what there is, and are the point in time."""
    for _ in range(2):
        await asyncio.sleep(1)
        await chain.back_up()
        chain.assert_reused()


def test_increments_in_a_row_are_the_point_in_time(chain: Chain) -> None:
    async def scene(chain: Chain) -> None:
        await chain.back_up()
        chain.assert_all_read(NO_BASE)
        for _ in range(4):
            await _lasting(chain)
        guest = chain.machine.guest
        assert guest is not None and guest.write_count > 50 and guest.failed_write_count == 0

    chain.play(scene)


def test_disk_without_changes_is_not_read(chain: Chain) -> None:
    chain.script = Script()

    async def scene(chain: Chain) -> None:
        await chain.back_up()
        await chain.back_up()
        assert chain.reasons() == {""} and chain.read_bytes == 0
        assert {plan.changed_bytes for plan in chain.plans} == {0}

    chain.play(scene)


def test_source_without_request_makes_no_bitmap(chain: Chain) -> None:
    chain.run()
    assert "transaction" not in chain.qmp_log
    assert not chain.bitmaps()


def test_window_holds_two_commands_for_all_disks(chain: Chain) -> None:
    async def scene(chain: Chain) -> None:
        await chain.back_up()
        last = len(chain.qmp_log) - 1 - chain.qmp_log[::-1].index("nbd-server-start")
        assert chain.qmp_log[last + 1 : last + 3] == ["transaction", "blockdev-reopen"]

    chain.play(scene)


def test_two_targets_do_not_disturb_each_other(chain: Chain) -> None:
    async def scene(chain: Chain) -> None:
        targets = {"one": Target(), "two": Target()}
        for turn, target_id in enumerate(("one", "two", "one", "one", "two")):
            await asyncio.sleep(1)
            chain.target_id, chain.target = target_id, targets[target_id]
            await chain.back_up()
            targets[target_id] = chain.target
            assert chain.reasons() == ({""} if turn > 1 else {NO_BASE})
        assert len(chain.bitmaps()) == 2

    chain.play(scene)


def _digest(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


# -- 77: a bitmap is missing or not consistent -------------------------------------------------


def test_missing_bitmap_ends_in_a_full_read(chain: Chain) -> None:
    async def scene(chain: Chain) -> None:
        await chain.back_up()
        await chain.restart()
        chain.boot()
        await asyncio.sleep(1)
        await chain.back_up()
        chain.assert_all_read(NO_BITMAP)
        await _lasting(chain)

    chain.play(scene)


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [("inconsistent", True, "the bitmap is inconsistent"),
     ("busy", True, "the bitmap is in use by another operation"),
     ("recording", False, "the bitmap was stopped meanwhile"),
     ("persistent", True, "the bitmap is stored in the image, so it is not ours"),
     ("granularity_bytes", 4096, "the bitmap has a granularity of 4096 bytes")],
)  # fmt: skip
def test_bitmap_that_cannot_be_believed_ends_in_a_full_read(
    chain: Chain, attribute: str, value: object, reason: str
) -> None:
    async def scene(chain: Chain) -> None:
        await chain.back_up()
        for index in range(len(DISKS)):
            setattr(chain.kept(index), attribute, value)
        await asyncio.sleep(1)
        await chain.back_up()
        chain.assert_all_read(reason)
        await _lasting(chain)

    chain.play(scene)


def test_one_bad_bitmap_costs_one_disk(chain: Chain) -> None:
    async def scene(chain: Chain) -> None:
        await chain.back_up()
        chain.kept(1).inconsistent = True
        await chain.back_up()
        assert [plan.is_reused for plan in chain.plans] == [True, False]

    chain.play(scene)


# -- 78: a bitmap's name is taken --------------------------------------------------------------


def test_name_taken_by_another_bitmap_is_neither_believed_nor_removed(chain: Chain) -> None:
    async def scene(chain: Chain) -> None:
        await chain.back_up()
        # Whoever made it, it does not count from the next backup.
        next_names = []
        for index in range(len(DISKS)):
            bitmaps = chain.bitmaps(index)
            [name] = bitmaps
            size_text = name.rpartition("-")[2]
            prefix = name.split("-")[:3]
            next_name = "-".join([*prefix, _digest("backup-2"), size_text])
            bitmaps[next_name] = Bitmap(
                name=next_name, size_bytes=bitmaps[name].size_bytes, persistent=True
            )
            next_names.append(next_name)
        await asyncio.sleep(1)
        await chain.back_up()
        chain.assert_reused()
        warned = [event.text for event in chain.told_of(events.Warned)]
        assert len(warned) == 2 and "is there already" in warned[0]
        await asyncio.sleep(1)
        await chain.back_up()
        chain.assert_all_read("the bitmap is stored in the image, so it is not ours")
        assert next_names[0] in chain.bitmaps(0) and next_names[1] in chain.bitmaps(1)
        await _lasting(chain)

    chain.play(scene)


def test_name_left_by_ourselves_is_taken_over_anew(chain: Chain) -> None:
    async def scene(chain: Chain) -> None:
        await chain.back_up()
        for index in range(len(DISKS)):
            bitmaps = chain.bitmaps(index)
            [name] = bitmaps
            stale = name.replace(_digest("backup-1"), _digest("backup-2"))
            bitmaps[stale] = Bitmap(
                name=stale,
                size_bytes=bitmaps[name].size_bytes,
                granularity_bytes=GRANULARITY_BYTES,
            )
        await asyncio.sleep(1)
        await _lasting(chain)
        assert len(chain.bitmaps()) == 1

    chain.play(scene)


def test_bitmaps_of_others_are_left_alone(chain: Chain) -> None:
    async def scene(chain: Chain) -> None:
        other = Bitmap(name="pbs-incremental-dirty-bitmap", size_bytes=8 << 20)
        near = Bitmap(name="vzdump-qemu-0000000000000000-new", size_bytes=8 << 20)
        chain.bitmaps()[other.name], chain.bitmaps()[near.name] = other, near
        await chain.back_up()
        with pytest.raises(JobError):
            await chain.back_up(fails=True)
        await _lasting(chain)
        assert chain.bitmaps()[other.name] is other and chain.bitmaps()[near.name] is near

    chain.play(scene)


# -- 79 and 80: an increment fails, whatever became of its bitmap ------------------------------


def test_failed_increment_keeps_the_changes_for_the_next(chain: Chain) -> None:
    async def scene(chain: Chain) -> None:
        await chain.back_up()
        for _ in range(3):
            await asyncio.sleep(1)
            with pytest.raises(JobError, match="broken"):
                await chain.back_up(fails=True)
        await _lasting(chain)

    chain.play(scene)


@pytest.mark.parametrize(
    ("command", "nth"),
    [("transaction", 1), ("transaction", 2), ("transaction", 3), ("transaction", 4),
     ("transaction", 5), ("transaction", 6), ("blockdev-reopen", 3), ("block-export-add", 2),
     ("block-export-add", 4), ("block-dirty-bitmap-remove", 1), ("nbd-server-start", 1)],
)  # fmt: skip
def test_refusal_at_any_step_of_an_increment_loses_no_change(
    chain: Chain, command: str, nth: int
) -> None:
    async def scene(chain: Chain) -> None:
        await chain.back_up()
        await asyncio.sleep(1)
        with _refusing(chain, command, nth):
            try:
                await chain.back_up()
            except BackupError as error:
                assert "simulated refusal" in str(error)
        # A full read may be needed once; a wrong one is never made.
        await asyncio.sleep(1)
        await chain.back_up()
        await _lasting(chain)

    chain.play(scene)


def test_increment_killed_at_any_command_loses_no_change_and_leaves_no_bitmap() -> None:
    for nth in range(1, 100):
        was_killed: list[bool] = []
        Chain().play(functools.partial(_killed_at, nth=nth, was_killed=was_killed))
        if not was_killed:
            break
    assert nth > 40


async def _killed_at(chain: Chain, *, nth: int, was_killed: list[bool]) -> None:
    """A run whose undos nobody carries out: its last command is still done by QEMU."""
    await chain.back_up()
    await asyncio.sleep(1)
    async with chain.journals.open(100) as journal:
        run = asyncio.ensure_future(chain.transfer(UndoStack(chain._emit, journal, chain.clock)))
        seen = 0

        def at_command(name: str, arguments: dict[str, Any]) -> bool:
            nonlocal seen
            seen += 1
            if seen == nth:
                was_killed.append(run.cancel())
            return False

        chain.refused = at_command
        await asyncio.wait([run])
        chain.refused = lambda name, arguments: False
        if was_killed:
            assert run.cancelled()
            assert await recover_vm(chain.ports, chain.machine, journal, holds_global_lock=True)
    chain.assert_only_kept_bitmaps()
    # The target may have it and QEMU not know, for one disk or for all; not the other way round.
    possible = {""} if chain.made_count == 1 else {"", OTHER_BASE}
    await asyncio.sleep(1)
    await chain.back_up()
    assert chain.reasons() <= possible
    await _lasting(chain)


def test_backup_that_was_made_but_not_noted_ends_in_a_full_read(chain: Chain) -> None:
    async def scene(chain: Chain) -> None:
        await chain.back_up()
        chain.target.backup_id = "backup-of-a-killed-tool"
        await asyncio.sleep(1)
        await chain.back_up()
        chain.assert_all_read(OTHER_BASE)
        await _lasting(chain)

    chain.play(scene)


def test_qemu_killed_in_an_increment_ends_in_a_full_read(chain: Chain) -> None:
    async def scene(chain: Chain) -> None:
        await chain.back_up()
        run = asyncio.ensure_future(chain.back_up())
        await asyncio.sleep(READING_S / 2)
        await chain.restart()
        with pytest.raises((BackupError, OSError)):
            await run
        chain.boot()
        await asyncio.sleep(1)
        await chain.back_up()
        chain.assert_all_read(NO_BITMAP)
        await _lasting(chain)

    chain.play(scene)


# -- 81: a disk was written outside of QEMU ----------------------------------------------------


def test_disk_written_while_the_vm_was_off_is_read_whole(chain: Chain) -> None:
    async def scene(chain: Chain) -> None:
        await chain.back_up()
        await chain.restart()
        image = chain.host.images[sorted(chain.images)[0]]
        image.write(0, b"restored" * 512)
        chain.boot()
        await asyncio.sleep(1)
        await chain.back_up()
        chain.assert_all_read(NO_BITMAP)
        assert chain.target.contents["drive-scsi0"].startswith(b"restored")

    chain.play(scene)


def test_disk_that_was_resized_is_read_whole(chain: Chain) -> None:
    chain.script = Script(guest=GuestRules(writes_per_s=8, write_bytes=4096, seed=5))

    async def scene(chain: Chain) -> None:
        await chain.back_up()
        async with chain.machine.connect_qmp(timeout_s=5) as qmp:
            words = {"device": "drive-scsi0", "size": 9 << 20}
            await qmp.execute("block_resize", words, timeout_s=5)
        await chain.back_up()
        assert [plan.reason for plan in chain.plans] == [OTHER_SIZE, ""]
        await chain.back_up()
        assert chain.reasons() == {""}
        assert len(chain.bitmaps()) == 1

    chain.play(scene)


def test_exchanged_disk_is_read_whole(chain: Chain) -> None:
    async def scene(chain: Chain) -> None:
        await chain.back_up()
        # As after a move to another storage, or a disk that was taken out and put in again.
        chain.bitmaps(0).clear()
        await asyncio.sleep(1)
        await chain.back_up()
        assert [plan.reason for plan in chain.plans] == [NO_BITMAP, ""]
        await _lasting(chain)

    chain.play(scene)


# -- 82: the target's newest backup is not the one the bitmap counts from ----------------------


def test_older_base_at_the_target_ends_in_a_full_read(chain: Chain) -> None:
    async def scene(chain: Chain) -> None:
        await chain.back_up()
        older = chain.target
        await asyncio.sleep(1)
        await chain.back_up()
        chain.target = older
        await asyncio.sleep(1)
        await chain.back_up()
        chain.assert_all_read(OTHER_BASE)
        await _lasting(chain)

    chain.play(scene)


def test_target_that_lost_its_backups_is_given_everything(chain: Chain) -> None:
    async def scene(chain: Chain) -> None:
        await chain.back_up()
        await chain.back_up(base_id="")
        chain.assert_all_read(NO_BASE)

    chain.play(scene)
