"""Jobs over several VMs: two hundred with faults in a tenth, several at a time, cut, and judged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from vzdump_qemu.errors import ConfigError
from vzsim.batch.judging import BATCH_CHECKERS
from vzsim.batch.planes import split_script
from vzsim.batch.system import BatchPorts
from vzsim.evidence import Ending
from vzsim.explore import replay
from vzsim.faults import FaultScript, Kind, bare_site
from vzsim.run_lists import ExploreOptions, list_tokens
from vzsim.scenario import Scenario, load_scenarios
from vzsim.simulation import simulate
from vzsim.system import System, load_system
from vzsim.token import Token
from vzsim.trial import Report

SCENARIOS = load_scenarios()
BIG = SCENARIOS["batch-200"]
# A few VMs, for what does not depend on their number.
FEW = Scenario(name="few", about="four VMs", vm_count=4, disks=(131584,), older_archives=0)


def _run(scenario: Scenario, text: str = "", system: System | None = None) -> Report:
    return simulate(system or load_system(), scenario, FaultScript.parse(text), 1)


def _texts(report: Report) -> list[str]:
    return [violation.render() for violation in report.violations]


# -- two hundred -----------------------------------------------------------------------------------


def test_two_hundred_vms_with_faults_in_a_tenth_keep_every_guarantee() -> None:
    [token] = list_tokens(ExploreOptions(scenarios=("batch-200",), seed_count=1))
    unlucky = {fault.site.partition("/")[0] for fault in token.faults.faults}
    assert len(unlucky) == BIG.vm_count // 10
    report = replay(token)
    assert _texts(report) == []
    assert len(report.triggered) > 10
    first, second = report.batches
    assert len(first.results) == len(set(first.results)) == BIG.vm_count
    # Some of them failed, none but unlucky ones, and the summary and the message say which.
    assert first.ending is Ending.FAILED
    assert 0 < len(first.failed_vmids) <= len(unlucky)
    assert {f"vm{vmid}" for vmid in first.failed_vmids} <= unlucky
    [summary] = first.heard.summaries
    assert tuple(sorted(summary.failed_vmids)) == first.failed_vmids
    [notice] = first.heard.notices
    assert notice.subject == "vzdump backup status (node1): backup failed"
    assert all(f"\n{vmid} " in notice.text for vmid in first.vmids)
    assert first.heard.most_at_once == 8
    # Once the world is healed they are backed up as well.
    assert second.ending is Ending.OK and len(second.vmids) >= len(first.failed_vmids)


def test_eight_at_a_time_take_a_fraction_of_the_time() -> None:
    scenario = replace(BIG, vm_count=48)
    one_by_one = _run(replace(scenario, options={}))
    report = _run(scenario)
    assert _texts(one_by_one) == _texts(report) == []
    assert one_by_one.batches[0].heard.most_at_once == 1
    assert report.batches[0].heard.most_at_once == 8
    assert report.batches[0].duration_s < one_by_one.batches[0].duration_s / 5


# -- what a fault concerns -------------------------------------------------------------------------


def test_fault_of_one_vm_is_written_with_its_number() -> None:
    text = "vm117/backup#1: reply-lost; kill-tool@vm104/agent.thaw#1; clock.sleep#2: stall 4s"
    script = FaultScript.parse(text)
    assert script.render() == text
    token = Token(scenario="batch-small", seed=3, script=script.render())
    assert Token.parse(token.render()) == token
    split = split_script(script, (104, 117))
    assert {vmid: own.render() for vmid, own in split.items()} == {
        0: "clock.sleep#2: stall 4s",
        104: "kill-tool@agent.thaw#1",
        117: "backup#1: reply-lost",
    }
    assert bare_site("vm117/backup") == bare_site("backup") == "backup"


def test_fault_of_one_vm_fails_that_one_alone() -> None:
    report = _run(FEW, "vm102/node.set_vm_lock: error")
    assert _texts(report) == []
    batch = report.batches[0]
    assert batch.failed_vmids == (102,)
    assert "simulated failure at node.set_vm_lock#1" in batch.evidences[102].error
    assert [fault.render() for fault in report.triggered] == ["vm102/node.set_vm_lock#1: error"]
    assert report.batches[1].vmids == (102,)


@pytest.mark.parametrize("kind", [Kind.KILL_TOOL, Kind.CANCEL_TOOL, Kind.POWER_LOSS])
def test_what_ends_the_tool_concerns_every_vm(kind: Kind) -> None:
    scenario = replace(FEW, options={"max_parallel": 4})
    report = _run(scenario, f"{kind.value}@vm101/agent.thaw")
    assert _texts(report) == []
    batch = report.batches[0]
    assert all(evidence.met(kind) for evidence in batch.evidences.values())
    assert batch.ending is (Ending.CANCELLED if kind is Kind.CANCEL_TOOL else Ending.KILLED)
    assert report.batches[1].vmids == batch.vmids and report.batches[1].ending is Ending.OK


@pytest.mark.parametrize(
    ("name", "at_once", "reached_count"),
    [("batch-parallel-killed", 8, 8), ("batch-cancelled", 4, 8), ("batch-deadline", 4, 8)],
)
def test_job_that_is_cut_leaves_the_rest_untouched(
    name: str, at_once: int, reached_count: int
) -> None:
    report = _run(SCENARIOS[name])
    assert _texts(report) == []
    first, second = report.batches
    assert first.heard.most_at_once == at_once
    touched = [vmid for vmid, each in first.evidences.items() if each.observed.public_lines]
    assert touched == list(first.vmids[:reached_count])
    # Whoever runs the job again, in peace, gets them all.
    assert second.vmids == first.vmids or name == "batch-deadline"
    assert second.ending is Ending.OK


def test_same_job_twice_gives_the_same_log() -> None:
    text = "batch-parallel/4/vm101/backup#1:stall+40s,kill-tool@vm102/agent.thaw#1"
    first = replay(Token.parse(text)).log.render()
    assert first == replay(Token.parse(text)).log.render()
    assert "vm101/backup#1: stall 40s" in first


# -- the checkers can see --------------------------------------------------------------------------


@dataclass
class Spoiled:
    """The real engine, with something done to its ports before or to its outcome after."""

    ports: Callable[[BatchPorts], BatchPorts] = lambda ports: ports
    options: Mapping[str, Any] | None = None
    outcome: Callable[[Any], Any] = lambda outcome: outcome
    after: Callable[[BatchPorts], Any] | None = None

    async def back_up(self, ports: Any, options: Mapping[str, Any]) -> Any:
        raise AssertionError("only jobs are made here")

    async def recover(self, ports: Any, vmid: int) -> bool:
        return await load_system().recover(ports, vmid)

    async def back_up_all(
        self, ports: BatchPorts, options: Mapping[str, Any], vmids: Sequence[int]
    ) -> Any:
        system: Any = load_system()
        outcome = await system.back_up_all(
            self.ports(ports), {**options, **(self.options or {})}, vmids
        )
        if self.after is not None:
            await self.after(ports)
        return self.outcome(outcome)


def _twice(outcome: Any) -> Any:
    return SimpleNamespace(error="", runs=(*outcome.runs, outcome.runs[0]))


def _one_less(outcome: Any) -> Any:
    return SimpleNamespace(error="", runs=outcome.runs[1:])


def _fails_another(outcome: Any) -> Any:
    spoiled = replace(outcome.runs[1], error="out of sorts", archive_path="")
    return SimpleNamespace(error="", runs=(outcome.runs[0], spoiled, *outcome.runs[2:]))


def _mute(ports: BatchPorts) -> BatchPorts:
    return replace(ports, tell_summary=lambda vmids, error: None)


def _blames_another(ports: BatchPorts) -> BatchPorts:
    return replace(ports, tell_summary=lambda vmids, error: ports.tell_summary((101,), error))


def _sends_nothing(ports: BatchPorts) -> BatchPorts:
    return replace(ports, send=lambda subject, text, failed: None)


def _sends_twice(ports: BatchPorts) -> BatchPorts:
    def send(subject: str, text: str, failed: bool) -> None:
        ports.send(subject, text, failed)
        ports.send(subject, text, failed)

    return replace(ports, send=send)


def _sends_good_news(ports: BatchPorts) -> BatchPorts:
    return replace(
        ports,
        send=lambda subject, text, failed: ports.send(
            subject, text.replace(" ok ", " err "), failed
        ),
    )


def _tells_ends_twice(ports: BatchPorts) -> BatchPorts:
    def tell(vmid: int, good: bool) -> None:
        ports.tell_end_of_run(vmid, good)
        ports.tell_end_of_run(vmid, good)

    return replace(ports, tell_end_of_run=tell)


async def _leaves_a_file(ports: BatchPorts) -> None:
    await ports.store.write_file("/var/tmp/left", b"x")


async def _tells_a_secret(ports: BatchPorts) -> None:
    ports.tell("password is hunter2hunter2")


async def _locks_a_vm(ports: BatchPorts) -> None:
    await ports.node.set_vm_lock(103)


async def _freezes_a_guest(ports: BatchPorts) -> None:
    async with ports.node.machine(102).connect_agent(timeout_s=5) as agent:
        await agent.execute("guest-fsfreeze-freeze", timeout_s=5)


async def _halts_a_guest(ports: BatchPorts) -> None:
    await ports.node.machine(102).power.suspend()


async def _writes_a_bad_archive(ports: BatchPorts) -> None:
    path = "/var/lib/vz/dump/vzdump-qemu-102-2026_01_02-03_04_59.vma.zst"
    await ports.store.write_file(path, b"VMA\0 not")


@pytest.mark.parametrize(
    ("system", "checker"),
    [
        (Spoiled(after=_freezes_a_guest), "guest-freeze"),
        (Spoiled(after=_halts_a_guest), "power-state"),
        (Spoiled(after=_writes_a_bad_archive), "archive-whole"),
        (Spoiled(outcome=_twice), "batch-results"),
        (Spoiled(outcome=_one_less), "batch-results"),
        (Spoiled(outcome=_fails_another), "batch-independence"),
        (Spoiled(outcome=_fails_another), "batch-ends"),
        (Spoiled(ports=_mute), "batch-summary"),
        (Spoiled(ports=_blames_another), "batch-summary"),
        (Spoiled(ports=_sends_nothing), "batch-notice"),
        (Spoiled(ports=_sends_twice), "batch-notice"),
        (Spoiled(ports=_sends_good_news), "batch-notice"),
        (Spoiled(ports=_tells_ends_twice), "batch-ends"),
        (Spoiled(options={"max_parallel": 3}), "batch-crowd"),
        (Spoiled(after=_leaves_a_file), "batch-strays"),
        (Spoiled(after=_tells_a_secret), "batch-secrets"),
        (Spoiled(after=_locks_a_vm), "left-overs"),
    ],
)
def test_bad_habit_is_found_by_its_checker(system: System, checker: str) -> None:
    assert checker in {text.partition(":")[0] for text in _texts(_run(FEW, system=system))}


def test_job_that_does_not_end_as_its_scenario_says_is_seen() -> None:
    report = _run(replace(FEW, failing={"102": "no such thing"}))
    assert {violation.checker for violation in report.violations} == {
        "batch-ending",
        "first-cause",
    }
    assert set(BATCH_CHECKERS) >= {"batch-ending", "batch-results"}


def test_system_that_waits_for_ever_is_seen() -> None:
    async def wait(ports: BatchPorts) -> None:
        await asyncio.get_running_loop().create_future()

    texts = _texts(_run(replace(FEW, heals=False), system=Spoiled(after=wait)))
    assert any(text.startswith("bounded-waits: ") for text in texts)


def test_system_for_one_vm_only_is_refused() -> None:
    class Single:
        async def back_up(self, ports: Any, options: Mapping[str, Any]) -> Any:
            raise AssertionError("no job is begun")

        async def recover(self, ports: Any, vmid: int) -> bool:
            raise AssertionError("no job is begun")

    with pytest.raises(ConfigError, match="does not back up several VMs"):
        _run(FEW, system=Single())
