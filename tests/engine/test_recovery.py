"""Recovery puts back what a killed run left: each kind, their order, and again after a kill."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.engine.world import World
from vzdump_qemu import events
from vzdump_qemu.engine.context import EnginePorts
from vzdump_qemu.engine.recovery import recover_all, recover_vm
from vzdump_qemu.errors import ConfigError
from vzdump_qemu.journal_ports import Journal, Reversal, ReversalKind
from vzdump_qemu.units import NS_PER_S
from vzsim.fakeqmp.run_state import RunState
from vzsim.fakeqmp.script import AgentRules, BackupRules, CommandRule, Script
from vzsim.kernel import Chance, run_simulated
from vzsim.world.clock import SimulatedIds
from vzsim.world.journal import SimulatedJournal
from vzsim.world.pipes import SimulatedPipe

FD_NAME = "backup-12345678"
TARGET = f"/dev/fdname/{FD_NAME}"
TEMP_FILE = "/var/lib/vz/dump/vzdump-qemu-100.vma.dat"
TEMP_TREE = "/var/lib/vz/dump/vzdump-qemu-100.tmp"
FLEECING = "local:100/vm-100-fleece-0.qcow2"
NODE = "drive-tpmstate0-backup"
SLOW_JOB = Script(backup=BackupRules(bytes_per_s=1 << 16))

THAW = Reversal(kind=ReversalKind.THAW)
CANCEL = Reversal(kind=ReversalKind.CANCEL_JOB, names=(TARGET,))
CLOSE_FD = Reversal(kind=ReversalKind.CLOSE_FD, names=(FD_NAME,))
RESUME = Reversal(kind=ReversalKind.RESUME)
START = Reversal(kind=ReversalKind.START)
STOP_QEMU = Reversal(kind=ReversalKind.STOP_QEMU)
DETACH = Reversal(kind=ReversalKind.DETACH, names=(NODE,))
FREE = Reversal(kind=ReversalKind.FREE_FLEECING, names=(FLEECING,))
REMOVE_FILE = Reversal(kind=ReversalKind.REMOVE_FILE, names=(TEMP_FILE,))
REMOVE_TREE = Reversal(kind=ReversalKind.REMOVE_TREE, names=(TEMP_TREE,))
UNLOCK = Reversal(kind=ReversalKind.UNLOCK)


class Killed(BaseException):
    """The recovering process is gone; nothing of it runs on."""


@dataclass
class KillableJournal:
    """Ends its process at one strike: the act is done, the strike is or is not written."""

    journal: SimulatedJournal
    at_strike: int
    written: bool
    strike_count: int = 0

    @property
    def open_entries(self) -> Sequence[tuple[int, Reversal]]:
        return self.journal.open_entries

    async def note(self, reversal: Reversal) -> int:
        return await self.journal.note(reversal)

    def strike(self, index: int) -> None:
        self.strike_count += 1
        if self.strike_count != self.at_strike:
            self.journal.strike(index)
            return
        if self.written:
            self.journal.strike(index)
        raise Killed


@dataclass
class Wreck(World):
    """A node whose tool was killed; what is left is arranged by each scene."""

    ports: EnginePorts = field(init=False)

    def play(self, scene: Callable[[Wreck], Awaitable[None]]) -> None:
        """Build the node and let the scene happen in virtual time."""
        run_simulated(self._play(scene))

    async def _play(self, scene: Callable[[Wreck], Awaitable[None]]) -> None:
        self._build()
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

    async def note(self, *reversals: Reversal) -> None:
        """What the dead run noted, in this order."""
        async with self.journals.open(100) as journal:
            for reversal in reversals:
                await journal.note(reversal)

    def left(self) -> list[Reversal]:
        """What the journal still lists."""
        journal = self.journals.journals.get(100)
        return [] if journal is None else [reversal for _, reversal in journal.open_entries]

    async def recover(self, *, holds_global_lock: bool = False) -> bool:
        async with self.journals.open(100) as journal:
            return await self.recover_with(journal, holds_global_lock=holds_global_lock)

    async def recover_with(self, journal: Journal, *, holds_global_lock: bool = False) -> bool:
        return await recover_vm(
            self.ports, self.machine, journal, holds_global_lock=holds_global_lock
        )

    async def execute(self, command: str, **arguments: Any) -> Any:
        async with self.machine.connect_qmp(timeout_s=5) as qmp:
            return await qmp.execute(command, arguments, timeout_s=5)

    async def freeze(self) -> None:
        async with self.machine.connect_agent(timeout_s=5) as agent:
            await agent.execute("guest-fsfreeze-freeze", timeout_s=5)

    async def pass_fd(self) -> SimulatedPipe:
        """A descriptor inside QEMU, its reader still there (the guardian's)."""
        pipe = SimulatedPipe()
        fd = self.host.descriptors.open(pipe)
        async with self.machine.connect_qmp(timeout_s=5) as qmp:
            await qmp.execute_with_fd("getfd", {"fdname": FD_NAME}, fd, timeout_s=5)
        self.host.descriptors.close(fd)
        return pipe

    async def start_job(self) -> None:
        """A job into that descriptor, whose stream somebody drains."""
        pipe = await self.pass_fd()
        await self.execute("backup", **{"backup-file": TARGET, "devlist": "drive-scsi0"})

        async def drain() -> None:
            while await pipe.read(1 << 20):
                pass

        self.draining = asyncio.ensure_future(drain())

    async def attach(self) -> None:
        """The node of a TPM state."""
        path = sorted(self.images)[1]
        child = {"driver": "file", "filename": path}
        await self.execute(
            "blockdev-add",
            **{"driver": "raw", "node-name": NODE, "read-only": True, "file": child},
        )

    async def node_names(self) -> set[str]:
        return {node["node-name"] for node in await self.execute("query-named-block-nodes")}

    def job_status(self) -> str:
        return str(self.machine.process.backup.query().get("status"))

    def is_frozen(self) -> bool:
        agent = self.machine.process.agent
        return agent is not None and agent.is_frozen

    def failures(self) -> list[str]:
        return [event.what for event in self.told_of(events.UndoFailed)]

    def put_back(self) -> list[str]:
        """Kinds in the order they were put back."""
        prefix = "put back after an earlier run: "
        return [event.text.removeprefix(prefix).split()[0] for event in self.told_of(events.Warned)]


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
