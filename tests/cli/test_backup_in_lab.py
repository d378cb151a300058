"""The whole command on a lab with a QEMU process: backup, restore, failures, signals."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from tests.cli.lab_command import Run, add_script, archives

pytestmark = pytest.mark.slow

SLOW_JOB = "[backup]\nbytes_per_s = 65536\n"


def disks(lab: Path, vmid: int) -> list[bytes]:
    config = (lab / f"etc/pve/qemu-server/{vmid}.conf").read_text()
    names = re.findall(r"^(?:scsi|virtio)\d+: local:(\S+?),", config, re.MULTILINE)
    return [(lab / "var/lib/vz/images" / name).read_bytes() for name in names]


def nothing_left_over(lab: Path) -> None:
    assert archives(lab) == []
    dump = {path.suffix for path in (lab / "var/lib/vz/dump").iterdir()}
    assert dump <= {".log"}
    assert "lock:" not in (lab / "etc/pve/qemu-server/100.conf").read_text()


def test_backup_of_a_running_vm_is_logged_listed_verified_and_restored(
    lab: Path, command: Run
) -> None:
    assert command("lab", "start", lab, 100).code == 0
    outcome = command("--root", lab, 100, "-compress", "zstd", "--output", "log")
    assert outcome.code == 0
    lines = outcome.err.splitlines()
    assert lines[0] == "INFO: starting new backup job: vzdump 100 --compress zstd"
    assert "INFO: issuing guest-agent 'fs-freeze' command" in lines
    assert lines[-1] == "TASK OK"
    [path] = archives(lab)
    side_log = path.with_name(path.name.replace(".vma.zst", ".log")).read_text()
    assert "INFO: Finished Backup of VM 100" in side_log
    assert side_log == (lab / "var/log/vzdump/qemu-100.log").read_text()

    assert [row["path"] for row in json.loads(command("list", lab, "--json").out)] == [str(path)]
    assert command("verify", path).code == 0
    assert command("restore", path, 101, "--root", lab).code == 0
    assert disks(lab, 101) == disks(lab, 100)
    assert "qmdump" not in (lab / "etc/pve/qemu-server/101.conf").read_text()


def test_backup_as_json_ends_with_the_job(lab: Path, command: Run) -> None:
    outcome = command("--root", lab, 100, "--output", "json")
    told = [json.loads(line) for line in outcome.out.splitlines()]
    assert outcome.code == 0
    assert outcome.err == ""
    assert told[0]["event"] == "JobStarted"
    assert told[-1] | {"time": ""} == {
        "event": "JobEnded",
        "time": "",
        "failed_vmids": [],
        "error": "",
    }


def test_quiet_backup_prints_nothing_and_writes_its_log(lab: Path, command: Run) -> None:
    outcome = command("--root", lab, "--all", "--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert "Finished Backup" in (lab / "var/log/vzdump/qemu-100.log").read_text()


def test_unknown_vm_fails_and_the_other_is_backed_up(lab: Path, command: Run) -> None:
    outcome = command("--root", lab, "100,999")
    assert outcome.code == 255
    assert "ERROR: Backup of VM 999 failed - unable to find VM '999'" in outcome.err
    assert outcome.err.endswith("TASK ERROR: job errors\n")
    assert len(archives(lab)) == 1


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--storage", "nope"], "storage 'nope' does not exist"),
        (["--dumpdir", "/nonexistent-dir"], "dumpdir '/nonexistent-dir' does not exist"),
        (["--tmpdir", "/nonexistent-dir"], "tmpdir '/nonexistent-dir' does not exist"),
        (
            ["--storage", "local", "--dumpdir", "/tmp"],
            "cannot use options 'storage' and 'dumpdir' at the same time",
        ),
    ],
)
def test_job_that_cannot_begin_says_why(
    lab: Path, command: Run, words: list[str], text: str
) -> None:
    outcome = command("--root", lab, 100, *words)
    assert outcome.code == 255
    assert text in outcome.err
    assert outcome.err.splitlines()[-1].startswith("TASK ERROR: ")


def test_defaults_come_from_the_nodes_file(lab: Path, command: Run) -> None:
    (lab / "etc/vzdump.conf").write_text("compress: gzip\nstop: 1\n")
    outcome = command("--root", lab, 100)
    assert outcome.code == 0
    assert [path.suffix for path in archives(lab)] == [".gz"]
    assert outcome.err.endswith("TASK OK\n")


def test_archive_to_stdout_is_whole_and_alone_there(lab: Path) -> None:
    argv = [sys.executable, "-m", "vzdump_qemu"]
    made = subprocess.run(
        [*argv, "--root", str(lab), "100", "--stdout"], check=False, capture_output=True
    )
    assert made.returncode == 0, made.stderr
    assert made.stderr.endswith(b"TASK OK\n")
    verified = subprocess.run([*argv, "verify", "-"], check=False, input=made.stdout)
    assert verified.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP])
def test_signal_ends_the_job_in_order(lab: Path, command: Run, number: signal.Signals) -> None:
    add_script(lab, SLOW_JOB)
    assert command("lab", "start", lab, 100).code == 0
    argv = [sys.executable, "-m", "vzdump_qemu", "--root", str(lab), "100"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        log = []
        for line in process.stderr:
            log.append(line)
            if "started backup task" in line or "aborting backup job" in line:
                # The second one comes while the run is undone, and changes nothing.
                os.kill(process.pid, number)
    assert process.returncode == 255
    assert "ERROR: Backup of VM 100 failed - interrupted by signal\n" in log
    assert log[-1] == "TASK ERROR: interrupted by signal\n"
    nothing_left_over(lab)
    status = json.loads(command("lab", "status", lab, "--json").out)
    assert [row["run_state"] for row in status] == ["running"]


def test_reader_of_the_log_that_goes_away_ends_the_job_in_order(lab: Path, command: Run) -> None:
    add_script(lab, SLOW_JOB)
    assert command("lab", "start", lab, 100).code == 0
    argv = [sys.executable, "-m", "vzdump_qemu", "--root", str(lab), "100"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.stderr.close()
    assert process.returncode == 255
    nothing_left_over(lab)


def test_failed_job_in_qemu_fails_the_vm_with_its_text(lab: Path, command: Run) -> None:
    add_script(lab, "[backup]\nfail_at_bytes = 131072\nfail_text = 'no luck'\n")
    outcome = command("--root", lab, 100)
    assert outcome.code == 255
    assert "ERROR: Backup of VM 100 failed - " in outcome.err
    assert "no luck" in outcome.err
    nothing_left_over(lab)


def test_old_log_style_speaks_as_in_2020(lab: Path, command: Run) -> None:
    outcome = command("--root", lab, 100, "--log-style", "2020")
    assert f"INFO: creating archive '{archives(lab)[0]}'" in outcome.err
    assert "INFO: status: 100% (" in outcome.err


def test_backup_on_a_terminal_shows_a_live_line_and_the_verdict(lab: Path, command: Run) -> None:
    assert command("lab", "start", lab, 100).code == 0
    words = ["-m", "vzdump_qemu", "--root", str(lab), "100"]
    child = pexpect.spawn(sys.executable, words, dimensions=(24, 150), encoding="utf-8", timeout=30)
    child.expect(r"VM 100 \(lab-100\) done in \ds, \S+, frozen for \d+\.\d ms: \S+\.vma")
    child.expect("TASK OK")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert len(archives(lab)) == 1
