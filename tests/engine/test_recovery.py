"""Recovery puts back what a killed run left: each kind, their order, and each VM by itself."""

from __future__ import annotations

from tests.engine.wreck import (
    CANCEL,
    CLOSE_FD,
    DETACH,
    FLEECING,
    FREE,
    NODE,
    REMOVE_FILE,
    REMOVE_TREE,
    RESUME,
    SLOW_JOB,
    START,
    STOP_QEMU,
    TARGET,
    TEMP_FILE,
    TEMP_TREE,
    THAW,
    UNLOCK,
    Wreck,
)
from vzdump_qemu.engine.recovery import recover_all
from vzdump_qemu.errors import ConfigError
from vzdump_qemu.journal_ports import Reversal, ReversalKind
from vzdump_qemu.units import NS_PER_S
from vzsim.fakeqmp.run_state import RunState
from vzsim.fakeqmp.script import AgentRules, CommandRule, Script


def test_frozen_guest_is_thawed_and_its_entry_struck() -> None:
    async def scene(wreck: Wreck) -> None:
        await wreck.freeze()
        await wreck.note(THAW)
        assert wreck.is_frozen()
        assert await wreck.recover()
        assert not wreck.is_frozen()
        assert wreck.journals.journals == {}

    Wreck().play(scene)


def test_thaw_of_a_stopped_vm_has_nothing_to_do() -> None:
    async def scene(wreck: Wreck) -> None:
        await wreck.note(THAW)
        assert await wreck.recover()

    Wreck(state=None).play(scene)


def test_thaw_is_tried_again_until_the_agent_is_back() -> None:
    async def scene(wreck: Wreck) -> None:
        await wreck.note(THAW)
        began_ns = wreck.clock.now_ns()
        assert await wreck.recover()
        assert wreck.clock.now_ns() - began_ns > 5 * NS_PER_S

    Wreck(script=Script(agent=AgentRules(starts_after_s=15.0))).play(scene)


def test_agent_that_never_answers_is_given_up_and_the_rest_is_put_back() -> None:
    async def scene(wreck: Wreck) -> None:
        await wreck.node.set_vm_lock(100)
        await wreck.note(UNLOCK, THAW)
        began_ns = wreck.clock.now_ns()
        assert not await wreck.recover()
        assert wreck.clock.now_ns() - began_ns <= 310 * NS_PER_S
        assert wreck.left() == [THAW]
        assert wreck.failures() == ["thaw of an earlier run"]
        assert wreck.node.lock_of(100) == ""

    Wreck(has_agent=False).play(scene)


def test_thaw_that_never_ends_is_given_up_within_its_limit() -> None:
    async def scene(wreck: Wreck) -> None:
        await wreck.freeze()
        await wreck.note(THAW)
        began_ns = wreck.clock.now_ns()
        assert not await wreck.recover()
        assert wreck.clock.now_ns() - began_ns <= 300 * NS_PER_S
        assert wreck.left() == [THAW]

    Wreck(script=Script(agent=AgentRules(thaw_delay_s=10_000.0))).play(scene)


def test_job_of_the_dead_run_is_cancelled() -> None:
    async def scene(wreck: Wreck) -> None:
        await wreck.start_job()
        await wreck.note(CANCEL)
        assert wreck.job_status() == "active"
        assert await wreck.recover()
        assert wreck.job_status() != "active"
        await wreck.draining
        assert wreck.host.descriptors.open_count() == 0

    Wreck(script=SLOW_JOB).play(scene)


def test_job_with_another_target_is_left_alone() -> None:
    async def scene(wreck: Wreck) -> None:
        await wreck.start_job()
        await wreck.note(Reversal(kind=ReversalKind.CANCEL_JOB, names=(TARGET[:-1] + "9",)))
        assert await wreck.recover()
        assert wreck.job_status() == "active"
        assert "backup-cancel" not in wreck.qmp_log

    Wreck(script=SLOW_JOB).play(scene)


def test_job_that_ended_well_keeps_its_status() -> None:
    async def scene(wreck: Wreck) -> None:
        await wreck.start_job()
        await wreck.draining
        await wreck.note(CANCEL)
        assert await wreck.recover()
        assert wreck.job_status() == "done"

    Wreck().play(scene)


def test_descriptor_that_no_job_took_is_closed() -> None:
    async def scene(wreck: Wreck) -> None:
        pipe = await wreck.pass_fd()
        await wreck.note(CLOSE_FD)
        assert await wreck.recover()
        assert await pipe.read(1) == b""
        assert wreck.host.descriptors.open_count() == 0

    Wreck().play(scene)


def test_descriptor_that_is_not_there_is_no_error() -> None:
    async def scene(wreck: Wreck) -> None:
        await wreck.note(CLOSE_FD)
        assert await wreck.recover()

    Wreck().play(scene)


def test_suspended_guest_is_resumed() -> None:
    async def scene(wreck: Wreck) -> None:
        await wreck.note(RESUME)
        assert await wreck.recover()
        assert wreck.machine.run_state is RunState.RUNNING

    Wreck(state=RunState.PAUSED).play(scene)


def test_running_guest_is_not_resumed_again() -> None:
    async def scene(wreck: Wreck) -> None:
        await wreck.note(RESUME)
        assert await wreck.recover()
        assert "cont" not in wreck.qmp_log

    Wreck().play(scene)


def test_stopped_guest_is_started() -> None:
    async def scene(wreck: Wreck) -> None:
        wreck.machine.end_process()
        await wreck.note(START)
        assert await wreck.recover()
        assert wreck.machine.run_state is RunState.RUNNING

    Wreck().play(scene)


def test_guest_in_a_prelaunch_qemu_is_continued_without_a_second_process() -> None:
    async def scene(wreck: Wreck) -> None:
        wreck.machine.end_process()
        wreck.machine.boot(RunState.PRELAUNCH)
        await wreck.note(START)
        assert await wreck.recover()
        assert wreck.machine.run_state is RunState.RUNNING
        assert wreck.machine.boot_count == 2

    Wreck().play(scene)


def test_guest_that_cannot_be_started_stays_noted() -> None:
    async def scene(wreck: Wreck) -> None:
        await wreck.note(START)
        assert not await wreck.recover()
        assert wreck.left() == [START]

    Wreck(state=None, start_error="no memory").play(scene)


def test_prelaunch_qemu_is_stopped() -> None:
    async def scene(wreck: Wreck) -> None:
        wreck.machine.boot(RunState.PRELAUNCH)
        await wreck.note(STOP_QEMU)
        assert await wreck.recover()
        assert wreck.machine.run_state is None

    Wreck(state=None).play(scene)


def test_qemu_that_somebody_runs_by_now_is_kept() -> None:
    async def scene(wreck: Wreck) -> None:
        wreck.machine.boot(RunState.PRELAUNCH)
        await wreck.execute("cont")
        await wreck.note(STOP_QEMU)
        assert await wreck.recover()
        assert wreck.machine.run_state is RunState.RUNNING

    Wreck(state=None).play(scene)


def test_attached_node_is_detached() -> None:
    async def scene(wreck: Wreck) -> None:
        await wreck.attach()
        assert NODE in await wreck.node_names()
        await wreck.note(DETACH)
        assert await wreck.recover()
        assert NODE not in await wreck.node_names()

    Wreck().play(scene)


def test_fleecing_image_is_freed_and_its_record_emptied() -> None:
    async def scene(wreck: Wreck) -> None:
        storages = wreck.node.storages
        await storages.allocate_fleecing("local", vmid=100, name="0", size_bytes=4096)
        await wreck.node.record_fleecing(100, [FLEECING])
        await wreck.note(FREE)
        assert await wreck.recover()
        assert wreck.node.fleecing_records[100] == []
        assert storages.path_of(FLEECING) not in wreck.host.images

    Wreck().play(scene)


def test_unfinished_file_and_directory_are_removed() -> None:
    async def scene(wreck: Wreck) -> None:
        wreck.files.create(TEMP_FILE)
        wreck.files.make_directories(TEMP_TREE)
        wreck.files.create(f"{TEMP_TREE}/qemu-server.conf")
        await wreck.note(REMOVE_TREE, REMOVE_FILE)
        assert await wreck.recover()
        assert wreck.files.files == {}
        assert TEMP_TREE not in wreck.files.directories

    Wreck().play(scene)


def test_lock_is_cleared_under_the_global_lock() -> None:
    async def scene(wreck: Wreck) -> None:
        await wreck.node.set_vm_lock(100)
        await wreck.note(UNLOCK)
        assert await wreck.recover()
        assert wreck.node.lock_of(100) == ""

    Wreck().play(scene)


def test_lock_stays_while_another_job_holds_the_global_lock() -> None:
    async def scene(wreck: Wreck) -> None:
        await wreck.node.set_vm_lock(100)
        await wreck.note(UNLOCK)
        async with wreck.node.hold_global_lock(timeout_s=1):
            assert not await wreck.recover()
            assert wreck.node.lock_of(100) == "backup"
            assert wreck.left() == [UNLOCK]
            # The job that holds it is the one that may.
            assert await wreck.recover(holds_global_lock=True)
        assert wreck.node.lock_of(100) == ""

    Wreck().play(scene)


def test_lock_of_another_operation_is_left_alone() -> None:
    async def scene(wreck: Wreck) -> None:
        await wreck.note(UNLOCK)
        assert await wreck.recover()
        assert wreck.node.lock_of(100) == "migrate"
        assert wreck.left() == []

    world = Wreck()
    world.config = "lock: migrate\n" + world.config
    world.play(scene)


def test_run_killed_before_it_locked_leaves_nothing_to_unlock() -> None:
    async def scene(wreck: Wreck) -> None:
        await wreck.note(UNLOCK)
        assert await wreck.recover()
        assert wreck.node.lock_log == []

    Wreck().play(scene)


def test_guest_comes_first_and_the_rest_last_noted_first() -> None:
    async def scene(wreck: Wreck) -> None:
        await wreck.note(UNLOCK, REMOVE_TREE, RESUME, REMOVE_FILE, CLOSE_FD, THAW)
        assert await wreck.recover()
        assert wreck.put_back() == [
            *("thaw", "resume", "close-fd", "remove-file", "remove-tree", "unlock")
        ]

    Wreck().play(scene)


def test_failed_entry_alone_stays_open_and_is_put_back_the_next_time() -> None:
    async def scene(wreck: Wreck) -> None:
        await wreck.attach()
        await wreck.node.set_vm_lock(100)
        await wreck.note(UNLOCK, DETACH, THAW)
        assert not await wreck.recover()
        assert wreck.left() == [DETACH]
        assert wreck.failures() == [f"detach {NODE} of an earlier run"]
        assert wreck.node.lock_of(100) == ""
        assert await wreck.recover()
        assert NODE not in await wreck.node_names()
        assert wreck.journals.journals == {}

    rule = CommandRule(name="blockdev-del", nth=1, error=f"Node {NODE} is in use")
    Wreck(script=Script(command=(rule,))).play(scene)


def test_vms_without_a_journal_are_not_touched() -> None:
    async def scene(wreck: Wreck) -> None:
        await wreck.node.set_vm_lock(100)
        assert await recover_all(wreck.ports) == ()
        assert wreck.node.lock_of(100) == "backup"

    Wreck().play(scene)


def test_vm_left_with_something_open_is_named() -> None:
    async def scene(wreck: Wreck) -> None:
        await wreck.note(START)
        assert await recover_all(wreck.ports) == (100,)

    Wreck(state=None, start_error="no memory").play(scene)


def test_living_run_on_one_vm_does_not_keep_the_others_from_recovery() -> None:
    async def scene(wreck: Wreck) -> None:
        await wreck.node.set_vm_lock(100)
        await wreck.note(UNLOCK)
        async with wreck.journals.open(50) as living:
            await living.note(UNLOCK)
            assert await recover_all(wreck.ports) == ()
            assert len(living.open_entries) == 1
        assert wreck.node.lock_of(100) == ""

    Wreck().play(scene)


def test_journal_of_a_vm_that_was_removed_does_not_keep_the_others_from_recovery() -> None:
    async def scene(wreck: Wreck) -> None:
        await wreck.node.set_vm_lock(100)
        await wreck.note(UNLOCK)
        async with wreck.journals.open(50) as journal:
            await journal.note(UNLOCK)
        assert await recover_all(wreck.ports) == (50,)
        assert wreck.failures() == ["recover VM 50"]
        assert wreck.node.lock_of(100) == ""

    Wreck().play(scene)


def test_guest_found_switched_off_inside_its_living_qemu_is_started() -> None:
    async def scene(wreck: Wreck) -> None:
        wreck.machine.process.control.guest_powers_off()
        await wreck.note(START)
        assert await wreck.recover()
        assert wreck.machine.run_state is RunState.RUNNING

    Wreck().play(scene)


def test_unknown_failure_of_a_lock_is_not_taken_for_done() -> None:
    async def scene(wreck: Wreck) -> None:
        async def refuse(vmid: int) -> None:
            raise ConfigError(f"can't lock file '/var/lock/qemu-server/lock-{vmid}.conf'")

        wreck.node.clear_vm_lock = refuse  # type: ignore[method-assign]
        await wreck.note(UNLOCK)
        assert not await wreck.recover()
        assert wreck.left() == [UNLOCK]

    Wreck().play(scene)
