"""Exploring: which runs are made, what is summed up, and the command line around it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from vzdump_qemu.errors import ConfigError
from vzsim.cli import main
from vzsim.explore import explore, first_tokens
from vzsim.explore_table import render_tally
from vzsim.run_lists import ExploreOptions, list_tokens
from vzsim.system import load_system
from vzsim.token import Token


def test_seeds_go_round_the_scenarios_and_repeat_themselves() -> None:
    options = ExploreOptions(scenarios=("no-disks", "locked"), seed_count=6, with_kills=False)
    tokens = list(list_tokens(options))
    assert [token.seed for token in tokens] == [1, 2, 3, 4, 5, 6]
    assert {token.scenario for token in tokens} == {"no-disks", "locked"}
    assert tokens == list(list_tokens(options))


def test_exhaustive_list_has_every_fault_at_every_site_once() -> None:
    options = ExploreOptions(scenarios=("no-disks",), seed_count=0, exhaustive=1)
    tokens = list(list_tokens(options))
    assert len(tokens) == len(set(tokens)) > 150
    assert tokens[0].script == ""
    text = " ".join(token.script for token in tokens)
    for part in ("files.rename#1: eio", "kill-tool@intake.publish#1", "node.set_vm_lock#1: error"):
        assert part in text


def test_every_single_fault_on_a_vm_without_disks_violates_nothing() -> None:
    tally = explore(ExploreOptions(scenarios=("no-disks",), seed_count=0, exhaustive=1))
    assert tally.run_count > 150 and tally.backup_count > 1.5 * tally.run_count
    assert tally.violations == []
    text = render_tally(tally)
    assert "faults injected" in text and "sites never hit" in text


def test_time_limit_ends_an_exploration(tmp_path: Path) -> None:
    options = ExploreOptions(
        scenarios=("locked",), seed_count=100_000, time_limit_s=0.5, log_directory=str(tmp_path)
    )
    tally = explore(options)
    assert 0 < tally.run_count < 100_000
    logs = sorted(tmp_path.iterdir())
    assert len(logs) == tally.run_count
    assert logs[0].read_text().startswith("# locked/")


def test_alike_violations_are_grouped_under_the_shortest_token() -> None:
    long = Token(scenario="a", seed=1, script="x#1: error; y#1: error")
    short = Token(scenario="a", seed=9, script="y#1: error")
    groups = first_tokens([(long, "left 3 s"), (short, "left 5 s"), (long, "other")])
    assert groups == [(2, short, "left 5 s"), (1, long, "other")]


@pytest.mark.slow
def test_explore_verb_spreads_over_processes_and_ends_with_a_table() -> None:
    arguments = ["explore", "--scenarios", "locked,no-disks", "--seeds", "40", "--jobs", "2"]
    result = CliRunner().invoke(main, arguments)
    assert "runs                40" in result.output
    assert result.exit_code == (0 if "violations: 0" in result.output else 1)


def test_unknown_system_and_scenario_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="no system 'nope'"):
        load_system("nope")
    result = CliRunner().invoke(main, ["explore", "--scenarios", "nope"])
    assert result.exit_code == 1 and "no scenario 'nope'" in result.output
