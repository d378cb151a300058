"""A lab as an operator meets it: the real command, a real QEMU stand-in process, nothing faked.

Owns running the command and looking at what a run left behind; the stand-in's misbehaviour comes
from a script file that it reads when it starts.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.blocking_client import BlockingClient, open_monitor
from vzdump_qemu.node.lab import start_vm, stop_vm

TOOL = (sys.executable, "-m", "vzdump_qemu")
VMID = 100
_TIMEOUT_S = 60
_LOG_TIME = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")


@dataclass(frozen=True)
class Ended:
    """How one command line ended, and what it printed."""

    code: int
    out: str
    err: str


class Lab:
    """One lab with VM 100: two small disks, one of odd size, and an agent."""

    def __init__(self, root: Path, bin_directory: Path) -> None:
        self.root = root
        self.dump = root / "var/lib/vz/dump"
        self.run_directory = root / "var/run/qemu-server"
        self.config = root / f"etc/pve/qemu-server/{VMID}.conf"
        self.log_path = root / f"var/log/vzdump/qemu-{VMID}.log"
        self.bin_directory = bin_directory
        self._script = root / "script.toml"
        self._plain_config = b""

    def create(self) -> None:
        self.must(
            *("lab", "create", self.root, "--vm", VMID, "--disk", "scsi0=4M"),
            *("--disk", "virtio1=1049088", "--fill", 5),
        )
        with open(self.config, "a", encoding="utf-8") as config:
            config.write(f"args: -vzsim script={self._script}\n")
        self._script.write_text("")
        self._plain_config = self.config.read_bytes()

    # --- running the tool -----------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """Ours, with programs of the test's own in front."""
        return os.environ | {"PATH": f"{self.bin_directory}:{os.environ['PATH']}"}

    def tool(self, *words: object, stdin: bytes | None = None) -> Ended:
        """Run one command line to its end."""
        done = subprocess.run(
            [*TOOL, *map(str, words)],
            input=stdin,
            capture_output=True,
            check=False,
            timeout=_TIMEOUT_S,
            env=self.environment(),
        )
        err = done.stderr.decode()
        assert "Traceback" not in err
        return Ended(done.returncode, done.stdout.decode(errors="replace"), err)

    def must(self, *words: object) -> Ended:
        """Run one command line that has to end well."""
        ended = self.tool(*words)
        assert ended.code == 0, ended.err
        return ended

    def backup_words(self, *words: object) -> list[object]:
        return ["--root", self.root, VMID, "--compress", "zstd", *words]

    def spawn_backup(self, *words: object) -> subprocess.Popen[str]:
        """Start a backup whose events come as JSON lines on its standard output."""
        return subprocess.Popen(
            [*TOOL, *map(str, self.backup_words("--output", "json", *words))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(),
        )

    def back_up_and_act(
        self, on_event: Mapping[str, Any], *words: object
    ) -> tuple[int, list[dict[str, Any]]]:
        """Run a backup; call `on_event[NAME](process)` when an event of that name is first heard.

        Returns: exit code and all events.
        """
        waiting = dict(on_event)
        events: list[dict[str, Any]] = []
        with self.spawn_backup(*words) as process:
            assert process.stdout is not None and process.stderr is not None
            for line in process.stdout:
                events.append(json.loads(line))
                act = waiting.pop(events[-1]["event"], None)
                if act is not None:
                    act(process)
            assert "Traceback" not in process.stderr.read()
        return process.returncode, events

    # --- the VM ---------------------------------------------------------------------------

    def script(self, text: str) -> None:
        """What the VM's next process does differently."""
        self._script.write_text(text)

    def start(self, script: str = "", *, paused: bool = False) -> None:
        self.script(script)
        if paused:
            self.must("lab", "start", self.root, VMID, "--paused")
        else:
            asyncio.run(start_vm(str(self.root), VMID))

    def stop(self) -> None:
        asyncio.run(stop_vm(str(self.root), VMID))

    def connect(self) -> BlockingClient:
        return open_monitor(self.run_directory / f"{VMID}.qmp")

    def pid(self) -> int | None:
        """Process id of the VM, or None while there is no such process."""
        try:
            pid = int((self.run_directory / f"{VMID}.pid").read_text())
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, ValueError):
            return None
        return None if state in "XZ" else pid

    def run_state(self) -> str:
        """As QMP tells it; empty for a VM that is off."""
        if self.pid() is None:
            return ""
        with self.connect() as client:
            return str(client.ask("query-status")["status"])

    # --- what is there afterwards ---------------------------------------------------------

    def archives(self) -> list[Path]:
        return sorted(self.dump.glob("*.vma*"))

    def log(self) -> list[str]:
        """Lines of the last run's own log, without their times."""
        lines = self.log_path.read_text().splitlines()
        return [_LOG_TIME.sub("", line) for line in lines]

    def assert_clean(self, run_state: str, *, archive_count: int = 0) -> None:
        """Nothing is left of a run but its logs, and the guest is as it was."""
        left = [path.name for path in self.dump.iterdir() if path.suffix != ".log"]
        assert len(left) == archive_count, left
        assert all(name.endswith((".vma", ".vma.zst")) for name in left), left
        assert self.config.read_bytes() == self._plain_config
        assert self.run_state() == run_state
        if run_state:
            self._assert_monitor_clean()
        else:
            assert list(self.run_directory.iterdir()) == []
        assert self._foreign_processes() == []

    def _assert_monitor_clean(self) -> None:
        with self.connect() as client:
            assert client.ask("query-backup").get("status") != "active"
            # Its pipe would never end.
            assert "not found" in client.ask("closefd", fdname="backup")["desc"]

    def _foreign_processes(self) -> list[str]:
        """Command lines of processes that know this lab, its VM left out."""
        own = {str(self.pid()), str(os.getpid())}
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or entry.name in own:
                continue
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes()
                links = [os.readlink(path) for path in (entry / "fd").iterdir()]
                if any(link.startswith(str(self.dump)) for link in links):
                    found.append(words.replace(b"\0", b" ").decode(errors="replace"))
        return found

    def assert_next_backup_good(self, *, restart: bool = True) -> None:
        """A plain backup after the failed one succeeds and is whole; then it is removed.

        Args:
            restart: the VM is started anew without its script (which would fail again).
        """
        if restart:
            state = self.run_state()
            self.stop()
            self.script("")
            if state == "running":
                self.start()
        self.remove_archives()
        done = self.must(*self.backup_words())
        assert done.err.splitlines()[-1] == "TASK OK", done.err
        [path] = self.archives()
        self.must("verify", path)
        self.remove_archives()

    def open_journals(self) -> list[Path]:
        """Journals in which something stands.

        A run that is killed before it has a guardian leaves one with nothing in it.
        """
        directory = self.root / "var/lib/vzdump-qemu"
        return [path for path in directory.iterdir() if path.stat().st_size]

    def await_no_journal(self) -> None:
        """Wait until nothing is left to be put back."""
        deadline_s = time.monotonic() + _TIMEOUT_S
        while self.open_journals():
            assert time.monotonic() < deadline_s, "the journal stays"
            time.sleep(0.05)

    def remove_archives(self) -> None:
        for path in self.dump.iterdir():
            path.unlink()

    def reset(self) -> None:
        """Back to a stopped VM and an empty dump directory, whatever a test did."""
        pid = self.pid()
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.stop()
        self.config.write_bytes(self._plain_config)
        self.remove_archives()
        self.log_path.unlink(missing_ok=True)
        for path in self.bin_directory.iterdir():
            path.unlink()


def assert_cause(ended: Ended, lab: Lab, text: str) -> None:
    """The job failed, and one line of the log says why."""
    assert ended.code == 255, ended.err
    causes = [line for line in lab.log() if line.startswith("ERROR: Backup of VM 100 failed - ")]
    assert len(causes) == 1, lab.log()
    assert text in causes[0], causes[0]
    assert causes[0] in ended.err.splitlines()
    assert ended.err.splitlines()[-1] == "TASK ERROR: job errors"


def names_of(events: Iterable[Mapping[str, Any]]) -> Sequence[str]:
    """Names of events, in order."""
    return [event["event"] for event in events]
