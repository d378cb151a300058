"""The checkers can see: a system under test with one bad habit each is found out by its own one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from vzdump_qemu.simulated import SimulatedOutcome
from vzsim import checkers
from vzsim.checkers import CHECKERS, judge
from vzsim.evidence import Ending, Evidence, Observed, Rest
from vzsim.faults import FaultScript
from vzsim.scenario import Scenario
from vzsim.scene import SECRET
from vzsim.simulation import simulate
from vzsim.system import System, SystemPorts, load_system

PLAIN = Scenario(name="plain", about="one running VM")


@dataclass
class Spoiled:
    """The real engine, with something done to its world before or after its backup."""

    before: Callable[[SystemPorts], Any] | None = None
    after: Callable[[SystemPorts], Any] | None = None
    lies_frozen: bool = False

    async def back_up(self, ports: SystemPorts, options: Mapping[str, Any]) -> Any:
        if self.before is not None:
            await self.before(ports)
        outcome = await load_system().back_up(ports, options)
        if self.after is not None:
            await self.after(ports)
        if self.lies_frozen:
            return SimulatedOutcome(
                error=outcome.error, archive_path=outcome.archive_path, says_frozen=True
            )
        return outcome

    async def recover(self, ports: SystemPorts, vmid: int) -> bool:
        return await load_system().recover(ports, vmid)


def _violated(system: System, scenario: Scenario = PLAIN, text: str = "") -> set[str]:
    report = simulate(system, scenario, FaultScript.parse(text), 1)
    return {violation.checker for violation in report.violations}


async def _freeze(ports: SystemPorts) -> None:
    async with ports.node.machine(100).connect_agent(timeout_s=5) as agent:
        await agent.execute("guest-fsfreeze-freeze", timeout_s=5)


async def _freeze_long(ports: SystemPorts) -> None:
    await _freeze(ports)
    await ports.clock.sleep(60)
    async with ports.node.machine(100).connect_agent(timeout_s=5) as agent:
        await agent.execute("guest-fsfreeze-thaw", timeout_s=5)


async def _suspend(ports: SystemPorts) -> None:
    await ports.node.machine(100).power.suspend()


async def _suspend_long(ports: SystemPorts) -> None:
    await ports.node.machine(100).power.suspend()
    await ports.clock.sleep(5)
    await ports.node.machine(100).power.resume()


async def _lock(ports: SystemPorts) -> None:
    await ports.node.set_vm_lock(100)


async def _leave_file(ports: SystemPorts) -> None:
    await ports.store.write_file("/var/tmp/left", b"x")


async def _tell_secret(ports: SystemPorts) -> None:
    ports.tell(f"password is {SECRET}")


async def _sleep_for_a_day(ports: SystemPorts) -> None:
    await ports.clock.sleep(100_000)


async def _sleep_for_hours(ports: SystemPorts) -> None:
    await ports.clock.sleep(10_000)


async def _wait_for_ever(ports: SystemPorts) -> None:
    await asyncio.get_running_loop().create_future()


async def _crash(ports: SystemPorts) -> None:
    raise ZeroDivisionError("a bug")


async def _give_up(ports: SystemPorts) -> None:
    raise asyncio.CancelledError


async def _remove_older(ports: SystemPorts) -> None:
    path = "/var/lib/vz/dump/vzdump-qemu-100-2025_12_01-03_04_05.vma.zst"
    await ports.store.remove_file(path)


async def _write_bad_archive(ports: SystemPorts) -> None:
    await ports.store.write_file("/var/lib/vz/dump/vzdump-qemu-100-x.vma.zst", b"VMA\0 not")


@pytest.mark.parametrize(
    ("system", "checker"),
    [
        (Spoiled(after=_freeze), "guest-freeze"),
        (Spoiled(after=_freeze_long), "guest-freeze"),
        (Spoiled(after=_suspend), "power-state"),
        (Spoiled(after=_suspend_long), "power-state"),
        (Spoiled(after=_lock), "left-overs"),
        (Spoiled(after=_leave_file), "left-overs"),
        (Spoiled(after=_tell_secret), "secrets"),
        (Spoiled(before=_sleep_for_a_day), "bounded-waits"),
        (Spoiled(before=_sleep_for_hours), "bounded-waits"),
        (Spoiled(before=_wait_for_ever), "bounded-waits"),
        (Spoiled(before=_crash), "bounded-waits"),
        (Spoiled(before=_give_up), "first-cause"),
        (Spoiled(after=_remove_older), "older-archives"),
        (Spoiled(after=_write_bad_archive), "archive-whole"),
    ],
)
def test_bad_habit_is_found_by_its_checker(system: System, checker: str) -> None:
    assert checker in _violated(system)


def test_said_consistency_is_held_against_the_guest() -> None:
    scenario = replace(PLAIN, has_agent=False)
    found = _violated(Spoiled(lies_frozen=True), scenario)
    assert found == {"archive-whole", "guest-consistency"}


def test_next_run_that_fails_after_healing_is_seen() -> None:
    @dataclass
    class Sulking:
        hurt: bool = False

        async def back_up(self, ports: SystemPorts, options: Mapping[str, Any]) -> Any:
            if self.hurt:
                return SimulatedOutcome(error="no more", archive_path="", says_frozen=False)
            outcome = await load_system().back_up(ports, options)
            self.hurt = bool(outcome.error)
            return outcome

        async def recover(self, ports: SystemPorts, vmid: int) -> bool:
            return True

    assert _violated(Sulking(), text="node.read_vm_config: error") == {"next-run"}


def test_foreign_lock_that_vanishes_is_seen() -> None:
    @dataclass
    class Thief:
        async def back_up(self, ports: SystemPorts, options: Mapping[str, Any]) -> Any:
            scene_node = ports.node._inner  # type: ignore[attr-defined]
            scene_node.configs[100] = scene_node.configs[100].partition(b"\n")[2]
            return await load_system().back_up(ports, options)

        async def recover(self, ports: SystemPorts, vmid: int) -> bool:
            return True

    scenario = replace(PLAIN, lock="migrate", expect="VM is locked")
    assert "foreign-things" in _violated(Thief(), scenario)


def _evidence() -> Evidence:
    rest = Rest(
        files={},
        directories=("/",),
        lock="",
        foreign_lock="",
        open_descriptor_count=0,
        live_compressor_count=0,
        alive_handle_count=0,
        run_state="running",
        is_frozen=False,
        can_thaw=True,
        active_job="",
        extra_nodes=(),
        extra_images=(),
        recorded_fleecing=(),
        journalled=(),
        stdout=b"",
    )
    return Evidence(
        scenario=replace(PLAIN, options={"stdout": True}, expect="no"),
        attempt_index=0,
        triggered=(),
        ending=Ending.FAILED,
        error="no",
        archive_path="",
        says_frozen=False,
        duration_s=1.0,
        allowance_s=0.0,
        observed=Observed(),
        rest=rest,
        points_in_time={},
        local_spans=(),
        older={},
        secret=SECRET,
    )


def test_quiet_world_violates_nothing() -> None:
    assert judge(_evidence()) == []


@pytest.mark.parametrize(
    ("change", "checker"),
    [
        ({"active_job": "backup"}, "left-overs"),
        ({"open_descriptor_count": 1}, "left-overs"),
        ({"live_compressor_count": 1}, "left-overs"),
        ({"alive_handle_count": 1}, "left-overs"),
        ({"extra_nodes": ("x",)}, "left-overs"),
        ({"extra_images": ("x",)}, "left-overs"),
        ({"recorded_fleecing": ("x",)}, "left-overs"),
        ({"journalled": ("unlock",)}, "left-overs"),
        ({"directories": ("/x.tmp",)}, "left-overs"),
        ({"is_frozen": True}, "guest-freeze"),
        ({"run_state": "prelaunch"}, "power-state"),
        ({"run_state": ""}, "power-state"),
    ],
)
def test_thing_left_at_rest_is_seen(change: dict[str, Any], checker: str) -> None:
    evidence = _evidence()
    found = judge(replace(evidence, rest=replace(evidence.rest, **change)))
    assert [violation.checker for violation in found] == [checker]


def test_failed_and_slow_guest_writes_are_seen() -> None:
    evidence = _evidence()
    evidence.observed.writes.failed_count = 1
    evidence.observed.writes.longest_s = 30.0
    evidence.observed.writes.pending_since_s = 3.0
    assert [violation.checker for violation in judge(evidence)] == ["guest-writes"] * 3


def test_guest_that_finds_its_disks_damaged_is_seen() -> None:
    evidence = _evidence()
    evidence.observed.writes.damage.append("page 3 of disk 0 is torn")
    assert [violation.checker for violation in judge(evidence)] == ["guest-consistency"]


def test_archive_without_a_transaction_that_was_flushed_is_seen() -> None:
    report = simulate(load_system(), PLAIN, FaultScript(), 1)
    evidence = report.evidences[0]
    mark = evidence.observed.guest_mark
    assert mark is not None and evidence.says_frozen and judge(evidence) == []
    newer = replace(mark, acknowledged_seq=mark.acknowledged_seq + 1)
    evidence.observed.guest_mark = newer
    assert [violation.checker for violation in judge(evidence)] == ["guest-consistency"]


@pytest.mark.parametrize(
    ("seen", "state", "mode", "wanted"),
    [
        ({"power_was_lost": True}, "", "snapshot", True),
        ({"power_was_lost": True}, "running", "snapshot", False),
        ({"power_was_lost": True}, "running", "stop", False),
        ({"power_was_lost": True, "operator_started": True}, "running", "stop", True),
        ({"operator_stopped": True}, "", "snapshot", True),
        ({"operator_stopped": True}, "running", "snapshot", False),
        ({"operator_stopped": True}, "running", "stop", True),
        ({"guest_panicked": True}, "guest-panicked", "snapshot", True),
        ({"guest_slept": True}, "suspended", "snapshot", True),
        ({}, "suspended", "snapshot", False),
    ],
)
def test_power_state_follows_what_operators_guests_and_power_losses_did(
    seen: dict[str, Any], state: str, mode: str, *, wanted: bool
) -> None:
    evidence = _evidence()
    evidence = replace(
        evidence,
        scenario=replace(evidence.scenario, options={"stdout": True, "mode": mode}),
        observed=Observed(**seen),
        rest=replace(evidence.rest, run_state=state),
    )
    found = [violation.checker for violation in judge(evidence)]
    assert found == ([] if wanted else ["power-state"])


def test_power_loss_takes_back_what_was_done_before_it() -> None:
    observed = Observed(operator_paused=True, operator_stopped=True, guest_slept=True)
    observed.lose_power()
    assert observed == Observed(power_was_lost=True)


@pytest.mark.parametrize(
    ("name", "is_wrong"),
    [
        ("2026_01_02-03_04_05", False),
        ("2026_01_02-02_10_00", False),
        ("2026_01_02-03_04_09", True),
        ("2025_01_02-03_04_05", True),
    ],
)
def test_archive_named_after_a_time_that_never_was_is_seen(name: str, *, is_wrong: bool) -> None:
    evidence = _evidence()
    path = f"/var/lib/vz/dump/vzdump-qemu-100-{name}.vma.zst"
    spans = (
        (datetime(2026, 1, 2, 3, 4, 5, 500_000), datetime(2026, 1, 2, 3, 4, 8)),
        (datetime(2026, 1, 2, 2, 4, 8), datetime(2026, 1, 2, 2, 40, 0)),
    )
    evidence = replace(
        evidence, local_spans=spans, rest=replace(evidence.rest, files={path: b"VMA"})
    )
    assert bool(CHECKERS["clock-sense"](evidence)) is is_wrong


@pytest.mark.parametrize(("length", "is_wrong"), [("0.5", False), ("-3600", True), ("3601", True)])
def test_length_taken_from_a_clock_that_jumped_is_seen(length: str, *, is_wrong: bool) -> None:
    evidence = _evidence()
    evidence.observed.public_lines.append(f"RunFailed(vmid=100, duration_s={length})")
    assert bool(CHECKERS["clock-sense"](evidence)) is is_wrong


def test_second_run_that_is_not_refused_is_seen() -> None:
    @dataclass
    class Careless:
        """A tool that keeps no lock against itself."""

        run_count: int = 0

        async def back_up(self, ports: SystemPorts, options: Mapping[str, Any]) -> Any:
            self.run_count += 1
            if self.run_count == 2:
                return SimulatedOutcome(error="", archive_path="", says_frozen=False)
            return await load_system().back_up(ports, options)

        async def recover(self, ports: SystemPorts, vmid: int) -> bool:
            return True

    assert "foreign-things" in _violated(Careless(), text="second-run@clock.sleep#1")
    assert _violated(load_system(), text="second-run@clock.sleep#1") == set()


def test_every_guarantee_has_a_checker() -> None:
    assert {path.stem for path in Path(checkers.__file__).parent.glob("[a-z]*.py")} == {
        name.replace("-", "_") for name in CHECKERS
    }
