"""SIGINT and SIGTERM at each stage of a run: undone in order, and the next run works."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.end_to_end.lab import Lab, names_of

pytestmark = pytest.mark.slow

# The job lasts long enough to be met while it runs, and not much longer.
PACED = "[backup]\nbytes_per_s = 16777216\n"
STAGES = [
    "RunStarted",
    "ModeChosen",
    "ArchiveCreating",
    "FreezeIssued",
    "JobStartIssued",
    "JobAccepted",
    "ProgressMade",
    "TransferEnded",
    "ArchiveProved",
]
# The signal may come when the archive has its name already.
LATE_STAGES = ("ProgressMade", "TransferEnded", "ArchiveProved")


def _interrupt_at(lab: Lab, stage: str, number: signal.Signals) -> None:
    def send(process: Any) -> None:
        os.kill(process.pid, number)

    code, events = lab.back_up_and_act({stage: send})
    names = names_of(events)
    assert stage in names
    if "ArchivePublished" in names:
        assert stage in LATE_STAGES
        # A job that was over when the signal came may still have been killed by it.
        assert code in (0, 255, -number)
        lab.assert_clean("running", archive_count=1)
        lab.must("verify", *lab.archives())
        lab.remove_archives()
        return
    assert code == 255
    assert events[-1]["event"] == "JobEnded"
    assert events[-1]["error"] == "interrupted by signal"
    if "RunStarted" in names:
        cause = "ERROR: Backup of VM 100 failed - interrupted by signal"
        assert lab.log().count(cause) == 1
    assert "UndoFailed" not in names
    lab.assert_clean("running")


@pytest.mark.parametrize("stage", STAGES)
def test_signals_at_a_stage_leave_the_vm_as_it_was(lab: Lab, stage: str) -> None:
    lab.start(PACED)
    _interrupt_at(lab, stage, signal.SIGINT)
    _interrupt_at(lab, stage, signal.SIGTERM)
    lab.assert_next_backup_good(restart=False)


@pytest.mark.parametrize("stage", ["QemuStarting", "JobAccepted", "QemuStopping"])
def test_signal_while_a_stopped_vm_is_backed_up_stops_its_qemu(lab: Lab, stage: str) -> None:
    lab.script(PACED)

    def send(process: Any) -> None:
        os.kill(process.pid, signal.SIGTERM)

    code, events = lab.back_up_and_act({stage: send})
    assert code == 255
    assert "UndoFailed" not in names_of(events)
    lab.assert_clean("")
    lab.assert_next_backup_good(restart=False)


@pytest.mark.parametrize("mode", ["suspend", "stop"])
def test_signal_while_the_guest_is_halted_puts_it_back_to_work(lab: Lab, mode: str) -> None:
    lab.start(PACED)

    def send(process: Any) -> None:
        os.kill(process.pid, signal.SIGINT)

    code, events = lab.back_up_and_act({"ArchiveCreating": send}, "--mode", mode)
    assert code == 255
    assert "UndoFailed" not in names_of(events)
    lab.assert_clean("running")


def test_later_signals_do_not_disturb_the_undo(lab: Lab) -> None:
    lab.start(PACED)

    def send(process: Any) -> None:
        os.kill(process.pid, signal.SIGTERM)

    code, events = lab.back_up_and_act({"JobAccepted": send, "JobAborting": send})
    assert code == 255
    assert "UndoFailed" not in names_of(events)
    lab.assert_clean("running")
