"""The demonstration behind ``make demo``."""

import subprocess
import sys
from pathlib import Path

import pytest

from vzdump_qemu.cli.demo import count_differing_bytes, has_backup_command


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


@pytest.mark.parametrize(
    ("answer", "able"),
    [('{"return": [{"name": "backup"}]}', True), ('{"return": [{"name": "quit"}]}', False)],
)
def test_qemu_is_asked_whether_it_has_the_backup_command(
    tmp_path: Path, answer: str, able: bool
) -> None:
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\ncat >/dev/null\necho '{answer}'\n")
    program.chmod(0o755)
    assert has_backup_command(str(program)) is able
    assert not has_backup_command(str(tmp_path / "missing"))


def test_differing_bytes_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abcdef")
    (tmp_path / "b").write_bytes(b"abXdeYz")
    assert count_differing_bytes(tmp_path / "a", tmp_path / "b") == 3
    assert count_differing_bytes(tmp_path / "a", tmp_path / "a") == 0
