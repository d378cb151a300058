"""Labs on the real QEMU, and the tool run in them as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

QEMU = "qemu-system-x86_64"
_TOOL = (sys.executable, "-m", "vzdump_qemu")


@dataclass(frozen=True)
class Ended:
    """How one command line ended, and what it printed."""

    code: int
    out: str
    err: str


class RealLab:
    """A lab whose VMs are run by the real QEMU."""

    def __init__(self, root: Path, *, accelerator: str = "tcg") -> None:
        self.root = root
        self.accelerator = accelerator
        self.dump = root / "var/lib/vz/dump"
        self.run_directory = root / "var/run/qemu-server"

    def config(self, vmid: int = 100) -> Path:
        return self.root / f"etc/pve/qemu-server/{vmid}.conf"

    def image(self, index: int = 0, *, vmid: int = 100, image_format: str = "raw") -> Path:
        name = f"vm-{vmid}-disk-{index}.{image_format}"
        return self.root / f"var/lib/vz/images/{vmid}/{name}"

    def tool(self, *words: object) -> Ended:
        done = subprocess.run(
            [*_TOOL, *map(str, words)], capture_output=True, text=True, check=False, timeout=120
        )
        assert "Traceback" not in done.stderr
        return Ended(done.returncode, done.stdout, done.stderr)

    def must(self, *words: object) -> Ended:
        ended = self.tool(*words)
        assert ended.code == 0, ended.err
        return ended

    def create(self, *words: object) -> None:
        self.must("lab", "create", self.root, "--vm", 100, "--qemu", QEMU, *words)
        path = self.root / "etc/vzdump-qemu/lab.conf"
        path.write_text(path.read_text().replace("accel: tcg", f"accel: {self.accelerator}"))

    def processes(self) -> list[int]:
        """Ids of the QEMU processes of this lab."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            # A process that has ended, and waits to be reaped, has no words any more.
            program = words.split(b"\0", 1)[0]
            if program.endswith(QEMU.encode()) and str(self.root).encode() in words:
                found.append(int(entry.name))
        return found
