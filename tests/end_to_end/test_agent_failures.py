"""Agents that are dead, slow or failing: the backup goes on, and no guest stays frozen."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.end_to_end.lab import Ended, Lab

pytestmark = pytest.mark.slow

FREEZE = "INFO: issuing guest-agent 'fs-freeze' command"
THAW = "INFO: issuing guest-agent 'fs-thaw' command"


def _back_up(lab: Lab, script: str) -> Ended:
    lab.start(script)
    ended = lab.must(*lab.backup_words())
    lab.assert_clean("running", archive_count=1)
    lab.must("verify", *lab.archives())
    return ended


def test_agent_that_is_configured_but_dead_is_skipped(lab: Lab) -> None:
    ended = _back_up(lab, "[agent]\nstate = 'absent'\n")
    assert FREEZE not in lab.log()
    skipped = "INFO: skipping guest filesystem freeze - agent configured but not running?"
    assert skipped in ended.err.splitlines()
    lab.assert_next_backup_good()


def test_freeze_that_fails_is_told_and_thawed_all_the_same(lab: Lab) -> None:
    ended = _back_up(lab, "[agent]\nfreeze_error = 'hook failed'\n")
    lines = ended.err.splitlines()
    assert "ERROR: unable to freeze guest fs - hook failed" in lines
    assert lines.index(FREEZE) < lines.index(THAW)
    lab.assert_next_backup_good()


def test_thaw_that_fails_once_is_tried_again(lab: Lab) -> None:
    rules = "[[command]]\nname = 'guest-fsfreeze-thaw'\nnth = 1\nerror = 'thaw failed'\n"
    ended = _back_up(lab, rules)
    assert [line for line in ended.err.splitlines() if "thaw failed" in line]
    lab.assert_next_backup_good()


def test_thaw_that_never_succeeds_is_an_alarm(lab: Lab) -> None:
    ended = _back_up(lab, "[agent]\nthaw_error = 'no thaw'\n")
    assert [line for line in ended.err.splitlines() if "may still be frozen" in line]
    assert ended.err.splitlines()[-1] == "TASK WARNINGS: 1"
    # The guardian goes on with it, and comes to its end with the guest's.
    lab.stop()
    lab.await_no_journal()
    lab.start("")
    lab.assert_next_backup_good()


def test_slow_freeze_is_waited_for_and_measured(lab: Lab) -> None:
    lab.start("[agent]\nfreeze_delay_s = 2.0\n")
    code, events = lab.back_up_and_act({})
    assert code == 0
    [window] = [event for event in events if event["event"] == "FreezeWindowClosed"]
    assert 2.0 <= window["freeze_window_s"] < 4.0
    assert window["own_s"] < 0.1
    lab.assert_clean("running", archive_count=1)
    lab.assert_next_backup_good()


def test_signal_during_a_slow_freeze_thaws_the_guest(lab: Lab) -> None:
    lab.start("[agent]\nfreeze_delay_s = 1.0\n")

    def interrupt(process: Any) -> None:
        os.kill(process.pid, signal.SIGTERM)

    code, events = lab.back_up_and_act({"FreezeIssued": interrupt})
    assert code == 255
    names = [event["event"] for event in events]
    assert "ThawIssued" in names and "JobAccepted" not in names
    assert "UndoFailed" not in names
    lab.assert_clean("running")
    lab.assert_next_backup_good()
