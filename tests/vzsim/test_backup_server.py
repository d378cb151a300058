"""The backup server of a simulated world: its life, what operators do, and what checkers see."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vzsim.evidence import Ending
from vzsim.faults import FaultScript
from vzsim.scenario import Scenario, load_scenarios
from vzsim.simulation import simulate
from vzsim.system import load_system
from vzsim.trial import Report

SCENARIOS = load_scenarios()
SITES = {
    "pbs.connect", "pbs.status", "pbs.begin", "pbs.previous", "pbs.fixed_index", "pbs.blob",
    "pbs.fixed_chunk", "pbs.append", "pbs.fixed_close", "pbs.finish",
}  # fmt: skip


def _play(scenario: Scenario | str, script: str = "", seed: int = 0) -> Report:
    world = SCENARIOS[scenario] if isinstance(scenario, str) else scenario
    return simulate(load_system(), world, FaultScript.parse(script), seed)


def _assert_kept(report: Report) -> None:
    assert [violation.render() for violation in report.violations] == []


def test_every_request_of_a_backup_is_a_site() -> None:
    report = _play("pull-pbs")
    _assert_kept(report)
    assert set(report.visit_counts) >= SITES


def test_second_backup_sends_only_what_changed() -> None:
    still = replace(SCENARIOS["pull-pbs-second"], guest_writes_per_s=0.0)
    report = _play(still)
    _assert_kept(report)
    assert report.visit_counts["pbs.previous"] == 3
    assert not {"pbs.fixed_chunk", "pbs.append"} & set(report.visit_counts)


@pytest.mark.parametrize("seed", range(3))
def test_write_through_a_node_over_another_is_marked_in_the_bitmaps_below(seed: int) -> None:
    """A guest writes while its filter is only passed through: the increment has that too."""
    _assert_kept(_play("pull-pbs-second", seed=seed))


@pytest.mark.parametrize(
    ("script", "ending"),
    [
        ("pbs.fixed_close#1: server-dies-after 2s", Ending.FAILED),
        ("pbs.finish#1: closed-after", Ending.OK),
        ("pbs.finish#1: server-dies 700s", Ending.FAILED),
        ("pbs.previous#1: error", Ending.OK),
        ("pbs.append#1: reply-lost", Ending.FAILED),
        ("pbs.connect#2: refused", Ending.OK),
        ("cancel-tool@pbs.fixed_chunk#1", Ending.CANCELLED),
        ("kill-tool-after@pbs.finish#1", Ending.KILLED),
        ("power-loss@pbs.append#1", Ending.KILLED),
        ("qemu-dies@pbs.fixed_chunk#2", Ending.FAILED),
    ],
)
def test_fault_at_the_server_leaves_every_guarantee(script: str, ending: Ending) -> None:
    report = _play("pull-pbs", script)
    _assert_kept(report)
    assert report.triggered and report.evidences[0].ending is ending


def test_same_seed_gives_the_same_log() -> None:
    script = "pbs.fixed_chunk#2: server-dies 2s"
    logs = {_play("pull-pbs-second", script, seed=5).log.render() for _ in range(2)}
    assert len(logs) == 1


def test_backup_that_differs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkers are awake: a server whose chunk is another one's is noticed."""
    from vzsim.fakepbs.chunk_store import ChunkStore

    plain = ChunkStore.read
    monkeypatch.setattr(ChunkStore, "read", lambda self, digest: plain(self, digest)[:-1] + b"?")
    report = _play("offline-pbs")
    assert {violation.checker for violation in report.violations} >= {"archive-whole"}
