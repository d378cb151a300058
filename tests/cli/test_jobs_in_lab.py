"""Which jobs there are at all, and what is left of them, as an operator meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.lab_command import Outcome, Run


@pytest.mark.parametrize(
    "words",
    [
        ("--stop",),
        ("--stop", "1", "200"),
        ("200",),
        ("100", "--node", "elsewhere"),
        ("--all", "--node", "elsewhere"),
        ("--pool", "empty"),
    ],
    ids=" ".join,
)
def test_row_1_1_nothing_to_do_here_is_no_job_and_says_nothing(
    lab: Path, command: Run, words: tuple[str, ...]
) -> None:
    _add_guest_elsewhere(lab)
    (lab / "etc/pve/user.cfg").write_text("pool:empty:::\n")
    (lab / "etc/vzdump.conf").write_text("ionice: 99\n")
    outcome = command("--root", lab, *words)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert not list((lab / "var/lib/vz/dump").glob("*"))


def test_row_1_1_3_stop_without_a_node_is_a_wrong_command_line(command: Run) -> None:
    outcome = command("--qmp", "/x", "--stop")
    assert outcome.code == 2
    assert "stop: option conflicts with option 'qmp'" in outcome.err


def test_row_1_6_2_external_vms_are_told_after_the_begin(lab: Path, command: Run) -> None:
    _add_guest_elsewhere(lab)
    outcome = command("--root", lab, 100, 200)
    assert outcome.code == 0
    assert outcome.err.splitlines()[:2] == [
        "INFO: starting new backup job: vzdump 100",
        "INFO: skip external VMs: 200",
    ]


def test_row_1_7_3_ha_managed_vm_is_not_backed_up_in_stop_mode(lab: Path, command: Run) -> None:
    (lab / "etc/pve/ha").mkdir()
    (lab / "etc/pve/ha/resources.cfg").write_text("vm: 100\n\tstate started\n")
    outcome = command("--root", lab, 100, "--mode", "stop")
    assert outcome.code == 255
    assert (
        "ERROR: Backup of VM 100 failed - Cannot execute a backup with stop mode on a HA managed "
        "and enabled Service. Use snapshot mode or disable the Service.\n"
    ) in outcome.err


def test_results_are_written_of_a_job_that_fails(lab: Path, command: Run, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    outcome = command("--root", lab, 100, 999, "--results", path)
    assert outcome.code == 255
    good, bad = json.loads(path.read_text())
    assert (good["vmid"], good["status"], good["consistency"]) == (100, "ok", "stopped")
    assert good["size_bytes"] == Path(good["archive"]).stat().st_size
    assert (bad["vmid"], bad["status"], bad["error"]) == (999, "err", "unable to find VM '999'")


def test_results_are_written_of_a_job_that_could_not_begin(
    lab: Path, command: Run, tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    outcome = command("--root", lab, 100, "--results", path, "--storage", "missing")
    assert outcome.code == 255
    [result] = json.loads(path.read_text())
    assert result["status"] == "todo"
    assert result["error"].startswith("aborted: could not activate storage 'missing'")


def test_deadline_that_is_over_fails_the_job(lab: Path, command: Run) -> None:
    outcome = command("--root", lab, 100, "--deadline", "0s")
    assert outcome.code == 255
    assert _last(outcome) == "TASK ERROR: deadline reached before these VMs were begun: 100"


def test_one_at_a_time_needs_no_names_before_its_lines(lab: Path, command: Run) -> None:
    outcome = command("--root", lab, 100, "--max-parallel", 1, "--storage-limit", "local=1")
    assert outcome.code == 0
    assert all(line.startswith(("INFO: ", "TASK ")) for line in outcome.err.splitlines())


def _add_guest_elsewhere(lab: Path) -> None:
    directory = lab / "etc/pve/nodes/other/qemu-server"
    directory.mkdir(parents=True)
    (directory / "200.conf").write_text("cores: 1\n")


def _last(outcome: Outcome) -> str:
    return outcome.err.splitlines()[-1]
