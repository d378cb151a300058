"""What a run meets on a node that others use too: users, locks, other clients, odd names."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.lab import TOOL, Lab, assert_cause, names_of

pytestmark = pytest.mark.slow

PACED = "[backup]\nbytes_per_s = 4194304\n"
# Long enough for another process to begin meanwhile, on a machine that has much to do.
LONG = "[backup]\nbytes_per_s = 1048576\n"


def test_row_10_1_10_vm_started_by_a_user_meanwhile_is_kept_running(lab: Lab) -> None:
    lab.script(PACED)

    def start_by_hand(_: Any) -> None:
        with lab.connect() as client:
            assert client.ask("cont") == {}

    code, events = lab.back_up_and_act({"JobAccepted": start_by_hand})
    assert code == 0
    [kept] = [event for event in events if event["event"] == "VmKeptRunning"]
    assert kept["run_state"] == "running"
    lab.assert_clean("running", archive_count=1)
    lab.must("verify", *lab.archives())
    lab.assert_next_backup_good()


def test_vm_started_by_a_user_meanwhile_survives_a_failing_job(lab: Lab) -> None:
    lab.script(PACED + "fail_at_bytes = 4194304\n")

    def start_by_hand(_: Any) -> None:
        with lab.connect() as client:
            client.ask("cont")

    code, _ = lab.back_up_and_act({"JobAccepted": start_by_hand})
    assert code == 255
    lab.assert_clean("running")
    lab.assert_next_backup_good()


def test_vm_that_was_paused_before_stays_paused(lab: Lab) -> None:
    lab.start(paused=True)
    ended = lab.must(*lab.backup_words())
    assert "INFO: issuing guest-agent 'fs-freeze' command" not in ended.err.splitlines()
    assert "INFO: resuming VM again" not in ended.err.splitlines()
    lab.assert_clean("prelaunch", archive_count=1)
    lab.assert_next_backup_good(restart=False)
    assert lab.run_state() == "prelaunch"


def test_locked_vm_is_refused_and_stays_locked(lab: Lab) -> None:
    lab.start()
    plain = lab.config.read_bytes()
    locked = plain + b"lock: migrate\n"
    lab.config.write_bytes(locked)
    assert_cause(lab.tool(*lab.backup_words()), lab, "VM is locked (migrate)")
    assert lab.config.read_bytes() == locked
    lab.config.write_bytes(plain)
    lab.assert_clean("running")
    lab.assert_next_backup_good(restart=False)


def test_monitor_that_another_client_holds_is_waited_for(lab: Lab) -> None:
    lab.start()
    client = lab.connect()
    leave = threading.Timer(1.5, client.close)
    leave.start()
    lab.must(*lab.backup_words())
    assert leave.finished.is_set()
    lab.assert_clean("running", archive_count=1)
    lab.assert_next_backup_good(restart=False)


@pytest.mark.parametrize("name", ["two words", "$(touch pwned);'\"&|*?", "-n", "Ü,comma=1"])
def test_dump_directory_with_an_odd_name_is_taken_as_it_is(lab: Lab, name: str) -> None:
    lab.start()
    directory = lab.root.parent / name
    directory.mkdir()
    lab.must(*lab.backup_words("--dumpdir", directory))
    kinds = sorted(path.suffix for path in directory.iterdir())
    assert kinds == [".log", ".zst"]
    [path] = directory.glob("*.zst")
    lab.must("verify", path)
    assert not list(Path.cwd().glob("pwned"))
    lab.assert_clean("running")


def test_archive_on_standard_output_is_verified_from_a_pipe(lab: Lab) -> None:
    lab.start()
    words = ["--root", str(lab.root), "100", "--stdout"]
    with subprocess.Popen(
        [*TOOL, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as backup:
        assert backup.stderr is not None
        verified = subprocess.run(
            [*TOOL, "verify", "-"], stdin=backup.stdout, capture_output=True, check=False
        )
        log = backup.stderr.read().decode()
    assert (backup.returncode, verified.returncode) == (0, 0), verified.stderr
    assert log.splitlines()[-1] == "TASK OK"
    assert b"whole" in verified.stdout
    lab.assert_clean("running")


def test_reader_of_standard_output_that_goes_away_fails_the_run(lab: Lab) -> None:
    lab.start()
    words = ["--root", str(lab.root), "100", "--stdout"]
    with subprocess.Popen(
        [*TOOL, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as backup:
        assert backup.stdout is not None and backup.stderr is not None
        backup.stdout.read(1000)
        backup.stdout.close()
        log = backup.stderr.read().decode()
    assert backup.returncode == 255
    assert "Traceback" not in log
    assert log.splitlines()[-1] == "TASK ERROR: job errors"
    lab.assert_clean("running")


def test_log_into_a_pipe_that_breaks_ends_the_job_in_order(lab: Lab) -> None:
    lab.start(PACED)
    command = '"$@" 2>&1 | head -1; exit "${PIPESTATUS[0]}"'
    words = [*TOOL, *map(str, lab.backup_words())]
    ended = subprocess.run(
        ["bash", "-c", command, "bash", *words], capture_output=True, text=True, check=False
    )
    assert ended.stdout.splitlines() == [
        "INFO: starting new backup job: vzdump 100 --compress zstd"
    ]
    assert ended.stderr == ""
    assert ended.returncode == 255
    lab.assert_clean("running")
    lab.assert_next_backup_good(restart=False)


def test_quiet_job_prints_nothing_even_when_it_fails(lab: Lab) -> None:
    lab.start("[backup]\nfail_at_bytes = 1048576\n")
    ended = lab.tool(*lab.backup_words("--quiet"))
    assert (ended.code, ended.out, ended.err) == (255, "", "")
    assert [line for line in lab.log() if "Backup of VM 100 failed" in line]
    lab.assert_clean("running")


def test_second_job_waits_for_the_first(lab: Lab) -> None:
    lab.start(LONG)
    second: list[subprocess.Popen[str]] = []
    code, events = lab.back_up_and_act({"JobAccepted": lambda _: second.append(lab.spawn_backup())})
    out, err = second[0].communicate(timeout=30)
    assert (code, second[0].returncode, err) == (0, 0, "")
    assert "GlobalLockAwaited" not in names_of(events)
    assert '"event": "GlobalLockAwaited"' in out
    assert '"event": "RunSucceeded"' in out
    lab.assert_clean("running", archive_count=2)


def test_second_job_that_may_not_wait_is_refused(lab: Lab) -> None:
    lab.start(LONG)
    refused: list[int] = []

    def try_another(_: Any) -> None:
        ended = lab.tool(*lab.backup_words("--lockwait", 0))
        assert "lock" in ended.err.splitlines()[-1]
        refused.append(ended.code)

    code, _ = lab.back_up_and_act({"JobAccepted": try_another})
    assert (code, refused) == (0, [255])
    lab.assert_clean("running", archive_count=1)
