"""Both places where a datastore can lie behave alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vzsim.fakepbs.conftest import HandClock
from vzsim.fakepbs import DiskFiles, MemoryFiles
from vzsim.fakepbs.files import DatastoreFiles, LimitedFiles


@pytest.fixture(params=["disk", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path, clock: HandClock) -> DatastoreFiles:
    return DiskFiles(tmp_path / "tank", clock) if request.param == "disk" else MemoryFiles(clock)


def test_file_is_written_whole_replaced_and_removed(files: DatastoreFiles) -> None:
    files.write("vm/100/owner", b"a")
    files.write("vm/100/owner", b"bb")
    assert files.read("vm/100/owner") == b"bb"
    facts = files.facts("vm/100/owner")
    assert facts is not None
    assert (facts.is_directory, facts.size_bytes) == (False, 2)
    files.remove("vm/100/owner")
    files.remove("vm/100/owner")
    assert files.facts("vm/100/owner") is None
    with pytest.raises(FileNotFoundError):
        files.read("vm/100/owner")


def test_directory_goes_with_all_that_is_in_it(files: DatastoreFiles) -> None:
    files.make_directory("vm/100/now")
    files.make_directory("vm/100/now")
    files.write("vm/100/now/b", b"")
    files.write("vm/100/now/a", b"")
    assert files.names("vm/100/now") == ["a", "b"]
    facts = files.facts("vm/100/now")
    assert facts is not None
    assert facts.is_directory
    files.remove("vm/100/now")
    assert files.names("vm/100") == []
    assert files.names("nowhere") == files.names("vm/100/now") == []


def test_file_under_another_name_is_the_same(files: DatastoreFiles) -> None:
    files.write("a/x", b"x")
    files.rename("a/x", "a/y")
    assert (files.names("a"), files.read("a/y")) == (["y"], b"x")
    with pytest.raises(FileNotFoundError):
        files.rename("a/x", "a/z")


def test_use_of_a_file_is_noted(files: DatastoreFiles, clock: HandClock) -> None:
    files.write("a", b"x")
    clock.now_s += 50
    files.touch("a")
    facts = files.facts("a")
    assert facts is not None
    assert facts.used_s == clock.now_s
    with pytest.raises(FileNotFoundError):
        files.touch("b")


def test_name_below_a_file_is_absent(files: DatastoreFiles) -> None:
    files.write("a", b"x")
    assert files.facts("a/b") is None
    assert files.names("a/b") == []


def test_full_disk_keeps_what_it_has(files: DatastoreFiles) -> None:
    limited = LimitedFiles(files)
    limited.free_bytes = 3
    limited.write("a", b"abc")
    with pytest.raises(OSError, match="No space left"):
        limited.write("a", b"d")
    assert files.read("a") == b"abc"
