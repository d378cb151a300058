"""The real agent of the contract: one guest, booted once, asked by all tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from integration.guest import HOOK_REFUSAL, build_guest
from tests.contract.agents import AgentClient, AgentSubject
from tests.contract.fakes import SocketChannel
from tests.contract.selection import Offer
from tests.contract.subject import MIB, Channel, Closed, Silence

QEMU = "qemu-system-x86_64"
_UP_WITHIN_S = 90.0
_BUSYBOX = "/bin/busybox"


class _RealAgent:
    name = "real-agent"

    def __init__(self, path: str) -> None:
        self._path = path
        self._channels: list[SocketChannel] = []

    def open_agent(self) -> Channel:
        channel = SocketChannel(self._path)
        self._channels.append(channel)
        return channel

    def refuse_freezes(self, *, refused: bool) -> None:
        # The guest has one agent port, and the test holds it: a short turn in between.
        channel = self._channels[-1]
        client = AgentClient(channel)
        words = ["touch" if refused else "rm", HOOK_REFUSAL]
        pid = client.ask("guest-exec", path=_BUSYBOX, arg=words)["pid"]
        while not client.ask("guest-exec-status", pid=pid)["exited"]:
            pass

    def close(self) -> None:
        """Close every channel."""
        for channel in self._channels:
            channel.close()


def _missing() -> str:
    if shutil.which(QEMU) is None:
        return f"{QEMU} is not installed"
    if shutil.which("mkfs.ext4", path=_path()) is None:
        return "mkfs.ext4 is not installed"
    return ""


def _path() -> str:
    return f"{os.environ['PATH']}:/sbin:/usr/sbin"


@contextlib.contextmanager
def _booted() -> Iterator[AgentSubject]:
    with tempfile.TemporaryDirectory(prefix="vzc-", dir="/tmp") as name:
        directory = Path(name)
        guest = build_guest(directory)
        disk, agent_path = directory / "disk.raw", directory / "agent.sock"
        with open(disk, "wb") as file:
            file.truncate(16 * MIB)
        subprocess.run(["mkfs.ext4", "-q", disk], check=True, env=os.environ | {"PATH": _path()})
        words = [QEMU, "-nodefaults", "-display", "none", "-machine", "q35", "-accel", "tcg"]
        words += ["-cpu", "max", "-m", "256", "-no-reboot"]
        words += ["-kernel", str(guest.kernel), "-initrd", str(guest.initramfs)]
        words += ["-append", "console=ttyS0 panic=-1 quiet"]
        words += ["-serial", f"file:{directory / 'console'}"]
        words += ["-drive", f"file={disk},format=raw,if=virtio"]
        words += ["-chardev", f"socket,id=agent0,path={agent_path},server=on,wait=off"]
        words += ["-device", "virtio-serial-pci"]
        words += ["-device", "virtserialport,chardev=agent0,name=org.qemu.guest_agent.0"]
        process = subprocess.Popen(words)
        subject = _RealAgent(str(agent_path))
        try:
            _wait_for(subject, process, directory / "console")
            yield subject
        finally:
            subject.close()
            process.kill()
            process.wait()


def _wait_for(subject: _RealAgent, process: subprocess.Popen[bytes], console: Path) -> None:
    deadline_s = time.monotonic() + _UP_WITHIN_S
    while True:
        assert process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < deadline_s, console.read_text(errors="replace")
        with contextlib.suppress(OSError, Silence, Closed):
            with contextlib.closing(subject.open_agent()) as channel:
                channel.send(b'{"execute": "guest-ping"}\n')
                channel.receive_line(2.0)
                AgentClient(channel)
            return
        time.sleep(0.1)


# Whether a guest can be built is found out when it is: integration/conftest tells it beforehand.
REAL_AGENTS = {"real-agent": Offer(frozenset(), _booted, _missing())}
