"""Loop devices, NBD servers and an iSCSI target of this machine, as disks of VMs."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from integration.probes import SYSTEM_PATH, why_no_iscsi, why_no_loop
from integration.real_lab import RealLab
from integration.socket_vm.conftest import vm as vm
from integration.socket_vm.conftest import wait_until as wait_until

MIB = 1 << 20
# No multiple of 64 KiB, nor of 4 KiB: the last piece of an archive is a partial one.
ODD_BYTES = 8 * MIB + 3 * 512
PROGRAMS = {**os.environ, "PATH": SYSTEM_PATH}
LIMIT_S = 30.0


def host(*words: object) -> str:
    """One program of the host; what it printed."""
    done = subprocess.run(
        [str(word) for word in words], env=PROGRAMS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def data(size_bytes: int, *, seed: int) -> bytes:
    """Bytes of chance with a hole and a stretch of zeroes."""
    chance = random.Random(seed)
    pieces = bytearray(chance.randbytes(size_bytes))
    for at in range(0, size_bytes - MIB, 3 * MIB):
        pieces[at : at + MIB // 2] = bytes(MIB // 2)
    return bytes(pieces)


class Devices:
    """Devices of one test; all are gone at its end."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self._stack = stack
        self._count = 0

    def file(self, content: bytes) -> Path:
        self._count += 1
        path = self.directory / f"d{self._count}"
        path.write_bytes(content)
        return path

    def loop(self, content: bytes, *options: str) -> Path:
        """A loop device with that content."""
        path = self.file(content)
        device = Path(host("losetup", "-f", "--show", *options, path))
        self._stack.callback(host, "losetup", "-d", device)
        return device

    def partition(self, content: bytes) -> Path:
        """The one partition of a device, at an odd place."""
        first, count = 63, len(content) // 512
        disk = self.loop(bytes(first * 512) + content + bytes(4096))
        # Not by a table: the kernel of a small machine may read none.
        try:
            host("addpart", disk, 1, first, count)
        except AssertionError as error:
            pytest.skip(f"NOT covered: no partition can be made here: {error}")
        facts = Path(f"/sys/block/{disk.name}/{disk.name}p1/dev")
        major, minor = facts.read_text().split(":")
        node = self.directory / "p1"
        host("mknod", node, "b", major, minor.strip())
        self._stack.callback(host, "delpart", disk, 1)
        return node

    def qcow2(self, content: bytes) -> Path:
        """A device that holds a qcow2 image of that content."""
        raw, image = self.file(content), self.directory / "image.qcow2"
        host("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
        return self.loop(image.read_bytes().ljust(16 * MIB, b"\0"))

    def link(self, name: str, device: Path) -> None:
        """A name below /dev, as LVM and ZFS make them."""
        path = Path("/dev") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(device)
        self._stack.callback(_remove_upwards, path)

    def nbd_server(self, content: bytes, *options: object) -> Path:
        """The socket of a server of that content, for one client at a time unless said."""
        path = self.directory / "n"
        argv = ["qemu-nbd", "-f", "raw", "-t", "-k", str(path), *map(str, options)]
        self.serve([*argv, str(self.file(content))], path.exists)
        return path

    def iscsi_target(self, content: bytes) -> tuple[str, str]:
        """Portal and name of a target whose LUN 1 has that content."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            portal = f"127.0.0.1:{probe.getsockname()[1]}"
        name = f"iqn.2001-04.example:{os.getpid()}"
        control = str(os.getpid() % 30000)
        image = self.file(content)

        def is_up() -> bool:
            with suppress(AssertionError):
                return bool(host("tgtadm", "-C", control, "--op", "show", "--mode", "system"))
            return False

        self.serve(["tgtd", "-f", "-C", control, "--iscsi", f"portal={portal}"], is_up)
        for words in (
            ("--op", "new", "--mode", "target", "--tid", 1, "-T", name),
            ("--op", "new", "--mode", "logicalunit", "--tid", 1, "--lun", 1, "-b", image),
            ("--op", "bind", "--mode", "target", "--tid", 1, "-I", "ALL"),
        ):
            host("tgtadm", "-C", control, "--lld", "iscsi", *words)
        return portal, name

    def serve(self, argv: Sequence[str], is_up: Callable[[], bool]) -> None:
        process = subprocess.Popen(argv, env=PROGRAMS)
        self._stack.callback(_end, process)
        deadline_s = time.monotonic() + LIMIT_S
        while not is_up():
            assert process.poll() is None, f"{argv[0]} ended"
            assert time.monotonic() < deadline_s, f"{argv[0]} does not answer"
            time.sleep(0.02)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def _remove_upwards(path: Path) -> None:
    path.unlink()
    for parent in path.parents:
        if str(parent) == "/dev":
            return
        with suppress(OSError):
            parent.rmdir()


@pytest.fixture
def devices() -> Iterator[Devices]:
    with tempfile.TemporaryDirectory(prefix="vzb-", dir="/tmp") as name, ExitStack() as stack:
        yield Devices(Path(name), stack)


@pytest.fixture
def loops(devices: Devices) -> Devices:
    if missing := why_no_loop():
        pytest.skip(f"NOT covered: {missing}")
    return devices


@pytest.fixture
def iscsi(devices: Devices) -> Devices:
    if missing := why_no_iscsi():
        pytest.skip(f"NOT covered: {missing}")
    return devices


class BlockLab:
    """A lab whose VM 100 has one disk of the test's choice."""

    def __init__(self, lab: RealLab) -> None:
        self.lab = lab

    def create(self, volume: object, *, storages: str = "") -> None:
        """Make the VM with that value of ``scsi0``."""
        self.lab.create("--disk", "scsi0=1M")
        config = self.lab.config()
        lines = [line for line in config.read_text().splitlines() if not line.startswith("scsi0:")]
        config.write_text("\n".join([*lines, f"scsi0: {volume}", ""]))
        self.lab.image().unlink()
        if storages:
            path = self.lab.root / "etc/pve/storage.cfg"
            path.write_text(f"{path.read_text().rstrip()}\n\n{storages}")

    def start(self) -> None:
        self.lab.must("lab", "start", self.lab.root, 100)

    def back_up(self, *words: object) -> str:
        """A backup that ends well; its log."""
        return self.lab.must("--root", self.lab.root, 100, *words).err

    def stored(self) -> bytes:
        """What the one archive holds; it is whole, and restores to the same bytes."""
        [archive] = self.lab.dump.glob("*.vma*")
        assert ": whole" in self.lab.must("verify", archive).out
        self.lab.must("restore", archive, 101, "--root", self.lab.root)
        return self.lab.image(vmid=101).read_bytes()

    def assert_nothing_left(self) -> None:
        assert not list(self.lab.run_directory.glob("*.nbd"))
        assert not list(self.lab.root.rglob("*fleece*"))
        text = self.lab.config().read_text()
        assert "lock:" not in text and "fleecing" not in text
        assert not list((self.lab.root / "var/lib/vzdump-qemu").glob("*.journal"))


@pytest.fixture
def block_lab(devices: Devices, real_lab: RealLab) -> BlockLab:
    """A lab that ends before the devices do."""
    return BlockLab(real_lab)
