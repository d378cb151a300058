"""A backup is killed with SIGKILL while the guest writes: all is put back, and soon.

The guardian does it, or, where it was killed as well, ``vzdump-qemu recover``.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.lab import VMID, Lab

pytestmark = pytest.mark.slow

SCRIPT = """\
[backup]
bytes_per_s = 8388608
[agent]
freeze_delay_s = 0.1
thaw_delay_s = 0.1
[guest]
writes_per_s = 200
write_bytes = 4096
shutdown_delay_s = 0.1
"""
# The thaw alone waits longer for an agent that does not answer; this one answers.
BOUND_S = 20.0
# Event after which the tool is killed, and up to how much later.
SNAPSHOT_MOMENTS = [
    ("RunStarted", 0.2),
    ("FreezeIssued", 0.15),
    ("JobStartIssued", 0.15),
    ("JobAccepted", 0.1),
    ("JobAccepted", 0.4),
    ("TransferEnded", 0.01),
]
HALTED_MOMENTS = [
    ("suspend", "GuestSuspending", 0.2),
    ("stop", "QemuStarting", 0.2),
]


def guardians_of(tool_pid: int) -> list[int]:
    """Process ids of the guardians (one, or none yet) that a living tool started."""
    found = []
    for child in Path(f"/proc/{tool_pid}/task/{tool_pid}/children").read_text().split():
        if b"vzdump_qemu.cli.guard" in Path(f"/proc/{child}/cmdline").read_bytes():
            found.append(int(child))
    return found


def is_running_still(process: subprocess.Popen[str], for_s: float) -> bool:
    try:
        process.wait(for_s)
    except subprocess.TimeoutExpired:
        return True
    return False


def kill_at(
    lab: Lab, event: str, within_s: float, *words: str, guardian_too: bool = False
) -> list[int]:
    """Kill a backup at a moment after its event that its own seed tells.

    Returns: handles (pidfds) of the guardians that it leaves.
    """
    delay_s = random.Random(f"{event} {within_s}").uniform(0, within_s)
    with lab.spawn_backup(*words) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if json.loads(line)["event"] == event:
                break
        else:
            raise AssertionError(process.stderr.read())
        if is_running_still(process, delay_s):
            # Nothing starts or ends between the look and the kill.
            process.send_signal(signal.SIGSTOP)
            try:
                pids = guardians_of(process.pid)
                handles = [os.pidfd_open(pid) for pid in pids]
                if guardian_too:
                    assert len(pids) == 1
                    os.kill(pids[0], signal.SIGKILL)
            finally:
                process.kill()
        else:
            raise AssertionError(f"the backup ended before its kill {delay_s:.3f} s after {event}")
    return handles


def await_end(handles: list[int]) -> None:
    for handle in handles:
        assert select.select([handle], [], [], BOUND_S)[0], "the guardian does not end"
        os.close(handle)


def ask_agent(lab: Lab, command: str) -> Any:
    """One request to the guest's agent."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(BOUND_S)
        channel.connect(str(lab.run_directory / f"{VMID}.qga"))
        for message in ({"execute": "guest-sync", "arguments": {"id": 7}}, {"execute": command}):
            channel.sendall(json.dumps(message).encode() + b"\n")
        with channel.makefile("rb") as lines:
            assert json.loads(lines.readline())["return"] == 7
            return json.loads(lines.readline())["return"]


def job_error(lab: Lab) -> str:
    """What QEMU says of the job's end; empty if it had none, or a good one."""
    with lab.connect() as client:
        return str(client.ask("query-backup").get("errmsg", ""))


def until(condition: Callable[[], bool]) -> bool:
    """Whether it becomes true in time."""
    deadline_s = time.monotonic() + BOUND_S
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        threading.Event().wait(0.01)
    return True


def assert_guest_writes(lab: Lab) -> None:
    """The guest's writes go on: none hangs on what is left of a job."""
    disks = sorted((lab.root / f"var/lib/vz/images/{VMID}").iterdir())

    def contents() -> list[bytes]:
        return [disk.read_bytes() for disk in disks]

    before = contents()
    assert until(lambda: contents() != before)


def assert_put_back(lab: Lab) -> None:
    """As if there had been no backup; one that had been proved may have its name."""
    assert lab.open_journals() == []
    archives = lab.archives()
    lab.assert_clean("running", archive_count=len(archives))
    for archive in archives:
        lab.must("verify", archive)
    assert ask_agent(lab, "guest-fsfreeze-status") == "thawed"
    assert_guest_writes(lab)
    lab.assert_next_backup_good(restart=False)


@pytest.mark.parametrize(("event", "within_s"), SNAPSHOT_MOMENTS, ids=str)
def test_killed_backup_of_a_writing_guest_is_put_back_by_its_guardian(
    lab: Lab, event: str, within_s: float
) -> None:
    lab.start(SCRIPT)
    await_end(kill_at(lab, event, within_s))
    # A broken pipe would fail the guest's writes that had to save old data first.
    assert job_error(lab) in ("", "backup canceled")
    assert_put_back(lab)


@pytest.mark.parametrize(("mode", "event", "within_s"), HALTED_MOMENTS)
def test_killed_backup_of_a_halted_guest_lets_it_run_again(
    lab: Lab, mode: str, event: str, within_s: float
) -> None:
    lab.start(SCRIPT)
    await_end(kill_at(lab, event, within_s, "--mode", mode))
    assert_put_back(lab)


@pytest.mark.parametrize(("event", "within_s"), [("JobStartIssued", 0.15), ("JobAccepted", 0.3)])
def test_backup_killed_with_its_guardian_is_put_back_by_recover(
    lab: Lab, event: str, within_s: float
) -> None:
    lab.start(SCRIPT)
    await_end(kill_at(lab, event, within_s, guardian_too=True))
    assert lab.open_journals() != []
    ended = lab.must("recover", "--root", lab.root)
    assert ended.out.splitlines()[-1] == "nothing is left"
    assert_put_back(lab)


def test_backup_killed_with_its_guardian_is_put_back_by_the_next_backup(lab: Lab) -> None:
    lab.start(SCRIPT)
    await_end(kill_at(lab, "JobAccepted", 0.2, guardian_too=True))
    ended = lab.must(*lab.backup_words())
    assert "WARN: put back after an earlier run: unlock" in ended.err.splitlines()
    assert_put_back(lab)
