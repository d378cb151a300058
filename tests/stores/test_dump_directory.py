"""Archives of a directory: listing and wholeness; host behaviour 2.8."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.stores.dump_directory import DumpDirectory, DumpedArchive

WHOLE = Path(__file__).parents[1] / "data" / "vma" / "comp-zstd.vma.zst"
NAME = "vzdump-qemu-100-2026_01_02-03_04_05.vma.zst"
LOG = "vzdump-qemu-100-2026_01_02-03_04_05.log"


def fill(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).write_bytes(b"x")


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


@pytest.mark.parametrize(
    ("kept_bytes", "looks_whole", "is_whole"),
    [(None, True, True), (-1, None, False), (0, False, False), (100, False, False)],
)
def test_wholeness_at_a_glance_and_by_all_bytes(
    kept_bytes: int | None, looks_whole: bool | None, is_whole: bool, tmp_path: Path
) -> None:
    shutil.copyfile(WHOLE, tmp_path / NAME)
    (tmp_path / NAME).write_bytes(WHOLE.read_bytes()[:kept_bytes])
    directory = DumpDirectory(str(tmp_path))
    assert directory.is_whole(NAME) is is_whole
    if looks_whole is not None:
        assert directory.looks_whole(NAME) is looks_whole


def test_missing_archive_is_not_whole(tmp_path: Path) -> None:
    directory = DumpDirectory(str(tmp_path))
    assert not directory.looks_whole(NAME)
    assert not directory.is_whole(NAME)
