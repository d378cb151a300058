"""A recovery that is itself killed at any point is completed by the next one."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from tests.engine.wreck import (
    CANCEL,
    CLOSE_FD,
    DETACH,
    FLEECING,
    FREE,
    NODE,
    REMOVE_FILE,
    REMOVE_TREE,
    SLOW_JOB,
    TEMP_FILE,
    TEMP_TREE,
    THAW,
    UNLOCK,
    KillableJournal,
    Killed,
    Wreck,
)
from vzsim.fakeqmp.run_state import RunState

ALL = (UNLOCK, REMOVE_TREE, FREE, DETACH, REMOVE_FILE, CLOSE_FD, CANCEL, THAW)


async def _be_killed_late(wreck: Wreck) -> None:
    """Everything that a run in SNAPSHOT mode can leave at once."""
    await wreck.node.set_vm_lock(100)
    wreck.files.make_directories(TEMP_TREE)
    await wreck.node.record_fleecing(100, [FLEECING])
    await wreck.node.storages.allocate_fleecing("local", vmid=100, name="0", size_bytes=4096)
    await wreck.attach()
    wreck.files.create(TEMP_FILE)
    await wreck.start_job()
    await wreck.freeze()
    await wreck.note(*ALL)


async def _assert_all_put_back(wreck: Wreck) -> None:
    await wreck.draining
    assert NODE not in await wreck.node_names()
    assert wreck.node.fleecing_records[100] == []
    assert wreck.machine.run_state is RunState.RUNNING
    wreck.assert_nothing_left()


def test_everything_at_once_is_put_back_and_a_second_time_changes_nothing() -> None:
    async def scene(wreck: Wreck) -> None:
        await _be_killed_late(wreck)
        assert await wreck.recover()
        await _assert_all_put_back(wreck)
        await wreck.note(*ALL)
        assert await wreck.recover()
        await _assert_all_put_back(wreck)
        assert wreck.qmp_log.count("backup-cancel") == 1

    Wreck(script=SLOW_JOB).play(scene)


@pytest.mark.parametrize("written", [False, True], ids=["before-strike", "after-strike"])
@pytest.mark.parametrize("at_strike", range(1, len(ALL) + 1))
def test_recovery_killed_at_an_entry_is_completed_by_the_next(
    at_strike: int, *, written: bool
) -> None:
    async def scene(wreck: Wreck) -> None:
        await _be_killed_late(wreck)
        with pytest.raises(Killed):
            async with wreck.journals.open(100) as journal:
                await wreck.recover_with(
                    KillableJournal(journal, at_strike=at_strike, written=written)
                )
        assert len(wreck.left()) == len(ALL) - at_strike + (not written)
        assert await wreck.recover()
        await _assert_all_put_back(wreck)

    Wreck(script=SLOW_JOB).play(scene)


@pytest.mark.parametrize("after_ms", [0, 1, 2, 3, 5, 8, 13, 21, 34, 55])
def test_recovery_killed_in_the_middle_of_an_act_is_completed_by_the_next(after_ms: int) -> None:
    async def scene(wreck: Wreck) -> None:
        await _be_killed_late(wreck)
        task = asyncio.ensure_future(wreck.recover())
        await asyncio.sleep(after_ms / 1000)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert await wreck.recover()
        await _assert_all_put_back(wreck)

    Wreck(script=SLOW_JOB).play(scene)
