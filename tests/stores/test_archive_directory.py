"""The directory's own part: programs, small files and directories."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vzdump_qemu.errors import CompressorError, TargetError
from vzdump_qemu.ports import ArchiveStore, ArchiveTarget
from vzdump_qemu.stores.archive_directory import ArchiveDirectory


@pytest.fixture
def store() -> ArchiveStore:
    return ArchiveDirectory()


async def test_open_intake_missing_compressor_touches_nothing(tmp_path: Path) -> None:
    temp_path = tmp_path / "a.vma.dat"
    temp_path.write_bytes(b"left over")
    store = ArchiveDirectory(find_program=lambda _: None)
    with pytest.raises(CompressorError, match="compressor 'lzop' not found") as caught:
        await store.open_intake(
            ArchiveTarget(
                final_path=str(tmp_path / "a.vma.lzo"),
                temp_path=str(temp_path),
                compressor=("lzop",),
            )
        )
    assert "install 'lzop'" in caught.value.hint
    assert temp_path.read_bytes() == b"left over"


async def test_open_intake_missing_directory_is_a_target_error(
    store: ArchiveStore, tmp_path: Path
) -> None:
    base = str(tmp_path / "missing" / "a.vma")
    target = ArchiveTarget(final_path=base, temp_path=base + ".dat", compressor=())
    with pytest.raises(TargetError, match=r"unable to open '.*' - No such file or directory"):
        await store.open_intake(target)


async def test_create_directory_replaces_a_left_over(store: ArchiveStore, tmp_path: Path) -> None:
    path = tmp_path / "dump.tmp"
    path.mkdir()
    (path / "old").touch()
    await store.create_directory(str(path))
    assert os.listdir(path) == []
    assert path.stat().st_mode & 0o777 == 0o700


async def test_create_directory_replaces_a_link_without_following_it(
    store: ArchiveStore, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    os.symlink(precious, tmp_path / "dump.tmp")
    await store.create_directory(str(tmp_path / "dump.tmp"))
    assert (precious / "file").exists()
    assert not os.path.islink(tmp_path / "dump.tmp")


async def test_create_directory_makes_one_level_only(store: ArchiveStore, tmp_path: Path) -> None:
    path = str(tmp_path / "missing" / "dump.tmp")
    with pytest.raises(TargetError) as caught:
        await store.create_directory(path)
    assert str(caught.value) == f"unable to create temporary directory '{path}'"
    assert caught.value.hint == "No such file or directory"


async def test_write_file_replaces_and_is_not_for_everybody(
    store: ArchiveStore, tmp_path: Path
) -> None:
    path = tmp_path / "qemu-server.conf"
    path.write_bytes(b"much longer than the new content")
    await store.write_file(str(path), b"short\n")
    assert path.read_bytes() == b"short\n"
    await store.write_file(str(tmp_path / "new"), b"")
    assert (tmp_path / "new").stat().st_mode & 0o137 == 0


async def test_write_file_that_cannot_be_is_a_target_error(
    store: ArchiveStore, tmp_path: Path
) -> None:
    with pytest.raises(TargetError, match="No such file or directory"):
        await store.write_file(str(tmp_path / "missing" / "f"), b"x")
    with pytest.raises(TargetError, match="Is a directory"):
        await store.write_file(str(tmp_path), b"x")


async def test_remove_tree_missing_is_no_error(store: ArchiveStore, tmp_path: Path) -> None:
    path = tmp_path / "tree"
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "file").touch()
    await store.remove_tree(str(path))
    assert not path.exists()
    await store.remove_tree(str(path))


async def test_remove_tree_below_a_file_is_no_error(store: ArchiveStore, tmp_path: Path) -> None:
    # A run that was given a file for a directory must not haunt every later one.
    (tmp_path / "file").write_bytes(b"x")
    await store.remove_tree(str(tmp_path / "file/below.tmp"))
    assert (tmp_path / "file").read_bytes() == b"x"


async def test_remove_tree_of_a_file_is_a_target_error(store: ArchiveStore, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(TargetError, match=r"unable to remove .* - Not a directory"):
        await store.remove_tree(str(path))


async def test_exists_that_is_not_answered_in_time_is_no_answer(tmp_path: Path) -> None:
    store = ArchiveDirectory(look_timeout_s=0)
    with pytest.raises(TargetError) as caught:
        await store.exists(str(tmp_path))
    assert str(caught.value) == f"unable to look for '{tmp_path}' - it does not answer"


async def test_exists_sees_dangling_links(store: ArchiveStore, tmp_path: Path) -> None:
    os.symlink("/nonexistent", tmp_path / "link")
    assert await store.exists(str(tmp_path / "link"))
    assert not await store.exists(str(tmp_path / "other"))
