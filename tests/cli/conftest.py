"""Labs with a real (simulated) QEMU process, driven by the command itself."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.lab_command import Outcome, Run
from vzdump_qemu.cli.main import run


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs one command line in this process."""

    def run_it(*words: object) -> Outcome:
        capfd.readouterr()
        code = run([str(word) for word in words])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        return Outcome(code=code, out=captured.out, err=captured.err)

    return run_it


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path leaves room for sockets, which `tmp_path` may not."""
    with tempfile.TemporaryDirectory(prefix="vzq-", dir="/tmp") as directory:
        yield Path(directory)


@pytest.fixture
def lab(short_path: Path, command: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A lab with VM 100: two disks, an agent; stopped."""
    monkeypatch.delenv("VZSIM_SCRIPT", raising=False)
    root = short_path / "lab"
    made = command(
        *("lab", "create", root, "--vm", 100, "--disk", "scsi0=2M"),
        *("--disk", "virtio1=1049088", "--fill", 5),
    )
    assert made.code == 0, made.err
    yield root
    if root.exists():
        assert command("lab", "destroy", root).code == 0
