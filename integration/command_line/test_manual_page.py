"""The manual page, read by the programs that show it."""

import subprocess
import sys
from pathlib import Path

import pytest

from integration.conftest import needs_program


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "vzdump-qemu.1"
    with open(path, "wb") as file:
        subprocess.run([sys.executable, "-m", "vzdump_qemu", "manual"], check=True, stdout=file)
    return path


@needs_program("mandoc")
def test_mandoc_has_nothing_to_say_but_the_missing_date(page: Path) -> None:
    ended = subprocess.run(
        ["mandoc", "-T", "lint", str(page)], check=False, capture_output=True, text=True
    )
    complaints = [line for line in ended.stdout.splitlines() if "missing date" not in line]
    # A word without blanks may be longer than a line.
    assert [line for line in complaints if "longer than 80 bytes" not in line] == []


@needs_program("groff")
def test_groff_has_no_warning(page: Path) -> None:
    ended = subprocess.run(
        ["groff", "-ww", "-man", "-Tutf8", "-z", str(page)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert ended.stderr == ""


@needs_program("man")
def test_man_shows_it_in_80_columns(page: Path) -> None:
    ended = subprocess.run(
        ["man", "-l", str(page)],
        check=True,
        capture_output=True,
        text=True,
        env={
            "PATH": "/usr/bin:/bin",
            "MANWIDTH": "80",
            "LC_ALL": "C.UTF-8",
            "MAN_KEEP_FORMATTING": "",
        },
    )
    lines = ended.stdout.splitlines()
    assert "       --compress KIND" in lines
    assert max(map(len, lines)) <= 80
