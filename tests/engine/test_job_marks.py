"""Whose job it is that runs in a QEMU: ours is cancelled, even after our death; no other is."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.engine.pbs_world import REPOSITORY, PbsWorld
from tests.engine.wreck import UNLOCK
from vzdump_qemu import events
from vzdump_qemu.engine.native_job import JobMark
from vzdump_qemu.engine.recovery import recover_vm
from vzdump_qemu.journal_ports import Reversal, ReversalKind
from vzdump_qemu.ports import JobProgress, JobStatus
from vzsim.fakepbs import Fault, FaultKind
from vzsim.fakeqmp.script import BackupRules, Script

SLOW = Script(backup=BackupRules(bytes_per_s=1 << 16))
ACTIVE = JobProgress(status=JobStatus.ACTIVE, uuid="ours", backup_file=REPOSITORY)


@pytest.mark.parametrize(
    ("mark", "progress", "is_ours"),
    [
        (JobMark(target=REPOSITORY, uuid_before="", uuid="ours"), ACTIVE, True),
        (JobMark(target=REPOSITORY, uuid_before="", uuid="another"), ACTIVE, False),
        # No reply came: a job that was there before is not ours, a new one is.
        (JobMark(target=REPOSITORY, uuid_before="ours"), ACTIVE, False),
        (JobMark(target=REPOSITORY, uuid_before="before"), ACTIVE, True),
        (JobMark(target=REPOSITORY, uuid_before=""), ACTIVE, True),
        (JobMark(target="root@pam@other:tank", uuid_before=""), ACTIVE, False),
        (JobMark(target="/dev/fdname/backup-1"), ACTIVE, False),
        (
            JobMark(target="/dev/fdname/backup-1"),
            replace(ACTIVE, backup_file="/dev/fdname/backup-1"),
            True,
        ),
        # One that has ended keeps its status.
        (
            JobMark(target=REPOSITORY, uuid_before="", uuid="ours"),
            replace(ACTIVE, status=JobStatus.DONE),
            False,
        ),
    ],
)
def test_mark_tells_our_job_from_others(
    mark: JobMark, progress: JobProgress, is_ours: bool
) -> None:
    assert mark.is_active_in(progress) is is_ours
    assert JobMark.from_names(mark.names) == mark


def _note(*uuids: str) -> Reversal:
    return Reversal(kind=ReversalKind.CANCEL_JOB, names=(REPOSITORY, *uuids))


async def _start_job(world: PbsWorld) -> str:
    arguments = {
        "format": "pbs",
        "backup-file": REPOSITORY,
        "devlist": "drive-scsi0",
        "password": world.target.password.reveal(),
        "backup-id": "100",
        "backup-time": int(world.clock.wall_s()),
    }
    async with world.machine.connect_qmp(timeout_s=5) as qmp:
        reply = await qmp.execute("backup", arguments, timeout_s=125)
    return str(reply["UUID"])


async def _recover(world: PbsWorld, *reversals: Reversal, holds_global_lock: bool = True) -> bool:
    async with world.journals.open(100) as journal:
        for reversal in reversals:
            await journal.note(reversal)
    async with world.journals.open(100) as journal:
        return await recover_vm(
            world.ports, world.machine, journal, holds_global_lock=holds_global_lock
        )


def _status(world: PbsWorld) -> str:
    return str(world.machine.process.backup.query().get("status"))


def test_job_of_the_dead_run_is_cancelled_by_its_uuid() -> None:
    async def scene(world: PbsWorld) -> None:
        await world.node.set_vm_lock(100)
        uuid = await _start_job(world)
        assert await _recover(world, UNLOCK, _note("", uuid))
        await asyncio.sleep(5)
        assert _status(world) == "error" and world.backups() == []
        assert world.node.lock_of(100) == ""

    PbsWorld(script=SLOW).play(scene)


@pytest.mark.parametrize("holds_global_lock", [True, False])
def test_job_whose_reply_nobody_heard_is_cancelled_while_no_other_tool_works(
    holds_global_lock: bool,
) -> None:
    async def scene(world: PbsWorld) -> None:
        await world.node.set_vm_lock(100)
        await _start_job(world)
        assert await _recover(world, UNLOCK, _note(""), holds_global_lock=holds_global_lock)
        assert _status(world) == "error"

    PbsWorld(script=SLOW).play(scene)


def test_killed_while_qemu_asks_the_server_leaves_nothing_that_starts_later() -> None:
    """QEMU takes one command at a time: what is asked of it next is answered behind the start."""

    async def scene(world: PbsWorld) -> None:
        await world.node.set_vm_lock(100)
        starting = asyncio.ensure_future(_start_job(world))
        while "backup" not in world.qmp_log:
            await asyncio.sleep(0.01)
        assert _status(world) != "active"
        starting.cancel()
        assert await _recover(world, UNLOCK, _note(""))
        await asyncio.sleep(60)
        assert _status(world) == "error" and world.backups() == []

    slow_server = Fault(kind=FaultKind.SLOW, endpoint="GET /backup", bytes=20_000)
    PbsWorld(script=SLOW, faults=(slow_server,)).play(scene)


def test_job_that_ran_before_ours_was_to_start_is_left_alone() -> None:
    async def scene(world: PbsWorld) -> None:
        await world.node.set_vm_lock(100)
        uuid = await _start_job(world)
        assert await _recover(world, UNLOCK, _note(uuid))
        assert _status(world) == "active" and "backup-cancel" not in world.qmp_log

    PbsWorld(script=SLOW).play(scene)


def test_job_of_the_same_target_with_another_uuid_is_left_alone() -> None:
    async def scene(world: PbsWorld) -> None:
        await world.node.set_vm_lock(100)
        await _start_job(world)
        assert await _recover(world, UNLOCK, _note("", "ours"))
        assert _status(world) == "active" and "backup-cancel" not in world.qmp_log

    PbsWorld(script=SLOW).play(scene)


def test_job_that_may_be_the_one_of_a_living_tool_is_left_alone() -> None:
    """Our run died before it heard the uuid; by now another tool of the node backs up."""

    async def scene(world: PbsWorld) -> None:
        async with world.node.hold_global_lock(timeout_s=1):
            await _start_job(world)
            assert not await _recover(world, _note(""), holds_global_lock=False)
        assert _status(world) == "active" and "backup-cancel" not in world.qmp_log
        assert [entry for _, entry in world.journals.journals[100].open_entries] == [_note("")]

    PbsWorld(script=SLOW).play(scene)


@pytest.mark.parametrize("uuids", [("",), ("", "ours")])
def test_recovery_without_a_job_needs_no_lock_of_the_node(uuids: tuple[str, ...]) -> None:
    async def scene(world: PbsWorld) -> None:
        async with world.node.hold_global_lock(timeout_s=1):
            assert await _recover(world, _note(*uuids), holds_global_lock=False)

    PbsWorld().play(scene)


def test_job_that_a_lost_tool_of_the_node_left_is_cancelled_before_the_next_run() -> None:
    async def scene(world: PbsWorld) -> None:
        await _start_job(world)
        result = await world.back_up()
        assert "LeftOverJobFound" in world.names()
        assert result.error is None, result

    PbsWorld(script=SLOW).play(scene)


def test_uuid_is_noted_once_the_guest_is_thawed() -> None:
    noted: list[tuple[str, ...]] = []

    def look(world: PbsWorld) -> None:
        noted.extend(
            reversal.names
            for _, reversal in world.journals.journals[100].open_entries
            if reversal.kind is ReversalKind.CANCEL_JOB
        )

    world = PbsWorld(on_event={"JobStartIssued": look, "JobAccepted": look})
    world.assert_stored(world.run())
    [accepted] = world.told_of(events.JobAccepted)
    assert noted == [(REPOSITORY, ""), (REPOSITORY, "", accepted.uuid)]


def test_job_that_began_after_an_earlier_one_of_the_same_target_is_ours() -> None:
    async def scene(world: PbsWorld) -> None:
        await world.node.set_vm_lock(100)
        await _start_job(world)
        world.machine.process.backup.cancel()
        before = str(world.machine.process.backup.query()["uuid"])
        uuid = await _start_job(world)
        assert uuid != before
        assert await _recover(world, UNLOCK, _note(before))
        assert _status(world) == "error"

    PbsWorld(script=SLOW).play(scene)
