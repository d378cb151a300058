"""The task log of a PVE node (1.2)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vzdump_qemu import events
from vzdump_qemu.cli.log_line import info, warn
from vzdump_qemu.cli.task_log import TaskLog
from vzdump_qemu.node.layout import NodeLayout

UPID = "UPID:pve1:0000ABCD:12345678:6B04A40B:vzdump:100:root@pam:"


@pytest.fixture
def layout(tmp_path: Path) -> NodeLayout:
    return NodeLayout(root=str(tmp_path), node_name="pve1")


def _write_job(log: TaskLog, layout: NodeLayout) -> None:
    log.show(events.Warned(text="early"), warn("early"))
    log.begin(layout, UPID)
    log.show(events.JobStarted(command_line="vzdump 100"), info("starting new backup job"))
    log.show(events.Warned(text="careful"), warn("careful"), 100)
    log.close("TASK WARNINGS: 2")


@pytest.mark.parametrize(("names_vms", "whose"), [(False, ""), (True, "100: ")])
def test_row_1_2_task_log_has_every_line_and_the_verdict_last(
    tmp_path: Path, layout: NodeLayout, names_vms: bool, whose: str
) -> None:
    (tmp_path / "var/log/pve/tasks").mkdir(parents=True)
    _write_job(TaskLog(names_vms=names_vms), layout)
    path = tmp_path / "var/log/pve/tasks/B" / UPID
    assert path.read_text() == (
        f"WARN: early\nINFO: starting new backup job\n{whose}WARN: careful\nTASK WARNINGS: 2\n"
    )
    assert os.stat(path).st_mode & 0o777 == 0o640


def test_row_1_2_log_of_a_job_that_was_killed_has_no_verdict(
    tmp_path: Path, layout: NodeLayout
) -> None:
    (tmp_path / "var/log/pve/tasks").mkdir(parents=True)
    log = TaskLog(names_vms=False)
    log.begin(layout, UPID)
    log.show(events.JobStarted(command_line="vzdump 100"), info("starting new backup job"))
    path = tmp_path / "var/log/pve/tasks/B" / UPID
    assert path.read_text() == "INFO: starting new backup job\n"
    log.close("")


def test_node_that_keeps_no_task_logs_gets_none(tmp_path: Path, layout: NodeLayout) -> None:
    _write_job(TaskLog(names_vms=False), layout)
    assert list(tmp_path.iterdir()) == []


def test_task_log_that_cannot_be_written_costs_nothing(tmp_path: Path, layout: NodeLayout) -> None:
    (tmp_path / "var/log/pve/tasks").mkdir(parents=True)
    (tmp_path / "var/log/pve/tasks/B").write_text("no directory")
    _write_job(TaskLog(names_vms=False), layout)
    assert (tmp_path / "var/log/pve/tasks/B").read_text() == "no directory"
