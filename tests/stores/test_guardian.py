"""The guardian process: sent home, holding the stream, acting after a death."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from vzdump_qemu.stores.guardian import FAREWELL, HOLD, RELEASE, Guardian

pytestmark = pytest.mark.slow

REAL = "vzdump_qemu.cli.guard"
WAIT_S = 20.0
# Stands for the guardian's program: says when it has begun, and how its channel ended.
WITNESS = """\
import os, socket, sys
open(sys.argv[1] + "/begun-" + sys.argv[2], "w").write(str(os.getpid()))
word = socket.socket(fileno=0).recv(16)
open(sys.argv[1] + "/ended", "w").write(word.decode() or "death")
"""
# Writes the VM's id into the descriptor that it is to hold.
SIGNS = """\
import os, socket, sys
_, fds, _, _ = socket.recv_fds(socket.socket(fileno=0), 16, 1)
os.write(fds[0], sys.argv[1].encode())
"""
# A tool that is killed while it watches; a pipe's ends are its descriptors 3 and 4.
TOOL = """\
import os, signal, sys
from vzdump_qemu.stores.guardian import Guardian
guardian = Guardian([sys.executable, *sys.argv[1:]])
with guardian.watch(100):
    guardian.of_vm(100).hold(int(os.environ["READ_FD"]))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def witness(tmp_path: Path) -> Guardian:
    return Guardian([sys.executable, "-c", WITNESS, str(tmp_path)])


class RealGuard:
    """The real guardian's program on a control socket of ours, watching a folder without a node."""

    def __init__(self, root: Path) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = subprocess.Popen(
            [sys.executable, "-m", REAL, str(root), "100"],
            stdin=theirs.fileno(),
            stderr=subprocess.DEVNULL,
        )
        theirs.close()

    def hold(self, fd: int) -> None:
        socket.send_fds(self.control, [HOLD], [fd])

    def wait(self) -> int:
        return self.process.wait(WAIT_S)


@pytest.fixture
def guard(tmp_path: Path) -> Iterator[RealGuard]:
    guard = RealGuard(tmp_path)
    yield guard
    guard.control.close()
    guard.process.kill()
    guard.process.wait()


def is_readerless(write_fd: int) -> bool:
    """Whether a write would break now."""
    poll = select.poll()
    poll.register(write_fd, 0)
    return bool(poll.poll(0)) and bool(poll.poll(0)[0][1] & select.POLLERR)


def wait_for(path: Path) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline_s, path
        time.sleep(0.01)


def wait_until_readerless(write_fd: int) -> bool:
    poll = select.poll()
    poll.register(write_fd, 0)
    return bool(poll.poll(WAIT_S * 1000))


def test_program_starts_with_the_vms_id_and_ends_by_the_farewell(
    witness: Guardian, tmp_path: Path
) -> None:
    with witness.watch(100) as send_home:
        send_home()
    assert (tmp_path / "ended").read_text() == FAREWELL.decode()
    pid = int((tmp_path / "begun-100").read_text())
    assert not Path(f"/proc/{pid}").exists()


def test_end_without_a_farewell_is_a_death(witness: Guardian, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), witness.watch(100):
        wait_for(tmp_path / "begun-100")
        raise ZeroDivisionError
    pid = int((tmp_path / "begun-100").read_text())
    with suppress(ChildProcessError):  # reaped already when the next child was started
        os.waitpid(pid, 0)
    assert (tmp_path / "ended").read_text() == "death"


def test_watching_again_starts_another(witness: Guardian, tmp_path: Path) -> None:
    for vmid in (100, 200):
        with witness.watch(vmid) as send_home:
            send_home()
    assert (tmp_path / "begun-100").exists()
    assert (tmp_path / "begun-200").exists()


def test_each_of_two_vms_at_once_has_a_guardian_of_its_own() -> None:
    guardian = Guardian([sys.executable, "-c", SIGNS])
    read_fd, write_fd = os.pipe()
    with guardian.watch(100) as first, guardian.watch(200) as second:
        for vmid in (100, 200):
            guardian.of_vm(vmid).hold(write_fd)
            assert os.read(read_fd, 16) == str(vmid).encode()
        first()
        second()
    os.close(read_fd)
    os.close(write_fd)


def test_program_that_cannot_be_started_does_not_end_the_run() -> None:
    guardian = Guardian(["/nonexistent/program"])
    with guardian.watch(100):
        guardian.of_vm(100).hold(0)
        guardian.of_vm(100).release()


def test_guardian_that_died_does_not_end_the_run() -> None:
    guardian = Guardian([sys.executable, "-c", "raise SystemExit(1)"])
    with guardian.watch(100):
        for _ in range(50):
            guardian.of_vm(100).hold(0)
            guardian.of_vm(100).release()


def test_holding_without_a_watch_does_nothing(witness: Guardian) -> None:
    before = set(os.listdir("/proc/self/fd"))
    witness.of_vm(100).hold(0)
    witness.of_vm(100).release()
    assert set(os.listdir("/proc/self/fd")) == before


def test_real_guardian_ends_well_after_a_farewell(guard: RealGuard) -> None:
    guard.control.send(FAREWELL)
    assert guard.wait() == 0


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT], ids=lambda n: n.name
)
def test_real_guardian_outlives_what_ends_its_tool(
    guard: RealGuard, number: signal.Signals
) -> None:
    read_fd, write_fd = os.pipe()
    guard.hold(read_fd)
    os.close(read_fd)
    guard.control.send(RELEASE)
    assert wait_until_readerless(write_fd)  # it is up: its signals are set
    os.close(write_fd)
    guard.process.send_signal(number)
    guard.control.send(FAREWELL)
    assert guard.wait() == 0


def test_released_descriptor_is_closed(guard: RealGuard) -> None:
    read_fd, write_fd = os.pipe()
    guard.hold(read_fd)
    os.close(read_fd)
    assert not is_readerless(write_fd)
    guard.control.send(RELEASE)
    assert wait_until_readerless(write_fd)
    os.close(write_fd)


def test_recovery_that_cannot_begin_is_told_by_the_exit_status(guard: RealGuard) -> None:
    guard.control.close()
    assert guard.wait() == 1


def test_writer_is_served_after_the_death_until_it_closes_although_recovery_failed(
    guard: RealGuard,
) -> None:
    read_fd, write_fd = os.pipe()
    guard.hold(read_fd)
    os.close(read_fd)
    guard.control.close()
    # Far more than a pipe holds, and long after recovery gave up: neither stuck nor broken.
    for _ in range(64):
        assert os.write(write_fd, bytes(1 << 16)) == 1 << 16
    with pytest.raises(subprocess.TimeoutExpired):
        guard.process.wait(0.7)
    assert os.write(write_fd, b"x") == 1
    os.close(write_fd)
    assert guard.wait() == 1


@pytest.fixture
def killed_tool(tmp_path: Path) -> Callable[..., int]:
    """Runs a tool that is killed while it watches; returns the pipe's write end."""

    def run(*argv: str) -> int:
        read_fd, write_fd = os.pipe()
        done = subprocess.run(
            [sys.executable, "-c", TOOL, *argv],
            check=False,
            pass_fds=[read_fd],
            env=os.environ | {"READ_FD": str(read_fd)},
            timeout=WAIT_S,
        )
        assert done.returncode == -signal.SIGKILL
        os.close(read_fd)
        return write_fd

    return run


def test_killed_tools_guardian_reads_on_for_the_writer(
    tmp_path: Path, killed_tool: Callable[..., int]
) -> None:
    write_fd = killed_tool("-m", REAL, str(tmp_path))
    for _ in range(64):
        assert os.write(write_fd, bytes(1 << 16)) == 1 << 16
    os.close(write_fd)
