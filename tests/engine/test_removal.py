"""Removing archives with what lies beside them; host behaviour 2.8, failure modes 85 and 87."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vzdump_qemu import events
from vzdump_qemu.engine.removal import ArchiveRemoval
from vzdump_qemu.errors import TargetError
from vzdump_qemu.stores.archive_directory import ArchiveDirectory
from vzdump_qemu.stores.archive_source import open_vma_source

WHOLE = Path(__file__).parents[1] / "data" / "vma" / "comp-zstd.vma.zst"
NAME = "vzdump-qemu-100-2026_01_02-03_04_05.vma.zst"
LOG = "vzdump-qemu-100-2026_01_02-03_04_05.log"
OTHER = NAME.replace("03_04_05", "03_04_06")


def fill(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).write_bytes(b"x")


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def ignore(_: events.Event) -> None:
    return


def remove(directory: Path, name: str) -> tuple[str, ...]:
    removal = ArchiveRemoval(ArchiveDirectory(), ignore, directory=str(directory))
    return asyncio.run(removal.remove(name))


def test_removal_takes_the_side_files_of_that_archive_alone(tmp_path: Path) -> None:
    other = NAME.replace("03_04_05", "03_04_06")
    kept = {other, f"{other}.notes", LOG.replace("03_04_05", "03_04_06"), "disk.raw"}
    fill(tmp_path, NAME, LOG, f"{NAME}.notes", *kept)
    assert remove(tmp_path, NAME) == ()
    assert names_in(tmp_path) == kept


def test_missing_archive_is_no_error_and_its_side_files_go(tmp_path: Path) -> None:
    fill(tmp_path, LOG)
    assert remove(tmp_path, NAME) == ()
    assert names_in(tmp_path) == set()


def test_protected_archive_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, NAME, LOG, f"{NAME}.protected")
    with pytest.raises(TargetError) as caught:
        remove(tmp_path, NAME)
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
        remove(directory, name)
    assert sorted(tmp_path.rglob("*")) == before


def test_link_is_removed_and_what_it_points_to_is_not(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere.vma"
    target.write_bytes(b"x")
    directory = tmp_path / "dump"
    directory.mkdir()
    (directory / NAME).symlink_to(target)
    assert remove(directory, NAME) == ()
    assert target.exists()
    assert names_in(directory) == set()


def test_side_file_that_stays_is_a_warning(tmp_path: Path) -> None:
    fill(tmp_path, NAME)
    (tmp_path / LOG).mkdir()
    [warning] = remove(tmp_path, NAME)
    assert warning.startswith(f"unable to remove '{tmp_path / LOG}' - ")
    assert names_in(tmp_path) == {LOG}


def test_archive_that_cannot_be_removed_keeps_its_side_files(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    fill(tmp_path, LOG)
    with pytest.raises(TargetError, match="unable to remove"):
        remove(tmp_path, NAME)
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
    remove(tmp_path, NAME)
    assert calls[:2] == ["unlink", f"fsync {tmp_path}"]


class DyingStore(ArchiveDirectory):
    """Ends its process, as far as a test can tell, at the n-th file that is to be removed."""

    def __init__(self, death_index: int) -> None:
        super().__init__()
        self._left_count = death_index

    async def remove_file(self, path: str) -> None:
        if not self._left_count:
            raise KeyboardInterrupt
        self._left_count -= 1
        await super().remove_file(path)


@pytest.mark.parametrize("death_index", [0, 1, 2, 3])
def test_killed_removal_leaves_no_archive_without_its_notes(
    death_index: int, tmp_path: Path
) -> None:
    beside = {LOG, f"{NAME}.notes"}
    fill(tmp_path, NAME, *beside)
    removal = ArchiveRemoval(DyingStore(death_index), ignore, directory=str(tmp_path))
    if death_index < 3:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(removal.remove_all([NAME]))
    else:
        assert asyncio.run(removal.remove_all([NAME])) == 1
    left = names_in(tmp_path)
    assert NAME not in left or left == {NAME, *beside}
    # What it left of an archive that is gone goes with a second removal of the same name.
    assert remove(tmp_path, NAME) == ()
    assert names_in(tmp_path) == set()


def test_archive_that_stays_keeps_no_other(tmp_path: Path) -> None:
    told: list[events.Event] = []
    fill(tmp_path, NAME, OTHER, f"{NAME}.protected")
    removal = ArchiveRemoval(
        ArchiveDirectory(), told.append, directory=f"{tmp_path}/", storage_id="nas"
    )
    assert asyncio.run(removal.remove_all([NAME, OTHER])) == 1
    assert names_in(tmp_path) == {NAME, f"{NAME}.protected"}
    path = str(tmp_path / NAME)
    text = f"cannot remove protected archive '{path}'"
    assert told == [
        events.BackupRemoving(storage_id="nas", name=NAME, path=path),
        events.BackupRemovalFailed(name=f"nas:backup/{NAME}", text=text),
        events.BackupRemoving(storage_id="nas", name=OTHER, path=str(tmp_path / OTHER)),
    ]


def test_archive_whose_protection_cannot_be_told_stays(tmp_path: Path) -> None:
    # No name may be so long: looking for the mark of protection fails.
    directory = tmp_path / "dump"
    directory.mkdir()
    (directory / NAME).write_bytes(b"x")

    class Blind(ArchiveDirectory):
        async def exists(self, path: str) -> bool:
            return await super().exists(path + "x" * 300)

    removal = ArchiveRemoval(Blind(), ignore, directory=str(directory))
    with pytest.raises(TargetError, match="unable to look for"):
        asyncio.run(removal.remove(NAME))
    assert names_in(directory) == {NAME}


def test_reader_of_an_archive_that_is_removed_reads_on_to_its_end(tmp_path: Path) -> None:
    shutil.copyfile(WHOLE, tmp_path / NAME)

    def read(meanwhile: Callable[[], object]) -> bytes:
        with open_vma_source(str(tmp_path / NAME)) as source:
            meanwhile()
            return b"".join(map(bytes, source.chunks()))

    whole = read(lambda: None)
    assert read(lambda: remove(tmp_path, NAME)) == whole
    assert names_in(tmp_path) == set()
