"""The native path is refused on stock QEMU by name, and everything is as before."""

from __future__ import annotations

import json

import pytest

from integration.real_lab import RealLab

REFUSAL = "has no 'backup' command"


def _assert_refused(lab: RealLab, *words: object) -> None:
    before = lab.config().read_bytes()
    ended = lab.tool("--root", lab.root, 100, "--data-path", "native", *words)
    lines = ended.err.splitlines()
    assert ended.code == 255
    [failed] = [line for line in lines if line.startswith("ERROR: Backup of VM 100 failed")]
    assert failed.endswith(REFUSAL)
    assert lines[-1] == "TASK ERROR: job errors"
    assert not [line for line in lines if "fs-freeze" in line or "starting backup via" in line]
    assert {path.suffix for path in lab.dump.iterdir()} <= {".log"}
    assert lab.config().read_bytes() == before


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_backup_of_a_running_vm_is_refused_before_the_guest_is_touched(
    real_lab: RealLab, image_format: str
) -> None:
    real_lab.create("--disk", f"scsi0=8M,format={image_format}")
    real_lab.must("lab", "start", real_lab.root, 100)
    processes = real_lab.processes()
    _assert_refused(real_lab)
    [row] = json.loads(real_lab.must("lab", "status", real_lab.root, "--json").out)
    assert (row["run_state"], row["lock"]) == ("running", "")
    assert real_lab.processes() == processes


def test_backup_of_a_paused_vm_is_refused_and_it_stays_paused(real_lab: RealLab) -> None:
    real_lab.create()
    real_lab.must("lab", "start", real_lab.root, 100, "--paused")
    _assert_refused(real_lab)
    [row] = json.loads(real_lab.must("lab", "status", real_lab.root, "--json").out)
    assert row["run_state"] == "prelaunch"


def test_backup_of_a_stopped_vm_is_refused_and_its_qemu_ends_again(real_lab: RealLab) -> None:
    real_lab.create()
    _assert_refused(real_lab)
    assert real_lab.processes() == []
    assert list(real_lab.run_directory.iterdir()) == []


def test_suspended_guest_runs_again_after_the_refusal(real_lab: RealLab) -> None:
    real_lab.create()
    real_lab.must("lab", "start", real_lab.root, 100)
    _assert_refused(real_lab, "--mode", "suspend")
    [row] = json.loads(real_lab.must("lab", "status", real_lab.root, "--json").out)
    assert row["run_state"] == "running"
