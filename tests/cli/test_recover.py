"""``vzdump-qemu recover``: puts back what killed runs left where no guardian could."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.lab_command import Run, add_script, archives

pytestmark = pytest.mark.slow

SLOW_JOB = "[backup]\nbytes_per_s = 65536\n"


def journal(lab: Path, *lines: dict[str, object], vmid: int = 100) -> Path:
    """A journal as a killed run left it."""
    path = lab / f"var/lib/vzdump-qemu/{vmid}.journal"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def note(index: int, kind: str, *names: str) -> dict[str, object]:
    return {"note": index, "kind": kind, "names": list(names)}


def set_lock(lab: Path) -> Path:
    config = lab / "etc/pve/qemu-server/100.conf"
    config.write_text("lock: backup\n" + config.read_text())
    return config


def guardian_pid(tool_pid: int) -> int:
    """Process id of the guardian that a living tool started."""
    children = Path(f"/proc/{tool_pid}/task/{tool_pid}/children").read_text().split()
    [found] = [
        int(child)
        for child in children
        if b"vzdump_qemu.cli.guard" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    return found


def test_node_without_journals_has_nothing_to_recover(lab: Path, command: Run) -> None:
    outcome = command("recover", "--root", lab)
    assert (outcome.code, outcome.out, outcome.err) == (0, "nothing to recover\n", "")


def test_root_that_is_no_node_is_a_config_error(short_path: Path, command: Run) -> None:
    outcome = command("recover", "--root", short_path)
    assert outcome.code == 10
    assert len(outcome.err.splitlines()) <= 2


def test_root_that_does_not_exist_is_a_usage_error(short_path: Path, command: Run) -> None:
    assert command("recover", "--root", short_path / "nope").code == 2


def test_empty_journal_is_removed_and_there_was_nothing_to_recover(lab: Path, command: Run) -> None:
    path = journal(lab)
    outcome = command("recover", "--root", lab)
    assert (outcome.code, outcome.out) == (0, "nothing to recover\n")
    assert not path.exists()


def test_lock_and_files_of_a_stopped_vm_are_put_back_one_line_each(lab: Path, command: Run) -> None:
    config = set_lock(lab)
    partial = lab / "var/lib/vz/dump/unfinished.vma.dat"
    partial.write_text("x")
    path = journal(lab, note(1, "unlock"), note(2, "remove-file", str(partial)))
    outcome = command("recover", "--root", lab)
    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        f"put back after an earlier run: remove-file {partial}",
        "put back after an earlier run: unlock",
        "nothing is left",
    ]
    assert "lock:" not in config.read_text()
    assert not partial.exists()
    assert not path.exists()


def test_entry_that_cannot_be_put_back_is_told_with_its_exit_code(lab: Path, command: Run) -> None:
    set_lock(lab)
    blocked = lab / "var/lib/vz/dump/directory"
    blocked.mkdir()
    path = journal(lab, note(1, "unlock"), note(2, "remove-file", str(blocked)))
    outcome = command("recover", "--root", lab)
    assert outcome.code == 12
    assert f"remove-file {blocked} of an earlier run: " in outcome.err
    assert "not everything could be put back: VM 100" in outcome.err
    assert path.exists()
    blocked.rmdir()
    again = command("recover", "--root", lab)
    assert again.code == 0
    assert again.out.splitlines()[-1] == "nothing is left"
    assert not path.exists()


def test_unreadable_journal_is_named_and_the_other_vm_recovered(lab: Path, command: Run) -> None:
    config = set_lock(lab)
    broken = journal(lab, vmid=50)
    broken.write_text("nonsense\n")
    journal(lab, note(1, "unlock"))
    outcome = command("recover", "--root", lab)
    assert outcome.code == 12
    assert f"recover VM 50: the journal '{broken}' of a killed run cannot be read" in outcome.err
    assert "lock:" not in config.read_text()


def test_lock_waits_for_the_job_that_holds_the_node(lab: Path, command: Run) -> None:
    config = set_lock(lab)
    path = journal(lab, note(1, "unlock"))
    fd = os.open(lab / "var/run/vzdump.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        argv = [sys.executable, "-m", "vzdump_qemu", "recover", "--root", str(lab)]
        with subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1.0)
            assert "lock: backup" in config.read_text()
            assert path.exists()
            fcntl.flock(fd, fcntl.LOCK_UN)
            assert process.wait(20) == 0
    finally:
        os.close(fd)
    assert "lock:" not in config.read_text()
    assert not path.exists()


def test_backup_after_a_kill_puts_the_vm_back_first(lab: Path, command: Run) -> None:
    set_lock(lab)
    path = journal(lab, note(1, "unlock"))
    outcome = command("--root", lab, 100)
    assert outcome.code == 0, outcome.err
    assert "WARN: put back after an earlier run: unlock" in outcome.err
    assert not path.exists()


def test_run_killed_with_its_guardian_is_put_back(
    lab: Path, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_script(lab, SLOW_JOB)
    assert command("lab", "start", lab, 100).code == 0
    # A relative root is found by the guardian as well, whose working directory is another.
    monkeypatch.chdir(lab.parent)
    argv = [sys.executable, "-m", "vzdump_qemu", "--root", lab.name, "100"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if re.search("started backup task", line):
                os.kill(guardian_pid(process.pid), signal.SIGKILL)
                os.kill(process.pid, signal.SIGKILL)
                break
    path = lab / "var/lib/vzdump-qemu/100.journal"
    assert path.exists()
    assert "lock: backup" in (lab / "etc/pve/qemu-server/100.conf").read_text()

    outcome = command("recover", "--root", lab)
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == "nothing is left"
    assert not path.exists()
    assert archives(lab) == []
    assert {entry.suffix for entry in (lab / "var/lib/vz/dump").iterdir()} <= {".log"}
    assert "lock:" not in (lab / "etc/pve/qemu-server/100.conf").read_text()
    [status] = json.loads(command("lab", "status", lab, "--json").out)
    assert status["run_state"] == "running"
    assert command("recover", "--root", lab).out == "nothing to recover\n"


def test_killed_run_is_put_back_by_its_guardian_alone(lab: Path, command: Run) -> None:
    add_script(lab, SLOW_JOB)
    assert command("lab", "start", lab, 100).code == 0
    argv = [sys.executable, "-m", "vzdump_qemu", "--root", str(lab), "100"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "started backup task" in line:
                guardian = os.pidfd_open(guardian_pid(process.pid))
                os.kill(process.pid, signal.SIGKILL)
                break
    try:
        assert select.select([guardian], [], [], 20)[0], "the guardian does not end"
    finally:
        os.close(guardian)
    assert list((lab / "var/lib/vzdump-qemu").iterdir()) == []
    assert "lock:" not in (lab / "etc/pve/qemu-server/100.conf").read_text()
    assert {entry.suffix for entry in (lab / "var/lib/vz/dump").iterdir()} <= {".log"}
    log = (lab / "var/log/vzdump/qemu-100.log").read_text()
    assert "put back after an earlier run: cancel-job" in log
    assert "put back after an earlier run: unlock" in log
