"""Is the VM running: pid files and a made-up /proc."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from vzdump_qemu.node.processes import ProcessHandle, ProcessTable

PID_FILE = "/var/run/qemu-server/100.pid"
KVM = ["/usr/bin/kvm", "-id", "100", "-pidfile", PID_FILE, "-daemonize"]


@pytest.fixture
def make_table(tmp_path):
    def make(argv, *, state="S", pid=4711, name="(kvm)", any_program=False):
        directory = tmp_path / "proc" / str(pid)
        directory.mkdir(parents=True)
        (directory / "cmdline").write_bytes(b"".join(a.encode() + b"\0" for a in argv))
        (directory / "stat").write_text(f"{pid} {name} {state} 1 1 1")
        return ProcessTable(proc_path=str(tmp_path / "proc"), any_program=any_program)

    return make


def _pid_file(tmp_path, content, argv):
    path = tmp_path / "100.pid"
    path.write_text(content)
    return str(path), [str(path) if part == PID_FILE else part for part in argv]


@pytest.mark.parametrize(
    "argv",
    [
        KVM,
        ["kvm", *KVM[1:]],
        ["/usr/bin/qemu-system-x86_64", *KVM[1:]],
        ["/usr/bin/kvm", "--pidfile", PID_FILE],
    ],
)
def test_find_qemu_accepts_its_own_process(tmp_path, make_table, argv):
    path, argv = _pid_file(tmp_path, "4711\n", argv)
    assert make_table(argv).find_qemu(path) == 4711


@pytest.mark.parametrize(
    "argv",
    [
        ["/usr/bin/sleep", "-pidfile", PID_FILE],
        ["/usr/bin/kvm", "-id", "100"],
        ["/usr/bin/kvm", "-pidfile", "/var/run/qemu-server/101.pid", "-x", PID_FILE],
        ["/usr/bin/kvm", "-pidfile"],
        [],
    ],
)
def test_find_qemu_refuses_other_processes(tmp_path, make_table, argv):
    path, argv = _pid_file(tmp_path, "4711\n", argv)
    assert make_table(argv).find_qemu(path) is None


@pytest.mark.parametrize("state", ["Z", "X"])
def test_find_qemu_refuses_dead_process(tmp_path, make_table, state):
    path, argv = _pid_file(tmp_path, "4711\n", KVM)
    assert make_table(argv, state=state).find_qemu(path) is None


def test_find_qemu_program_name_with_parentheses_is_no_state(tmp_path, make_table):
    path, argv = _pid_file(tmp_path, "4711\n", KVM)
    assert make_table(argv, name="(kvm) Z (x)").find_qemu(path) == 4711


@pytest.mark.parametrize("content", ["", "abc\n", "47 11\n", " 4711\n", "-4711\n", "9" * 40])
def test_find_qemu_odd_pid_file_is_not_running(tmp_path, make_table, content):
    path, argv = _pid_file(tmp_path, content, KVM)
    assert make_table(argv).find_qemu(path) is None


def test_find_qemu_no_pid_file_or_no_process_is_not_running(tmp_path, make_table):
    path, argv = _pid_file(tmp_path, "99\n", KVM)
    table = make_table(argv)
    assert table.find_qemu(path) is None
    assert table.find_qemu(str(tmp_path / "none.pid")) is None


def test_find_qemu_stand_in_run_by_an_interpreter_counts(tmp_path, make_table):
    argv = ["/usr/bin/python3", "/opt/bin/stand-in", "-pidfile", PID_FILE]
    path, argv = _pid_file(tmp_path, "4711", argv)
    table = make_table(argv, any_program=True)
    assert table.find_qemu(path) == 4711


async def test_process_handle_waits_for_and_ends_a_real_process(tmp_path):
    path = str(tmp_path / "100.pid")
    process = subprocess.Popen(  # noqa: ASYNC220
        ["kvm", "-c", "read -r line", "-pidfile", path], executable="/bin/sh", stdin=-1
    )
    Path(path).write_text(f"{process.pid}\n")
    handle = ProcessHandle.open(ProcessTable(), path)
    assert handle is not None
    assert not await handle.wait(0.01)
    handle.send_signal(signal.SIGTERM)
    assert await handle.wait(10)
    process.wait()
    handle.send_signal(signal.SIGTERM)
    handle.close()
    handle.close()
    assert ProcessHandle.open(ProcessTable(), path) is None
    assert not os.path.exists(f"/proc/{process.pid}")


def test_qemu_without_a_pid_file_yet_is_starting(tmp_path, make_table):
    table = make_table(KVM)
    assert table.find_qemu(str(tmp_path / "100.pid")) is None
    assert table.is_starting(PID_FILE)
    assert not table.is_starting("/var/run/qemu-server/101.pid")


def test_dead_process_is_not_starting(make_table):
    assert not make_table(KVM, state="Z").is_starting(PID_FILE)
