"""One lab per module and worker; every test begins with a stopped VM."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.lab import Lab

# Empty where the tests of a full disk run.
TMPFS_REASON = "" if os.geteuid() == 0 else "a tiny file system is mounted by root only"


def pytest_report_header() -> list[str]:
    """Say which of these tests cannot run here."""
    return [f"full disk, end to end: {TMPFS_REASON or 'covered'}"]


@pytest.fixture(scope="module")
def shared_lab() -> Iterator[Lab]:
    # pytest's own folders may be too deep for socket paths.
    with tempfile.TemporaryDirectory(prefix="vze-", dir="/tmp") as directory:
        programs = Path(directory) / "bin"
        programs.mkdir()
        lab = Lab(Path(directory) / "lab", programs)
        lab.create()
        yield lab
        lab.must("lab", "destroy", lab.root)
        assert not lab.root.exists()


@pytest.fixture
def lab(shared_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.delenv("VZSIM_SCRIPT", raising=False)
    yield shared_lab
    shared_lab.reset()
