"""The agent connection and the freeze window against the real guest agent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from integration.conftest import BootGuest
from integration.real_lab import RealLab
from vzdump_qemu import events
from vzdump_qemu.api import join_ports
from vzdump_qemu.engine.freeze import FreezeWindow
from vzdump_qemu.engine.run_state import wait_for_silence
from vzdump_qemu.engine.undo import UndoStack
from vzdump_qemu.errors import AgentCommandError, AgentUnreachable, JobError
from vzdump_qemu.events import Consistency
from vzdump_qemu.node.local_node import LocalNode
from vzdump_qemu.node.opening import open_node
from vzdump_qemu.ports import Machine

UP_WITHIN_S = 90.0


@dataclass
class Guest:
    """The running guest, its agent up."""

    node: LocalNode
    vm: Machine
    console: Path
    disk: Path

    async def ask(self, command: str) -> object:
        async with self.vm.connect_agent(timeout_s=10) as agent:
            return await agent.execute(command, timeout_s=10)


async def _wait_for_agent(vm: Machine, console: Path) -> None:
    deadline_s = time.monotonic() + UP_WITHIN_S
    while True:
        try:
            async with vm.connect_agent(timeout_s=1) as agent:
                await agent.execute("guest-ping", timeout_s=5)
                return
        except AgentUnreachable:
            assert time.monotonic() < deadline_s, console.read_text(errors="replace")


@pytest.fixture
async def guest(boot_guest: BootGuest, real_lab: RealLab) -> AsyncIterator[Guest]:
    console = boot_guest()
    async with open_node(str(real_lab.root)) as node:
        vm = node.machine(100)
        await _wait_for_agent(vm, console)
        assert "MOUNTED" in console.read_text(errors="replace")
        yield Guest(node, vm, console, real_lab.image())


async def test_guest_that_still_boots_is_unreachable_then_there(
    boot_guest: BootGuest, real_lab: RealLab
) -> None:
    console = boot_guest()
    async with open_node(str(real_lab.root)) as node:
        vm = node.machine(100)
        with pytest.raises(AgentUnreachable):
            async with vm.connect_agent(timeout_s=0.05):
                pass
        # The sync that was given up lies in the channel and is answered in front of ours.
        await _wait_for_agent(vm, console)


async def test_agent_answers_on_one_and_on_the_next_connection(guest: Guest) -> None:
    for _ in range(3):
        async with guest.vm.connect_agent(timeout_s=5) as agent:
            for _ in range(3):
                assert await agent.execute("guest-ping", timeout_s=5) == {}
    async with guest.vm.connect_agent(timeout_s=5) as agent:
        info = await agent.execute("guest-info", timeout_s=5)
    assert info["version"].startswith("7.2")


async def test_error_of_the_agent_keeps_its_class_and_text(guest: Guest) -> None:
    async with guest.vm.connect_agent(timeout_s=5) as agent:
        with pytest.raises(AgentCommandError) as caught:
            await agent.execute("guest-nonsense", timeout_s=5)
        assert caught.value.error_class == "CommandNotFound"
        assert caught.value.description == "The command guest-nonsense has not been found"
        assert await agent.execute("guest-ping", timeout_s=5) == {}


async def test_agent_that_was_asked_for_too_short_a_time_is_in_step_afterwards(
    guest: Guest,
) -> None:
    for _ in range(5):
        with pytest.raises(AgentUnreachable):
            async with guest.vm.connect_agent(timeout_s=0.001):
                pass
    assert await guest.ask("guest-fsfreeze-status") == "thawed"


async def test_frozen_file_system_takes_no_writes_until_it_is_thawed(guest: Guest) -> None:
    assert await guest.ask("guest-fsfreeze-freeze") == 1
    assert await guest.ask("guest-fsfreeze-status") == "frozen"
    # The host sees what the guest has written; a frozen ext4 stands still.
    first = guest.disk.read_bytes()
    await asyncio.sleep(0.7)
    assert guest.disk.read_bytes() == first
    assert await guest.ask("guest-fsfreeze-thaw") == 1
    assert await guest.ask("guest-fsfreeze-status") == "thawed"
    await _until_written(guest.disk, first)


async def test_frozen_agent_refuses_what_could_write(guest: Guest) -> None:
    await guest.ask("guest-fsfreeze-freeze")
    with pytest.raises(AgentCommandError):
        await guest.ask("guest-get-users")
    assert await guest.ask("guest-fsfreeze-thaw") == 1


async def _until_written(disk: Path, before: bytes) -> None:
    deadline_s = time.monotonic() + 20
    while disk.read_bytes() == before:
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.05)


@dataclass
class StandInJob:
    """A start whose point in time is a copy of the disk."""

    disk: Path
    error: JobError | None = None
    copies: list[bytes] = field(default_factory=list)

    async def start(self) -> str:
        self.copies.append(self.disk.read_bytes())
        if self.error is not None:
            raise self.error
        await asyncio.sleep(0.3)
        self.copies.append(self.disk.read_bytes())
        return "uuid"


async def _through_the_window(
    guest: Guest, job: StandInJob
) -> tuple[FreezeWindow, list[events.Event]]:
    heard: list[events.Event] = []
    ports = join_ports(guest.node, emit=heard.append, guarded=False)
    window = FreezeWindow(ports, guest.vm, lambda: wait_for_silence(None))
    async with ports.journals.open(100) as journal:
        undo = UndoStack(heard.append, journal, ports.clock)
        try:
            await window.start_frozen(job.start, undo)
        except JobError as error:
            assert error is job.error
        finally:
            await undo.unwind()
    return window, heard


async def test_window_holds_the_guest_still_and_lets_it_go(guest: Guest) -> None:
    job = StandInJob(guest.disk)
    window, heard = await _through_the_window(guest, job)
    assert window.consistency is Consistency.FROZEN
    assert job.copies[0] == job.copies[1]
    kinds = [type(event).__name__ for event in heard]
    assert kinds == ["FreezeIssued", "JobStartIssued", "ThawIssued", "FreezeWindowClosed"]
    assert window.freeze_window_s is not None
    assert 0.3 <= window.freeze_window_s < 5
    assert await guest.ask("guest-fsfreeze-status") == "thawed"
    await _until_written(guest.disk, job.copies[1])


async def test_window_around_a_failing_start_thaws_the_guest(guest: Guest) -> None:
    job = StandInJob(guest.disk, error=JobError("no"))
    _, heard = await _through_the_window(guest, job)
    assert [type(event).__name__ for event in heard][-1] == "FreezeWindowClosed"
    assert await guest.ask("guest-fsfreeze-status") == "thawed"
    await _until_written(guest.disk, job.copies[0])


async def test_cancelled_window_thaws_the_guest(guest: Guest) -> None:
    job = StandInJob(guest.disk)
    task = asyncio.create_task(_through_the_window(guest, job))
    while not job.copies:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await guest.ask("guest-fsfreeze-status") == "thawed"


async def test_guest_that_is_frozen_already_is_left_alone(guest: Guest) -> None:
    await guest.ask("guest-fsfreeze-freeze")
    job = StandInJob(guest.disk)
    window, heard = await _through_the_window(guest, job)
    assert window.freeze_window_s is None
    [skipped] = [event for event in heard if isinstance(event, events.FreezeSkipped)]
    assert skipped.reason is events.FreezeSkip.ALREADY_FROZEN
    assert await guest.ask("guest-fsfreeze-status") == "frozen"
    assert await guest.ask("guest-fsfreeze-thaw") == 1


async def test_copy_taken_in_the_window_is_a_clean_file_system(
    guest: Guest, tmp_path: Path
) -> None:
    job = StandInJob(guest.disk)
    await _through_the_window(guest, job)
    image = tmp_path / "copy.raw"
    image.write_bytes(job.copies[0])
    checker = await asyncio.create_subprocess_exec("/sbin/e2fsck", "-fn", str(image))
    assert await checker.wait() == 0


async def test_refused_backup_of_a_real_guest_never_froze_it(
    guest: Guest, real_lab: RealLab
) -> None:
    words = ("--root", real_lab.root, 100, "--data-path", "native")
    ended = await asyncio.to_thread(real_lab.tool, *words)
    assert ended.code == 255
    assert "has no 'backup' command" in ended.err
    assert "fs-freeze" not in ended.err
    assert await guest.ask("guest-fsfreeze-status") == "thawed"


async def test_guest_is_shut_down_by_its_agent(guest: Guest, real_lab: RealLab) -> None:
    await guest.vm.power.shut_down(timeout_s=60)
    assert real_lab.processes() == []
    assert list(real_lab.run_directory.iterdir()) == []
