"""Scenarios: their file form, and that every one that ships runs as it says."""

from __future__ import annotations

import pytest

from vzdump_qemu.errors import ConfigError
from vzsim.evidence import Ending
from vzsim.faults import FaultScript
from vzsim.scenario import Scenario, choose_scenarios, load_scenarios, parse_scenario
from vzsim.simulation import load_system, simulate

SCENARIOS = load_scenarios()


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


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_scenario_that_ships_ends_as_it_says_and_violates_nothing(name: str) -> None:
    scenario: Scenario = SCENARIOS[name]
    report = simulate(load_system(), scenario, FaultScript(), 3)
    assert report.violations == ()
    expected = Ending.OK if scenario.expect == "ok" else Ending.FAILED
    assert report.evidences[0].ending is expected
    assert all(1 <= number <= 98 for number in scenario.covers)
