"""Labs on the real QEMU: from creation to destruction nothing is left over."""

from __future__ import annotations

import json

import pytest

from integration.real_lab import RealLab


def _run_state(lab: RealLab) -> str:
    [row] = json.loads(lab.must("lab", "status", lab.root, "--json").out)
    return str(row["run_state"])


@pytest.mark.parametrize("disk", ["scsi0=8M", "virtio1=1049088", "sata0=8M", "ide0=8M"])
def test_lab_runs_and_ends_real_qemu_and_leaves_nothing(real_lab: RealLab, disk: str) -> None:
    real_lab.create("--disk", disk, "--fill", 1)
    real_lab.must("lab", "start", real_lab.root, 100)
    assert _run_state(real_lab) == "running"
    assert len(real_lab.processes()) == 1
    real_lab.must("lab", "stop", real_lab.root, 100)
    assert _run_state(real_lab) == ""
    assert real_lab.processes() == []
    assert list(real_lab.run_directory.iterdir()) == []


def test_paused_start_waits_before_the_first_instruction(real_lab: RealLab) -> None:
    real_lab.create()
    real_lab.must("lab", "start", real_lab.root, 100, "--paused")
    assert _run_state(real_lab) == "prelaunch"


def test_destroyed_lab_takes_its_process_with_it(real_lab: RealLab) -> None:
    real_lab.create()
    real_lab.must("lab", "start", real_lab.root, 100)
    real_lab.must("lab", "destroy", real_lab.root)
    assert real_lab.processes() == []
    assert not real_lab.root.exists()


def test_qcow2_disk_is_run_by_real_qemu(real_lab: RealLab) -> None:
    real_lab.create("--disk", "scsi0=8M,format=qcow2", "--fill", 2)
    assert real_lab.image(image_format="qcow2").read_bytes()[:4] == b"QFI\xfb"
    real_lab.must("lab", "start", real_lab.root, 100)
    assert _run_state(real_lab) == "running"


def test_arguments_that_qemu_refuses_are_told_in_its_words(real_lab: RealLab) -> None:
    real_lab.create()
    with open(real_lab.config(), "a", encoding="utf-8") as config:
        config.write("args: -nonsense\n")
    ended = real_lab.tool("lab", "start", real_lab.root, 100)
    assert ended.code != 0
    assert "-nonsense: invalid option" in ended.err
    assert len(ended.err.splitlines()) == 1
    assert real_lab.processes() == []
    assert list(real_lab.run_directory.iterdir()) == []
