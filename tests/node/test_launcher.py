"""Starting and stopping a folder node's VM, with a real QEMU."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from vzdump_qemu.errors import AgentUnreachable, PowerError
from vzdump_qemu.node.launcher import LauncherConnections, QemuLauncher
from vzdump_qemu.node.layout import NodeLayout
from vzdump_qemu.node.processes import ProcessTable
from vzdump_qemu.qemu.agent_connection import connect_agent
from vzdump_qemu.qemu.command_line import DriveSpec, MachineSpec
from vzdump_qemu.qemu.qmp_connection import connect_qmp
from vzdump_qemu.qemu.request_ids import RequestIds

ALL_KINDS = ("scsi0", "scsi30", "virtio0", "ide0", "sata5", "efidisk0")


class Bench:
    """A launcher for VM 100 below a directory, and what it looks like from outside."""

    def __init__(self, root: Path, binary: str, **changes) -> None:
        self.layout = NodeLayout(root=str(root), node_name="lab")
        disks = []
        for key in changes.pop("keys", ("scsi0",)):
            path = root / f"{key}, odd.raw"
            path.write_bytes(bytes(1024 * 1024))
            disks.append(DriveSpec(key=key, path=str(path), format="raw"))
        values = {"vmid": 100, "name": "x", "memory_mib": 32, "core_count": 1, "socket_count": 1}
        values |= {"drives": disks, "has_agent": True, "has_serial": True} | changes
        self.spec = MachineSpec(**values)
        self.ids = RequestIds(os.getpid())
        self.table = ProcessTable(any_program=True)
        self.launcher = QemuLauncher(
            self.layout,
            100,
            binary=binary,
            accelerator="tcg",
            table=self.table,
            read_spec=self.read_spec,
            connections=LauncherConnections(
                connect_qmp=self.connect_qmp, connect_agent=self.connect_agent
            ),
        )

    async def read_spec(self) -> MachineSpec:
        return self.spec

    def connect_qmp(self, timeout_s: float):
        path = self.layout.qmp_socket(100)
        return connect_qmp(path, vmid=100, timeout_s=timeout_s, request_ids=self.ids)

    def connect_agent(self, timeout_s: float):
        path = self.layout.agent_socket(100)
        return connect_agent(path, vmid=100, timeout_s=timeout_s, request_ids=self.ids)

    @property
    def pid(self) -> int | None:
        return self.table.find_qemu(self.layout.pid_file(100))

    async def ask(self, command: str, arguments=None):
        async with self.connect_qmp(10) as qmp:
            return await qmp.execute(command, arguments, timeout_s=10)

    def left_over(self) -> list[str]:
        directory = self.layout.runtime_directory
        return sorted(os.listdir(directory)) if os.path.isdir(directory) else []


@pytest.fixture
async def make_bench(short_directory):
    made = []

    def make(binary: str, **changes) -> Bench:
        made.append(Bench(short_directory, binary, **changes))
        return made[-1]

    yield make
    for bench in made:
        if bench.pid is not None:
            await bench.launcher.stop()


def _script(directory: Path, text: str) -> str:
    path = directory / "qemu-fake"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.slow
async def test_start_paused_is_prelaunch_with_all_drive_ids(make_bench, qemu_binary):
    bench = make_bench(qemu_binary, keys=ALL_KINDS)
    assert await bench.launcher.start_paused() == []
    assert bench.pid is not None
    assert (await bench.ask("query-status"))["status"] == "prelaunch"
    blocks = await bench.ask("query-block")
    devices = {block["device"] for block in blocks}
    assert devices == {f"drive-{key}" for key in ALL_KINDS}
    assert bench.left_over() == ["100.pid", "100.qga", "100.qmp", "100.serial0"]


@pytest.mark.slow
async def test_agent_of_machine_without_a_guest_is_unreachable(make_bench, qemu_binary):
    bench = make_bench(qemu_binary)
    await bench.launcher.start_paused()
    with pytest.raises(AgentUnreachable, match=r"^VM 100 qga command failed - got timeout$"):
        async with bench.connect_agent(0.2):
            pass


@pytest.mark.slow
async def test_start_then_suspend_resume_stop(make_bench, qemu_binary):
    bench = make_bench(qemu_binary)
    await bench.launcher.start()
    assert (await bench.ask("query-status"))["status"] == "running"
    await bench.launcher.suspend()
    assert (await bench.ask("query-status"))["status"] == "paused"
    with pytest.raises(PowerError, match=r"^VM is paused - cannot shutdown$"):
        await bench.launcher.shut_down(timeout_s=1)
    await bench.launcher.resume()
    await bench.launcher.resume()
    assert (await bench.ask("query-status"))["status"] == "running"
    pid = bench.pid
    assert await bench.launcher.stop() == []
    assert bench.pid is None
    assert not os.path.exists(f"/proc/{pid}/cmdline") or _is_zombie_of_another(pid)
    assert bench.left_over() == []


def _is_zombie_of_another(pid: int) -> bool:
    """A daemon's parent is the system's first process; reaping it is that one's business."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return fields[0] == "Z" and int(fields[1]) != os.getpid()


@pytest.mark.slow
async def test_start_twice_is_refused(make_bench, qemu_binary):
    bench = make_bench(qemu_binary)
    await bench.launcher.start_paused()
    with pytest.raises(PowerError, match=r"^VM 100 already running$"):
        await bench.launcher.start()
    assert bench.pid is not None


@pytest.mark.slow
async def test_two_starts_at_once_leave_one_running_vm(make_bench, qemu_binary):
    bench = make_bench(qemu_binary)
    results = await asyncio.gather(
        bench.launcher.start_paused(), bench.launcher.start_paused(), return_exceptions=True
    )
    assert sorted(str(result) for result in results) == ["VM 100 already running", "[]"]
    assert (await bench.ask("query-status"))["status"] == "prelaunch"


@pytest.mark.slow
async def test_shut_down_guest_that_ignores_the_button_times_out(make_bench, qemu_binary):
    bench = make_bench(qemu_binary, has_agent=False)
    await bench.launcher.start()
    with pytest.raises(PowerError, match=r"^VM quit/powerdown failed - got timeout$"):
        await bench.launcher.shut_down(timeout_s=0.3)
    assert bench.pid is not None


@pytest.mark.slow
async def test_start_error_of_qemu_is_one_line_and_leaves_nothing(make_bench, qemu_binary):
    drive = DriveSpec(key="scsi0", path="/nonexistent/disk.raw", format="raw")
    bench = make_bench(qemu_binary, drives=[drive])
    with pytest.raises(PowerError) as caught:
        await bench.launcher.start()
    text = str(caught.value)
    assert text.startswith("start failed: qemu-system-x86_64:")
    assert "Could not open '/nonexistent/disk.raw': No such file or directory" in text
    assert "\n" not in text
    assert bench.left_over() == []


@pytest.mark.slow
async def test_start_removes_stale_sockets(make_bench, qemu_binary):
    bench = make_bench(qemu_binary)
    os.makedirs(bench.layout.runtime_directory)
    for path in bench.layout.runtime_files(100):
        Path(path).write_text("99999999\n")
    await bench.launcher.start_paused()
    assert (await bench.ask("query-status"))["status"] == "prelaunch"


@pytest.mark.slow
async def test_stop_of_stuck_qemu_ends_it_by_signal(make_bench, qemu_binary, monkeypatch):
    from vzdump_qemu.node import launcher

    bench = make_bench(qemu_binary)
    await bench.launcher.start_paused()
    os.kill(bench.pid, signal.SIGSTOP)
    monkeypatch.setattr(launcher, "CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setattr(launcher, "_HARD_SIGNALS", ((signal.SIGTERM, 0.2), (signal.SIGKILL, 10.0)))
    lines = await bench.launcher.stop()
    assert lines[1:] == [
        "VM still running - terminating now with SIGTERM",
        "VM still running - terminating now with SIGKILL",
    ]
    assert lines[0].startswith("VM quit/powerdown failed - unable to connect to VM 100 qmp")
    assert bench.pid is None
    assert bench.left_over() == []


@pytest.mark.slow
async def test_start_cancelled_leaves_no_process(make_bench, short_directory):
    marker = short_directory / "started"
    binary = _script(short_directory, f"echo $$ > {shlex.quote(str(marker))}; exec sleep 60")
    bench = make_bench(binary)
    task = asyncio.create_task(bench.launcher.start())
    while not (marker.exists() and marker.read_text().strip()):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not os.path.exists(f"/proc/{int(marker.read_text())}")
    assert bench.left_over() == []


async def test_start_of_missing_program_is_an_error(make_bench):
    bench = make_bench("/nonexistent/qemu")
    with pytest.raises(PowerError) as caught:
        await bench.launcher.start()
    assert str(caught.value) == "start failed: /nonexistent/qemu: No such file or directory"


async def test_start_program_fails_silently_tells_its_status(make_bench, short_directory):
    bench = make_bench(_script(short_directory, "exit 7"))
    with pytest.raises(PowerError, match=r"^start failed: QEMU exited with code 7$"):
        await bench.launcher.start()


async def test_start_program_ends_without_daemon_is_an_error(make_bench, short_directory):
    bench = make_bench(_script(short_directory, "exit 0"))
    with pytest.raises(PowerError, match=r"^start failed: QEMU ended right after its start$"):
        await bench.launcher.start()


async def test_start_template_is_refused(make_bench):
    bench = make_bench("/nonexistent/qemu", is_template=True)
    with pytest.raises(PowerError, match=r"^you can't start a vm if it's a template$"):
        await bench.launcher.start()


async def test_start_below_too_long_path_is_refused(tmp_path):
    bench = Bench(tmp_path, "/nonexistent/qemu")
    bench.launcher._layout = NodeLayout(root="/" + "x" * 100, node_name="lab")
    with pytest.raises(PowerError, match=r"is too long$") as caught:
        await bench.launcher.start()
    assert caught.value.hint == "put the lab into a directory with a shorter path"


async def test_not_running_vm_cannot_be_suspended_or_resumed(make_bench):
    bench = make_bench("/nonexistent/qemu")
    for act in (bench.launcher.suspend, bench.launcher.resume):
        with pytest.raises(PowerError, match=r"^VM 100 not running$"):
            await act()
    assert await bench.launcher.shut_down(timeout_s=1) == ()
    assert await bench.launcher.stop() == []


def test_real_qemu_version_is_told(qemu_binary):
    text = subprocess.run([qemu_binary, "--version"], capture_output=True, check=True).stdout
    assert text.startswith(b"QEMU emulator version")
