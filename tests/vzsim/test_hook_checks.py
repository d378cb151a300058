"""Hook scripts and removal by a rule, judged: what a run did wrong with them is seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from vzsim.evidence import Ending
from vzsim.faults import FaultScript
from vzsim.scenario import load_scenarios
from vzsim.simulation import simulate
from vzsim.system import System, SystemPorts, load_system
from vzsim.trial import Report

SCENARIOS = load_scenarios()
SCRIPT = "/usr/local/bin/hook"
OLDEST = "/var/lib/vz/dump/vzdump-qemu-100-2025_12_01-03_04_05.vma.zst"


def _run(name: str, text: str = "", system: System | None = None) -> Report:
    scenario = SCENARIOS[name]
    return simulate(system or load_system(), scenario, FaultScript.parse(text), 1)


def _phases(report: Report) -> list[str]:
    return [call.phase for call in report.evidences[0].hook_calls]


@pytest.mark.parametrize("mode", ["snapshot", "stop", "suspend"])
@pytest.mark.parametrize("kind", ["exits", "killed", "hangs", "slow 30s"])
def test_script_that_misbehaves_in_any_phase_keeps_every_guarantee(mode: str, kind: str) -> None:
    phases = _phases(_run(f"hook-{mode}"))
    assert len(phases) == len(set(phases)) == 9
    for phase in phases:
        report = _run(f"hook-{mode}", f"hook.{phase}: {kind}")
        assert [violation.render() for violation in report.violations] == []
        assert len(report.triggered) == 1


@pytest.mark.parametrize(
    ("phase", "archive_count"), [("backup-start", 0), ("pre-stop", 0), ("backup-end", 1)]
)
def test_hanging_script_is_ended_and_fails_its_run(phase: str, archive_count: int) -> None:
    report = _run("hook-stop", f"hook.{phase}: hangs")
    evidence = report.evidences[0]
    assert evidence.ending is Ending.FAILED
    assert evidence.error.endswith(f"{phase} stop 100' failed: got timeout")
    # An archive that is complete stays, though its run counts as failed.
    assert len(evidence.new_archives()) == archive_count
    [call] = [call for call in evidence.hook_calls if call.phase == phase]
    assert 1199 < call.lasted_s < 1201
    assert evidence.rest.run_state == "running"


def test_guest_that_stands_still_waits_five_minutes_for_a_hanging_script() -> None:
    evidence = _run("hook-hangs-halted").evidences[0]
    [call] = [call for call in evidence.hook_calls if call.phase == "pre-restart"]
    assert call.guest_stood and 299 < call.lasted_s < 301
    assert 299 < evidence.observed.halted.longest_s < 310


@dataclass
class _Spoiled:
    """The real engine with other options, or with a call of the script or a removal besides."""

    options: Mapping[str, Any] | None = None
    calls_before: Sequence[str] = ()
    calls_after: Sequence[str] = ()
    removes: str = ""
    puts_back: bool = False

    async def back_up(self, ports: SystemPorts, options: Mapping[str, Any]) -> Any:
        for phase in self.calls_before:
            await ports.hooks.run((SCRIPT, phase), environment={"PATH": "/bin"})
        if self.removes:
            await ports.store.remove_file(self.removes)
        outcome = await load_system().back_up(ports, {**options, **(self.options or {})})
        for phase in self.calls_after:
            await ports.hooks.run((SCRIPT, phase))
        if self.puts_back:
            await ports.store.write_file(OLDEST.replace("_01-", "_02-"), b"older archive 1")
        return outcome

    async def recover(self, ports: SystemPorts, vmid: int) -> bool:
        return await load_system().recover(ports, vmid)


@pytest.mark.parametrize(
    ("system", "text"),
    [
        (_Spoiled(options={"script": ""}), "backup-start was not called"),
        (_Spoiled(calls_before=("job-end",)), "phases out of order"),
        (_Spoiled(calls_after=("log-end",)), "phases out of order"),
        (_Spoiled(calls_after=("odd",)), "odd is none of this run's phases"),
        (_Spoiled(calls_before=("job-init",)), "job-init is given PATH"),
    ],
)
def test_script_that_is_called_wrongly_is_seen(system: System, text: str) -> None:
    report = _run("hook-snapshot", system=system)
    assert any(
        violation.checker == "hooks" and text in violation.text for violation in report.violations
    )


def test_script_that_is_given_too_much_time_is_seen() -> None:
    patient = _Spoiled(options={"script_timeout_s": 5000.0})
    report = _run("hook-snapshot", "hook.backup-start: hangs", patient)
    assert "backup-start was given 5000 s, limit 1200 s" in {v.text for v in report.violations}


def test_rule_removes_what_it_may_and_nothing_else() -> None:
    report = _run("retention")
    assert report.violations == ()
    gone = set(report.evidences[0].older) - set(report.evidences[0].rest.files)
    # Three older ones, of which the first is protected; two stay, the new one among them.
    assert gone == {OLDEST.replace("_01-", "_02-")}


@pytest.mark.parametrize(
    ("system", "checker"),
    [
        (_Spoiled(removes=OLDEST), "older-archives"),
        (_Spoiled(removes=f"{OLDEST}.protected"), "older-archives"),
        (_Spoiled(options={"keep_last": 1}), "older-archives"),
        (_Spoiled(options={"keep_last": 5}), "retention"),
        (_Spoiled(puts_back=True), "retention"),
    ],
)
def test_removal_against_the_rule_is_seen(system: System, checker: str) -> None:
    report = _run("retention", system=system)
    assert checker in {violation.checker for violation in report.violations}


def test_removal_before_the_new_archive_is_proved_is_seen() -> None:
    hasty = _Spoiled(removes=OLDEST.replace("_01-", "_02-"))
    report = simulate(
        hasty, replace(SCENARIOS["retention"], heals=False), FaultScript.parse("backup: error"), 1
    )
    assert "older-archives" in {violation.checker for violation in report.violations}
