"""Scenarios: their file form, and that every one that ships runs as it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vzdump_qemu.errors import ConfigError
from vzsim.evidence import Ending
from vzsim.faults import FaultScript
from vzsim.scenario import Scenario, choose_scenarios, load_scenarios, parse_scenario
from vzsim.simulation import simulate
from vzsim.system import load_system

SCENARIOS = load_scenarios()
ENDINGS = {"ok": Ending.OK, "killed": Ending.KILLED, "cancelled": Ending.CANCELLED}


def test_scenario_is_read_from_its_file_form() -> None:
    text = """
name = "x"
about = "y"
covers = [1, 2]
disks = [65536]
faults = "backup: error"
[options]
mode = "stop"
[agent]
state = "absent"
[budget]
frozen_s = 3.0
"""
    scenario = parse_scenario(text)
    assert scenario.covers == (1, 2) and scenario.disks == (65536,)
    assert scenario.options == {"mode": "stop"} and scenario.budget.frozen_s == 3.0
    assert scenario.faults.render() == "backup#1: error"


@pytest.mark.parametrize(
    "text",
    [
        "name = ",
        'name = "x"',
        'name = "x"\nabout = "y"\nodd = 1',
        'name = "x"\nabout = "y"\nstate = "odd"',
        'name = "x"\nabout = "y"\n[agent]\nodd = 1',
        'name = "x"\nabout = "y"\nfaults = "odd"',
        'name = "x"\nabout = "y"\ndialect = "odd"',
        'name = "x"\nabout = "y"\n[compressor]\nodd = 1',
        'name = "x"\nabout = "y"\n[[command]]\nerror = "no name"',
    ],
)
def test_bad_file_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_scenario(text)


def test_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no scenario 'nope'"):
        choose_scenarios("nope")
    assert [scenario.name for scenario in choose_scenarios("fleecing,locked")] == [
        "fleecing",
        "locked",
    ]


@pytest.mark.parametrize("name", sorted(each.name for each in choose_scenarios("")))
def test_scenario_that_ships_ends_as_it_says_and_violates_nothing(name: str) -> None:
    scenario: Scenario = SCENARIOS[name]
    report = simulate(load_system(), scenario, FaultScript(), 3)
    assert report.violations == ()
    wanted = Ending.FAILED if scenario.failing else ENDINGS.get(scenario.expect, Ending.FAILED)
    assert report.ending is wanted
    # What the scenario is about really happened.
    assert set(scenario.faults.faults) <= set(report.triggered)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"says": ("no such words",)}, "not told: 'no such words'"),
        ({"says_not": ("RunSucceeded",)}, "told: 'RunSucceeded'"),
    ],
)
def test_words_that_a_scenario_asks_for_are_held_against_the_log(
    change: dict[str, tuple[str, ...]], text: str
) -> None:
    scenario = replace(SCENARIOS["snapshot-running"], **change)
    report = simulate(load_system(), scenario, FaultScript(), 3)
    assert [(found.checker, found.text) for found in report.violations] == [("told", text)]


def test_run_that_fails_by_itself_is_followed_by_one_in_a_healed_world() -> None:
    report = simulate(load_system(), SCENARIOS["target-full"], FaultScript(), 3)
    assert [evidence.ending for evidence in report.evidences] == [Ending.FAILED, Ending.OK]
