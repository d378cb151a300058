"""VMs that no lab knows: a QEMU that a person started by hand, and the tool told of its sockets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.real_lab import QEMU, Ended, RealLab
from integration.stock_qemu.monitor import Monitor

MIB = 1 << 20
_TOOL = (sys.executable, "-m", "vzdump_qemu")


class HandVm:
    """One QEMU with its sockets in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.qmp = directory / "q"
        self.agent = directory / "a"
        self.dump = directory / "dump"
        self.state = directory / "state"
        self.dump.mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    def image(self, name: str, *, size_bytes: int = 4 * MIB, image_format: str = "raw") -> Path:
        """A disk full of chance."""
        raw = self.directory / f"{name}.raw"
        raw.write_bytes(os.urandom(size_bytes))
        if image_format == "raw":
            return raw
        path = self.directory / f"{name}.{image_format}"
        subprocess.run(["qemu-img", "convert", "-O", image_format, raw, path], check=True)
        return path

    def start(self, *words: object) -> None:
        """Start it; the words are those of its disks and devices."""
        argv = [QEMU, "-nodefaults", "-display", "none", "-accel", "tcg", "-m", "64"]
        argv += ["-qmp", f"unix:{self.qmp},server=on,wait=off", *map(str, words)]
        self._process = subprocess.Popen(argv)
        deadline_s = time.monotonic() + 30
        while not self.qmp.exists():
            assert self._process.poll() is None, "QEMU did not start"
            assert time.monotonic() < deadline_s, "QEMU made no socket"
            time.sleep(0.02)
        # The socket is there before the disks are open, which takes LUKS a while; deaf so long.
        with self.monitor():
            pass

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def monitor(self) -> Monitor:
        return Monitor(self.qmp)

    def argv(self, *words: object) -> list[str]:
        fixed = ["--qmp", self.qmp, "--dumpdir", self.dump, "--state-dir", self.state]
        return [str(word) for word in (*_TOOL, *fixed, *words)]

    def backup(self, *words: object) -> Ended:
        """One backup, however it ends."""
        done = subprocess.run(
            self.argv(*words), capture_output=True, text=True, check=False, timeout=120
        )
        assert "Traceback" not in done.stderr
        return Ended(done.returncode, done.stdout, done.stderr)

    def must(self, *words: object) -> Ended:
        ended = self.backup(*words)
        assert ended.code == 0, ended.err
        return ended

    @contextmanager
    def slow_backup(self) -> Iterator[subprocess.Popen[str]]:
        """A backup whose point in time is fixed, and that takes some seconds yet."""
        argv = self.argv("--bwlimit", 2048)
        process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if "started backup task" in line:
                    break
            yield process
        finally:
            process.kill()
            process.communicate()

    def tool(self, *words: object) -> str:
        """Another verb, which must end well."""
        argv = [str(word) for word in (*_TOOL, *words)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def archive(self) -> Path:
        [path] = self.dump.glob("*.vma*")
        return path

    def config(self) -> str:
        """The configuration in the archive."""
        return (self._extracted() / "qemu-server.conf").read_text()

    def stored(self, key: str) -> bytes:
        """What the archive holds of one disk."""
        return (self._extracted() / f"disk-drive-{key}.raw").read_bytes()

    def stored_disks(self) -> list[str]:
        """Devices of the archive."""
        return sorted(
            path.stem.removeprefix("disk-") for path in self._extracted().glob("disk-*.raw")
        )

    def _extracted(self) -> Path:
        directory = self.directory / "extracted"
        if not directory.exists():
            self.tool("extract", self.archive, directory)
        return directory

    def assert_let_go(self) -> None:
        """QEMU runs as before; of ours there is nothing in it, nor beside it."""
        with self.monitor() as monitor:
            assert not {name for name in monitor.node_names() if name.startswith("vzdump-")}
            assert monitor.execute("query-block-exports") == []
            assert monitor.execute("query-status")["status"] == "running"
        assert not list(self.directory.rglob("*fleece*"))
        assert not list(self.directory.rglob("*.journal"))
        assert not [path for path in self.state.rglob("*") if path.is_socket()]
        assert not list(self.dump.glob("*.tmp"))


def _wait(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline_s, "it did not come"
        time.sleep(0.05)


@pytest.fixture
def vm(real_lab: RealLab) -> Iterator[HandVm]:
    """A VM that is not started yet, of a QEMU that is there."""
    with tempfile.TemporaryDirectory(prefix="vzs-", dir="/tmp") as directory:
        hand = HandVm(Path(directory))
        yield hand
        # A guardian at its work would make its directory anew.
        _wait(lambda: not list(hand.state.rglob("*.journal")))
        hand.kill()


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    return _wait
