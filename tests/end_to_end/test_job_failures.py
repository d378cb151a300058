"""QEMU's job goes wrong in a real process: the cause is told, nothing is left, all works again."""

from __future__ import annotations

import pytest

from tests.end_to_end.lab import Lab, assert_cause

pytestmark = pytest.mark.slow

PACED = "bytes_per_s = 4194304\n"


def _fail(lab: Lab, script: str, text: str, *, words: tuple[str, ...] = ()) -> None:
    lab.start(script)
    assert_cause(lab.tool(*lab.backup_words(*words)), lab, text)


@pytest.mark.parametrize(
    ("script", "text"),
    [
        pytest.param(
            "[backup]\nfail_at_bytes = 1048576\nfail_text = 'disk on fire'\n",
            "disk on fire",
            id="error-status",
        ),
        pytest.param(
            "[backup]\nstatus = 'odd'\n", "got unexpected status 'odd'", id="unexpected-status"
        ),
        pytest.param(
            "[[command]]\nname = 'backup'\ndrop = ['UUID']\n[backup]\n" + PACED,
            "got no uuid for backup task",
            id="missing-uuid",
        ),
        pytest.param(
            "[backup]\ntransferred_off_by = -65536\n",
            "got wrong number of transfered bytes",
            id="wrong-byte-count",
        ),
        pytest.param(
            "[[command]]\nname = 'backup'\nerror = 'no such thing'\n",
            "executing QMP command to start backup failed",
            id="refused-start",
        ),
    ],
)
def test_job_that_fails_leaves_nothing_but_its_cause(lab: Lab, script: str, text: str) -> None:
    _fail(lab, script, text)
    lab.assert_clean("running")
    lab.assert_next_backup_good()


def test_foreign_uuid_ends_the_run_and_that_job_is_left_alone(lab: Lab) -> None:
    foreign = "11111111-2222-4333-8444-555555555555"
    _fail(lab, f"[backup]\nuuid = '{foreign}'\n{PACED}", "got unexpected uuid")
    # Nobody reads on for the other's job here, so it has ended by now as a broken pipe.
    lab.assert_clean("running")
    lab.assert_next_backup_good()


def test_status_without_uuid_is_not_our_job(lab: Lab) -> None:
    script = f"[[command]]\nname = 'query-backup'\nnth = 2\ndrop = ['uuid']\n[backup]\n{PACED}"
    _fail(lab, script, "got unexpected uuid")
    lab.assert_clean("running")
    lab.assert_next_backup_good()


@pytest.mark.parametrize(
    ("script", "text"),
    [
        pytest.param(
            "[[command]]\nname = 'backup'\ndie = 'before'\n",
            "executing QMP command to start backup failed",
            id="before-the-job-start",
        ),
        pytest.param(
            f"[backup]\ndie_at_bytes = 2097152\n{PACED}",
            "QEMU ended during the backup",
            id="after-the-job-start",
        ),
    ],
)
def test_qemu_that_dies_fails_the_run_and_leaves_nothing(lab: Lab, script: str, text: str) -> None:
    _fail(lab, script, text)
    assert lab.pid() is None
    lab.stop()
    lab.assert_clean("")
    lab.start()
    lab.assert_next_backup_good(restart=False)


def test_failed_job_of_a_stopped_vm_ends_the_qemu_started_for_it(lab: Lab) -> None:
    lab.script("[backup]\nfail_at_bytes = 1048576\n")
    ended = lab.tool(*lab.backup_words())
    assert_cause(ended, lab, "job failed with err -5")
    assert "INFO: stopping kvm after backup task" in ended.err.splitlines()
    lab.assert_clean("")
    lab.assert_next_backup_good()


@pytest.mark.parametrize("mode", ["suspend", "stop"])
def test_failed_job_in_other_modes_puts_the_guest_back_to_work(lab: Lab, mode: str) -> None:
    # In stop mode a second process does the work; it reads the same script.
    _fail(lab, "[backup]\nfail_at_bytes = 1048576\n", "err -5", words=("--mode", mode))
    lab.assert_clean("running")
    lab.assert_next_backup_good()
