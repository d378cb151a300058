"""The demonstration behind ``make demo``."""

import subprocess
import sys
from pathlib import Path

import pytest

from vzdump_qemu.cli.demo import REAL_QEMU, SIMULATED_QEMU, choose_qemu, count_differing_bytes


@pytest.mark.slow
def test_demo_ends_with_one_line_that_says_what_was_shown(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "vzdump_qemu.cli.demo"],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    last = ended.stdout.splitlines()[-1]
    assert last.startswith("demo: OK - VM 101's disks equal VM 100's at the freeze in all 71303680")
    assert "the guest has changed" in last
    assert list(tmp_path.iterdir()) == []


def test_demo_leaves_a_folder_alone_that_is_there(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "vzdump_qemu", "demo", "--lab", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert f"ERROR: '{tmp_path}' exists" in ended.stderr
    assert tmp_path.exists()


@pytest.mark.slow
def test_installed_qemu_plays_only_if_it_can_back_up_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert choose_qemu().simulated
    program = tmp_path / REAL_QEMU
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    assert choose_qemu().simulated
    assert "has no 'backup' command" in choose_qemu().reason
    program.unlink()
    program.symlink_to(Path(sys.executable).parent / SIMULATED_QEMU)
    chosen = choose_qemu()
    assert (chosen.binary, chosen.simulated) == (str(program), False)


def test_differing_bytes_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abcdef")
    (tmp_path / "b").write_bytes(b"abXdeYz")
    assert count_differing_bytes(tmp_path / "a", tmp_path / "b") == 3
    assert count_differing_bytes(tmp_path / "a", tmp_path / "a") == 0
