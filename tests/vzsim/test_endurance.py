"""Checkers of what a run bears, in which order it lets go, and what it says: on bent evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from vzsim.checkers import judge
from vzsim.evidence import Ending, Evidence
from vzsim.faults import FaultScript
from vzsim.scenario import Scenario
from vzsim.simulation import simulate
from vzsim.system import load_system

PLAIN = Scenario(name="plain", about="one running VM")


@pytest.fixture
def evidence() -> Evidence:
    return simulate(load_system(), PLAIN, FaultScript(), 1).evidences[0]


def _found(evidence: Evidence, text: str, **changes: Any) -> set[str]:
    faults = FaultScript.parse(text).faults
    bent = replace(evidence, triggered=faults, rest=replace(evidence.rest, files={}), **changes)
    bent = replace(bent, older={})
    return {violation.checker for violation in judge(bent)} - {"first-cause"}


@pytest.mark.parametrize(
    "text",
    [
        "agent.freeze#1: error",
        "agent.thaw#2: agent-dies 30s",
        "cont#1: reply-lost",
        "query-backup#2: closed-after",
        "query-status#1: stall 4s",
        "qmp.connect#3: other-client 40s",
        "guest-resets@backup#1",
        "machine.keep_alive#1: error",
    ],
)
def test_run_that_fails_for_a_small_trouble_is_seen(evidence: Evidence, text: str) -> None:
    assert _found(evidence, text, ending=Ending.FAILED, error="no") == {"endurance"}


@pytest.mark.parametrize(
    "text",
    [
        "backup#1: error",
        "query-backup#2: qemu-dies-after",
        "qmp.connect#3: other-client 700s",
        "query-status#1: stall 40s",
        "agent.freeze#1: error; backup#1: error",
        "guest-powers-off@journals.open#1",
    ],
)
def test_run_that_fails_for_a_reason_is_not_blamed(evidence: Evidence, text: str) -> None:
    evidence.observed.guest_went_off = "powers-off" in text
    evidence.observed.halted.longest_s = 0.0
    assert _found(evidence, text, ending=Ending.FAILED, error="no") == set()


def test_guest_that_goes_off_in_the_job_is_no_reason_to_fail(evidence: Evidence) -> None:
    evidence.observed.guest_went_off = evidence.observed.went_off_in_job = True
    text = "guest-powers-off@query-backup#2"
    assert _found(evidence, text, ending=Ending.FAILED, error="no") == {"endurance"}


def _unlock_early(evidence: Evidence) -> dict[str, Any]:
    evidence.observed.unlocked_acts.append("blockdev-del")
    return {}


def _pause(evidence: Evidence) -> dict[str, Any]:
    evidence.observed.operator_paused = True
    return {}


@pytest.mark.parametrize(
    ("bend", "text", "checker"),
    [
        (_unlock_early, "backup#1: error", "foreign-things"),
        (_pause, "pause-vm@query-status#1", "power-state"),
        (lambda evidence: {"job_at_end": "backup"}, "", "left-overs"),
    ],
)
def test_disorder_is_seen_by_its_checker(
    evidence: Evidence, bend: Callable[[Evidence], dict[str, Any]], text: str, checker: str
) -> None:
    changes = bend(evidence)
    assert checker in _found(evidence, text, ending=Ending.FAILED, error="no", **changes)


def test_command_that_qemu_reads_late_is_not_blamed_on_the_tool(evidence: Evidence) -> None:
    evidence.observed.unlocked_acts.append("backup")
    text = "backup#1: stall 700s"
    assert _found(evidence, text, ending=Ending.FAILED, error="no") == set()


def test_word_before_the_signal_is_held_against_the_names(evidence: Evidence) -> None:
    script = FaultScript.parse("cancel-tool@intake.publish#1").faults
    named = replace(evidence, triggered=script, ending=Ending.CANCELLED, told_good=True)
    assert judge(named) == []
    unnamed = replace(named, rest=replace(named.rest, files={}), older={})
    for bent in (replace(named, told_good=False), unnamed):
        assert [violation.checker for violation in judge(bent)] == ["archive-whole"]


@pytest.mark.parametrize(
    ("text", "checkers"),
    [("backup#1: error", {"foreign-things"}), ("lock-cleared@backup#1", set())],
)
def test_foreign_lock_may_only_vanish_by_its_operator(
    evidence: Evidence, text: str, checkers: set[str]
) -> None:
    scenario = replace(PLAIN, lock="migrate", expect="no")
    found = _found(evidence, text, ending=Ending.FAILED, error="no", scenario=scenario)
    assert found == checkers
