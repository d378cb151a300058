"""Increments in a row, with faults between: what a target puts together is the point in time."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.engine.chain import GRANULARITY_BYTES, READING_S, Chain, Target
from tests.engine.world import DISKS
from vzdump_qemu import events
from vzdump_qemu.engine.change_tracking import NO_BASE, NO_BITMAP, OTHER_BASE, OTHER_SIZE
from vzdump_qemu.engine.recovery import recover_vm
from vzdump_qemu.engine.undo import UndoStack
from vzdump_qemu.errors import BackupError, JobError
from vzsim.fakeqmp.bitmaps import Bitmap
from vzsim.fakeqmp.script import GuestRules, Script


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


async def _all_read_once(chain: Chain, reason: str) -> None:
    """The next one reads everything, for that reason; those after it reuse what there is."""
    await asyncio.sleep(1)
    await chain.back_up()
    chain.assert_all_read(reason)
    await _lasting(chain)


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
        await _all_read_once(chain, NO_BITMAP)

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
        await _all_read_once(chain, reason)

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
        await _all_read_once(chain, OTHER_BASE)

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
        await _all_read_once(chain, NO_BITMAP)

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
        await _all_read_once(chain, OTHER_BASE)

    chain.play(scene)


def test_target_that_lost_its_backups_is_given_everything(chain: Chain) -> None:
    async def scene(chain: Chain) -> None:
        await chain.back_up()
        await chain.back_up(base_id="")
        chain.assert_all_read(NO_BASE)

    chain.play(scene)
