"""What tests of the whole command share: running it, and looking into labs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parents[1] / "data"


@dataclass(frozen=True)
class Outcome:
    """How one command line ended, and what it printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


def add_script(root: Path, text: str, vmid: int = 100) -> None:
    """Have the VM's simulated QEMU follow a script."""
    script = root / "script.toml"
    script.write_text(text)
    with open(root / f"etc/pve/qemu-server/{vmid}.conf", "a") as config:
        config.write(f"args: -vzsim script={script}\n")


def archives(root: Path) -> list[Path]:
    """Paths of the archives in the lab's own storage."""
    return sorted((root / "var/lib/vz/dump").glob("*.vma*"))
