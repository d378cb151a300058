"""``vzsim-qemu`` and ``vzsim serve`` as real processes over real sockets."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.blocking_client import BlockingClient
from vzdump_qemu.formats.vma import DataRead, HeaderRead, VmaReader

pytestmark = pytest.mark.slow
_MIB = 1 << 20
_PROGRAM = str(Path(sys.executable).parent / "vzsim-qemu")


class _Launched:
    """A stand-in started with the line a launcher uses."""

    def __init__(self, root: Path, script: str = "", extra: tuple[str, ...] = ()) -> None:
        self.root = root
        self.disks = []
        drives: list[str] = []
        for index, size in enumerate((8, 4)):
            path = root / f"disk,{index}.raw"
            path.write_bytes(random.Random(index).randbytes(size * _MIB))
            self.disks.append(path)
            escaped = str(path).replace(",", ",,")
            drives += [
                "-drive", f"if=none,id=drive-scsi{index},file={escaped},format=raw",
                "-device", f"scsi-hd,bus=scsihw0.0,drive=drive-scsi{index},id=scsi{index}",
            ]  # fmt: skip
        (root / "script.toml").write_text(script, "utf-8")
        self.pid_file = root / "100.pid"
        self.line = [
            _PROGRAM, "-id", "100", "-name", "x", "-no-shutdown",
            "-chardev", f"socket,id=qmp,path={root}/qmp,server=on,wait=off",
            "-mon", "chardev=qmp,mode=control",
            "-chardev", f"socket,path={root}/agent,server=on,wait=off,id=agent0",
            "-device", "virtio-serial,id=serial0",
            "-device", "virtserialport,chardev=agent0,name=org.qemu.guest_agent.0",
            "-pidfile", str(self.pid_file), "-daemonize", "-m", "512", "-smp", "1",
            "-machine", "q35,accel=tcg", "-display", "none", "-nodefaults", "-vga", "none",
            "-serial", f"unix:{root}/serial,server=on,wait=off",
            *drives, *extra,
        ]  # fmt: skip

    def start(self) -> subprocess.CompletedProcess[str]:
        # Nothing of the tests' own environment may be needed.
        environment = {"VZSIM_SCRIPT": str(self.root / "script.toml")}
        return subprocess.run(
            self.line,
            env=environment,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )

    @property
    def pid(self) -> int:
        return int(self.pid_file.read_text("ascii"))

    def kill(self) -> None:
        if self.pid_file.exists():
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                return


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[_Launched]:
    machine = _Launched(
        tmp_path,
        script=f'[guest]\nwrites_per_s = 400\nkeep_point_in_time = "{tmp_path}/kept"\n',
    )
    try:
        yield machine
    finally:
        machine.kill()


def _wait_for_end(pid: int) -> None:
    descriptor = os.pidfd_open(pid)
    try:
        assert select.select([descriptor], [], [], 20)[0]
    finally:
        os.close(descriptor)


def test_daemon_is_recognisable_and_leaves_nothing_on_sigterm(launched: _Launched) -> None:
    result = launched.start()
    assert (result.returncode, result.stderr) == (0, "")
    pid = launched.pid
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    assert words[0].rsplit(b"/", 1)[-1].startswith(b"qemu-")
    assert words[words.index(b"-pidfile") + 1].decode() == str(launched.pid_file)
    client = BlockingClient(launched.root / "qmp")
    client.negotiate()
    os.kill(pid, signal.SIGTERM)
    assert json.loads(client.line())["event"] == "SHUTDOWN"
    assert client.line() == b""
    _wait_for_end(pid)
    assert not launched.pid_file.exists()
    assert not (launched.root / "qmp").exists()


def test_backup_over_descriptor_with_writing_guest_equals_disks_at_the_start(
    launched: _Launched,
) -> None:
    launched.start()
    client, agent = BlockingClient(launched.root / "qmp"), BlockingClient(launched.root / "agent")
    client.negotiate()
    assert agent.ask("guest-sync-delimited", id=3) == 3
    assert agent.ask("guest-fsfreeze-freeze") == 1
    read_fd, write_fd = os.pipe()
    client.ask("getfd", (write_fd,), fdname="backup")
    os.close(write_fd)
    stream = bytearray()

    def drain() -> None:
        with os.fdopen(read_fd, "rb") as file:
            while data := file.read1(1 << 16):
                stream.extend(data)

    reader = threading.Thread(target=drain)
    reader.start()
    reply = client.ask(
        "backup",
        backup_file="/dev/fdname/backup",
        devlist="drive-scsi0,drive-scsi1",
        speed=16 * _MIB,
    )
    assert agent.ask("guest-fsfreeze-thaw") == 1
    reader.join(20)
    assert client.ask("query-backup")["status"] == "done"
    decoder, disks = VmaReader(), {1: bytearray(8 * _MIB), 2: bytearray(4 * _MIB)}
    decoder.feed(bytes(stream))
    while (event := decoder.next_event()) is not None:
        if isinstance(event, HeaderRead):
            assert event.header.uuid.hex() == reply["UUID"].replace("-", "")
        if isinstance(event, DataRead):
            at = event.disk_offset_bytes
            disks[event.vma_dev_id][at : at + len(event.data)] = event.data
    decoder.finish()
    for number, name in ((1, "drive-scsi0"), (2, "drive-scsi1")):
        kept = (launched.root / "kept" / f"{name}.raw").read_bytes()
        assert kept == bytes(disks[number])
        assert kept != launched.disks[number - 1].read_bytes()
    client.ask("quit")


def test_cancel_with_stalled_pipe_waits_for_the_reader(launched: _Launched) -> None:
    launched.start()
    client = BlockingClient(launched.root / "qmp")
    client.negotiate()
    read_fd, write_fd = os.pipe()
    client.ask("getfd", (write_fd,), fdname="backup")
    os.close(write_fd)
    client.ask("backup", backup_file="/dev/fdname/backup")
    while client.ask("query-backup")["transferred"] < 58 * 65536:
        pass
    is_closing = threading.Event()

    def close() -> None:
        is_closing.set()
        os.close(read_fd)

    threading.Timer(0.3, close).start()
    assert client.ask("backup-cancel") == {}
    assert is_closing.is_set()
    state = client.ask("query-backup")
    assert (state["status"], state["errmsg"]) == ("error", "backup canceled")
    client.ask("quit")


def _wait_until_done(client: BlockingClient) -> dict[str, Any]:
    while True:
        state: dict[str, Any] = client.ask("query-backup")
        if state["status"] != "active":
            return state


def test_backup_to_path_command_and_fifo(launched: _Launched) -> None:
    launched.start()
    client, root = BlockingClient(launched.root / "qmp"), launched.root
    client.negotiate()
    fifo = root / "fifo"
    os.mkfifo(fifo)
    refused = client.ask("backup", backup_file=str(fifo))
    assert refused["desc"] == f"can't open file {fifo} - No such device or address\n"
    reader = subprocess.Popen(["sh", "-c", f"cat {fifo} > {root}/fifo.vma"])
    while "desc" in client.ask("backup", backup_file=str(fifo)):
        pass
    assert _wait_until_done(client)["status"] == "done"
    assert reader.wait(10) == 0
    for target in (str(root / "path.vma"), f"exec:cat > {root}/exec.vma"):
        client.ask("backup", backup_file=target)
        assert _wait_until_done(client)["status"] == "done"
    sizes = {(root / name).stat().st_size for name in ("fifo.vma", "path.vma", "exec.vma")}
    assert len(sizes) == 1
    again = client.ask("backup", backup_file=str(root / "path.vma"))
    assert again["desc"].endswith(" - File exists\n")
    client.ask("quit")


def test_second_client_is_served_when_the_first_leaves(launched: _Launched) -> None:
    launched.start()
    first = BlockingClient(launched.root / "qmp")
    first.negotiate()
    second = BlockingClient(launched.root / "qmp")
    assert first.ask("query-status")["status"] == "running"
    first.close()
    second.negotiate()
    assert second.ask("query-status")["running"] is True


def test_device_named_twice_kills_the_process(launched: _Launched) -> None:
    launched.start()
    client, pid = BlockingClient(launched.root / "qmp"), launched.pid
    client.negotiate()
    path = launched.root / "never.vma"
    client._socket.sendall(
        json.dumps(
            {
                "execute": "backup",
                "arguments": {"backup-file": str(path), "devlist": "drive-scsi0,drive-scsi0"},
            }
        ).encode()
    )
    while client.line():
        pass
    _wait_for_end(pid)
    assert launched.pid_file.exists()


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        (("-nonsense",), "qemu-vzsim: -nonsense: invalid option\n"),
        (("-drive", "if=none,id=x,file=/nowhere"), "No such file or directory"),
        (("-mon", "chardev=nope,mode=control"), 'chardev "nope" not found'),
    ],
)
def test_bad_command_line_ends_with_one_line_and_status_1(
    tmp_path: Path, extra: tuple[str, ...], text: str
) -> None:
    result = _Launched(tmp_path, extra=extra).start()
    assert result.returncode == 1
    assert text in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "100.pid").exists()


def test_script_with_unknown_key_ends_with_one_line(tmp_path: Path) -> None:
    result = _Launched(tmp_path, script="[backup]\nspeeed = 1\n").start()
    assert result.returncode == 1
    assert result.stderr == "qemu-vzsim: script.backup: unknown key 'speeed'\n"


def test_serve_runs_a_machine_for_any_client(tmp_path: Path) -> None:
    program = str(Path(sys.executable).parent / "vzsim")
    process = subprocess.Popen(
        [program, "serve", "--qmp", str(tmp_path / "q"), "--dialect", "upstream"]
    )
    try:
        while not (tmp_path / "q").exists():
            assert process.poll() is None
        client = BlockingClient(tmp_path / "q")
        client.negotiate()
        assert client.ask("query-block")[0]["inserted"]["image"]["virtual-size"] == 64 * _MIB
        assert client.ask("backup")["class"] == "CommandNotFound"
        client.ask("quit")
        assert process.wait(10) == 0
    finally:
        process.kill()
