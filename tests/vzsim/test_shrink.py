"""Shrinking keeps what violates and drops the rest."""

from __future__ import annotations

from dataclasses import replace

from click.testing import CliRunner

from vzsim.checkers import Violation
from vzsim.cli import main
from vzsim.explore import replay
from vzsim.faults import FaultScript
from vzsim.scenario import Budget, Scenario
from vzsim.shrink import shrink
from vzsim.simulation import simulate
from vzsim.system import load_system
from vzsim.token import Token
from vzsim.trial import Report

GOOD = "snapshot-running/4/agent.ping#1:error,files.write#1:eio"


def test_token_without_violation_comes_back_as_it_is() -> None:
    token = Token.parse(GOOD)
    smallest, report = shrink(token, replay)
    assert smallest == token
    assert report.violations == ()


def test_faults_that_do_not_matter_are_left_out() -> None:
    strict = Scenario(name="strict", about="a guest without patience", budget=Budget(run_s=-10.0))

    def run(token: Token) -> Report:
        return simulate(load_system(), strict, FaultScript.parse(token.script), token.seed)

    script = "agent.ping#1: error; storages.describe#2: stall 4s; node.read_firewall#1: error"
    token = Token(scenario="strict", seed=9, script=script)
    assert run(token).violations
    smallest, report = shrink(token, run)
    assert smallest.script == "" and smallest.seed == 1
    assert report.violations


def test_fault_that_matters_stays_in_its_simplest_form() -> None:
    patient = Scenario(name="patient", about="a slow freeze is a violation here")

    def run(token: Token) -> Report:
        report = simulate(load_system(), patient, FaultScript.parse(token.script), token.seed)
        slow = report.evidences[0].observed.frozen.longest_s > 3
        text = "frozen for more than three seconds"
        found = (Violation(checker="guest-freeze", text=text),) if slow else ()
        return replace(report, violations=found)

    script = "files.write#2: eio; agent.thaw#1: stall 40s; clock-back 3600s@store.exists#1"
    smallest, report = shrink(Token(scenario="patient", seed=5, script=script), run)
    assert smallest == Token(scenario="patient", seed=1, script="agent.thaw#1: stall")
    assert report.violations


def test_shrink_verb_prints_a_token_and_the_verdict() -> None:
    result = CliRunner().invoke(main, ["shrink", GOOD])
    assert result.output.splitlines()[0] == GOOD
    assert "no violation" in result.output and result.exit_code == 0
