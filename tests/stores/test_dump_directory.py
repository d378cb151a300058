"""Archives of a directory: listing, wholeness, removal; host behaviour 2.8."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from vzdump_qemu.errors import ConfigError, TargetError
from vzdump_qemu.stores.dump_directory import DumpDirectory, DumpedArchive

WHOLE = Path(__file__).parents[1] / "data" / "vma" / "comp-zstd.vma.zst"
NAME = "vzdump-qemu-100-2026_01_02-03_04_05.vma.zst"
LOG = "vzdump-qemu-100-2026_01_02-03_04_05.log"


def fill(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).write_bytes(b"x")


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_archives_of_vms_are_listed_with_size_and_protection(tmp_path: Path) -> None:
    fill(
        tmp_path,
        *(NAME, LOG, f"{NAME}.notes", "vzdump-qemu-100-mine.vma", "disk.raw"),
        *("vzdump-lxc-101-2026_01_02-03_04_05.tar.zst", "vzdump-qemu-100-mine.vma.protected"),
        "vzdump-qemu-100-2026_01_02-03_04_06.vma.dat",
    )
    (tmp_path / "vzdump-qemu-100-2026_01_02-03_04_07.vma").mkdir()
    assert DumpDirectory(str(tmp_path)).list_archives() == (
        DumpedArchive(name=NAME, size_bytes=1, is_protected=False),
        DumpedArchive(name="vzdump-qemu-100-mine.vma", size_bytes=1, is_protected=True),
    )


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_directory_that_is_none_is_told_as_vzdump_does(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "d"
    if kind == "file":
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match=f"dumpdir '{path}' does not exist"):
        DumpDirectory(str(path)).list_archives()


def test_removal_takes_the_side_files_of_that_archive_alone(tmp_path: Path) -> None:
    other = NAME.replace("03_04_05", "03_04_06")
    kept = {other, f"{other}.notes", LOG.replace("03_04_05", "03_04_06"), "disk.raw"}
    fill(tmp_path, NAME, LOG, f"{NAME}.notes", *kept)
    assert DumpDirectory(str(tmp_path)).remove(NAME) == ()
    assert names_in(tmp_path) == kept


def test_missing_archive_is_no_error_and_its_side_files_go(tmp_path: Path) -> None:
    fill(tmp_path, LOG)
    assert DumpDirectory(str(tmp_path)).remove(NAME) == ()
    assert names_in(tmp_path) == set()


def test_protected_archive_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, NAME, LOG, f"{NAME}.protected")
    with pytest.raises(TargetError) as caught:
        DumpDirectory(str(tmp_path)).remove(NAME)
    assert caught.value.message == f"cannot remove protected archive '{tmp_path / NAME}'"
    assert names_in(tmp_path) == {NAME, LOG, f"{NAME}.protected"}


@pytest.mark.parametrize(
    "name",
    [
        "vzdump-qemu-100-mine.vma",
        "vzdump-lxc-100-2026_01_02-03_04_05.tar",
        "vzdump-qemu-100-2026_01_02-03_04_05.log",
        f"../{NAME}",
        f"sub/{NAME}",
        "disk.raw",
        "",
    ],
)
def test_other_names_are_never_removed(name: str, tmp_path: Path) -> None:
    directory = tmp_path / "dump"
    (directory / "sub").mkdir(parents=True)
    for place in (tmp_path, directory, directory / "sub"):
        fill(place, NAME, "disk.raw")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TargetError, match="is not removed"):
        DumpDirectory(str(directory)).remove(name)
    assert sorted(tmp_path.rglob("*")) == before


def test_link_is_removed_and_what_it_points_to_is_not(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere.vma"
    target.write_bytes(b"x")
    directory = tmp_path / "dump"
    directory.mkdir()
    (directory / NAME).symlink_to(target)
    assert DumpDirectory(str(directory)).remove(NAME) == ()
    assert target.exists()
    assert names_in(directory) == set()


def test_side_file_that_stays_is_a_warning(tmp_path: Path) -> None:
    fill(tmp_path, NAME)
    (tmp_path / LOG).mkdir()
    [warning] = DumpDirectory(str(tmp_path)).remove(NAME)
    assert warning.startswith(f"unable to remove '{tmp_path / LOG}' - ")
    assert names_in(tmp_path) == {LOG}


def test_archive_that_cannot_be_removed_keeps_its_side_files(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    fill(tmp_path, LOG)
    with pytest.raises(TargetError, match="unable to remove"):
        DumpDirectory(str(tmp_path)).remove(NAME)
    assert names_in(tmp_path) == {NAME, LOG}


def test_removal_reaches_the_disk_before_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, unlink = os.fsync, os.unlink

    def note_fsync(fd: int) -> None:
        calls.append(f"fsync {os.readlink(f'/proc/self/fd/{fd}')}")
        fsync(fd)

    def note_unlink(path: str) -> None:
        calls.append("unlink")
        unlink(path)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "unlink", note_unlink)
    fill(tmp_path, NAME)
    DumpDirectory(str(tmp_path)).remove(NAME)
    assert calls[0] == "unlink"
    assert calls[-1] == f"fsync {tmp_path}"


@pytest.mark.parametrize(
    ("kept_bytes", "has_header", "is_whole"),
    [(None, True, True), (-1, None, False), (0, False, False), (100, False, False)],
)
def test_wholeness_by_header_and_by_all_bytes(
    kept_bytes: int | None, has_header: bool | None, is_whole: bool, tmp_path: Path
) -> None:
    shutil.copyfile(WHOLE, tmp_path / NAME)
    (tmp_path / NAME).write_bytes(WHOLE.read_bytes()[:kept_bytes])
    directory = DumpDirectory(str(tmp_path))
    assert directory.is_whole(NAME) is is_whole
    if has_header is not None:
        assert directory.has_header(NAME) is has_header


def test_missing_archive_is_not_whole(tmp_path: Path) -> None:
    directory = DumpDirectory(str(tmp_path))
    assert not directory.has_header(NAME)
    assert not directory.is_whole(NAME)
