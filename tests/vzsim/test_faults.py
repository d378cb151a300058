"""Fault scripts as text, their catalogue, and what each does to a call."""

from __future__ import annotations

import random

import pytest

from vzdump_qemu.errors import ConfigError
from vzsim.faults import ACTS, KILLS, KINDS_OF, Family, Fault, FaultScript, Kind
from vzsim.faults.draw import Place, draw_script, faults_at, list_doubles, list_singles
from vzsim.run_lists import scout
from vzsim.scenario import Scenario
from vzsim.simulation import simulate
from vzsim.system import load_system
from vzsim.token import Token

PLAIN = Scenario(name="plain", about="one running VM")


def test_script_reads_like_a_sentence() -> None:
    text = "backup#1: reply-lost; agent.thaw: stall 40s; cancel-tool@intake.publish"
    script = FaultScript.parse(text)
    assert script.faults == (
        Fault(site="backup", nth=1, kind=Kind.REPLY_LOST),
        Fault(site="agent.thaw", nth=1, kind=Kind.STALL, length_s=40.0),
        Fault(site="intake.publish", nth=1, kind=Kind.CANCEL_TOOL),
    )
    assert script.render() == (
        "backup#1: reply-lost; agent.thaw#1: stall 40s; cancel-tool@intake.publish#1"
    )


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("length_s", [0.0, 1.5, 700.0])
def test_fault_of_every_kind_survives_its_text(kind: Kind, length_s: float) -> None:
    fault = Fault(site="node.set_vm_lock", nth=3, kind=kind, length_s=length_s)
    script = FaultScript((fault,))
    assert FaultScript.parse(script.render()) == script
    token = Token(scenario="plain", seed=7, script=script.render())
    assert Token.parse(token.render()) == token


@pytest.mark.parametrize("text", ["backup", "backup#0: error", "backup: nonsense", "@x", "a: b c"])
def test_text_that_is_no_script_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="fault script"):
        FaultScript.parse(text)


def test_every_kind_can_happen_somewhere() -> None:
    own = {kind for kinds in KINDS_OF.values() for kind in kinds}
    assert own | ACTS == set(Kind)
    assert not own & ACTS


def test_place_offers_kills_only_where_asked() -> None:
    place = Place(site="node.set_vm_lock", nth=1, family=Family.NODE.value)
    kinds = {fault.kind for fault in faults_at(place, with_kills=False)}
    assert not kinds & KILLS
    assert {fault.kind for fault in faults_at(place, with_kills=True)} >= KILLS


def test_singles_and_doubles_cover_every_kind_at_every_place() -> None:
    places = [
        Place(site="backup", nth=1, family=Family.QMP_BACKUP.value),
        Place(site="files.rename", nth=1, family=Family.FILES_RENAME.value),
    ]
    singles = list(list_singles(places, with_kills=True))
    assert len(singles) == len(set(singles))
    ours = [script for script in singles if script.faults[0].site == "files.rename"]
    assert {script.faults[0].kind for script in ours} == {
        Kind.EIO,
        Kind.EXDEV,
        Kind.EROFS,
        Kind.EDQUOT,
        Kind.POWER_LOSS,
    }
    assert list(list_doubles(places, with_kills=True)) == []


def test_doubles_are_pairs_within_the_window_and_within_the_publishing() -> None:
    places = [
        Place(site="agent.thaw", nth=1, family=Family.AGENT.value),
        Place(site="backup", nth=1, family=Family.QMP_BACKUP.value),
        Place(site="files.fsync", nth=1, family=Family.FILES_SYNC.value),
        Place(site="files.rename", nth=1, family=Family.FILES_RENAME.value),
    ]
    doubles = list(list_doubles(places, with_kills=True))
    assert len(doubles) == len(set(doubles)) > 50
    pairs = {tuple(fault.site for fault in script.faults) for script in doubles}
    assert pairs == {("agent.thaw", "backup"), ("files.fsync", "files.rename")}
    kinds = {fault.kind for script in doubles for fault in script.faults}
    assert {Kind.KILL_TOOL, Kind.JOB_FAILS, Kind.POWER_LOSS, Kind.EIO} <= kinds


def test_drawn_script_depends_on_the_seed_alone() -> None:
    places = [Place(site=f"site{at}", nth=1, family=Family.NODE.value) for at in range(20)]
    first = draw_script(random.Random(5), places, with_kills=False)
    assert first == draw_script(random.Random(5), places, with_kills=False)
    drawn = {draw_script(random.Random(at), places, with_kills=False) for at in range(50)}
    assert len(drawn) > 40


def test_drawn_fault_in_a_recovery_comes_with_a_kill() -> None:
    own = Place(site="node.set_vm_lock", nth=1, family=Family.NODE.value)
    places = [own, Place(site="recovery.node.clear_vm_lock", nth=1, family=Family.NODE.value)]
    seen = 0
    for seed in range(40):
        script = draw_script(random.Random(seed), places, with_kills=True)
        if any(fault.site.startswith("recovery.") for fault in script.faults):
            seen += 1
            assert any(f.kind in KILLS and f.site == own.site for f in script.faults)
    assert seen > 10


def test_scouts_know_the_sites_of_undo_and_recovery() -> None:
    sites = {place.site for place in scout("vzdump-qemu", "snapshot-running", with_kills=True)}
    assert {"backup", "backup-cancel", "agent.thaw", "files.rename", "intake.discard"} <= sites
    assert any(site.startswith("recovery.") for site in sites)


@pytest.mark.parametrize(
    "text",
    [
        "node.set_vm_lock: error",
        "backup: stall 40s",
        "backup: reply-lost",
        "agent.freeze: agent-dies 30s",
        "files.write#2: partial",
        "files.rename: exdev",
        "files.rename: erofs",
        "files.create: edquot",
        "compressor: killed",
        "compressor: killed-late",
        "compressor: slow",
        "qmp.connect#4: slow 2s",
        "agent.connect: slow 2s",
        "power-loss@files.fsync-directory",
        "power-loss@backup",
        "other-job@clock.sleep#2",
        "other-lock@machine.is_running",
        "fd-leaks@backup",
        "guest-panics@clock.sleep",
        "guest-suspends@agent.connect",
        "clock-forward@backup",
        "qmp.connect#2: other-client 40s",
        "agent.connect: stale",
        "cancel-tool@agent.thaw",
        "kill-tool@agent.thaw",
        "qemu-dies@clock.sleep",
    ],
)
def test_fault_happens_once_and_is_logged(text: str) -> None:
    script = FaultScript.parse(text)
    report = simulate(load_system(), PLAIN, script, 1)
    assert report.triggered == script.faults or "clock" in text
    for fault in report.triggered:
        assert report.log.render().count(f"fault {fault.render()}\n") == 1
    assert report.violations == ()


def test_killed_tool_never_moves_again() -> None:
    report = simulate(load_system(), PLAIN, FaultScript.parse("kill-tool@agent.thaw"), 1)
    lines = report.log.render().splitlines()
    at = next(index for index, line in enumerate(lines) if line.endswith("the tool is dead"))
    ended = next(index for index, line in enumerate(lines) if " tool ended killed" in line)
    # Only its guardian speaks between its death and the end.
    spoken = [line.split(" tool ")[1] for line in lines[at + 1 : ended] if " tool " in line]
    assert spoken and all(line.startswith(("recovery.", "Warned(")) for line in spoken)
    assert report.evidences[0].observed.frozen.longest_s > 0
    assert not report.evidences[0].rest.is_frozen
