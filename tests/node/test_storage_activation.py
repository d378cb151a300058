"""Directories made ready: the rows of section 5.3 that hold without the platform's library."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from vzdump_qemu.errors import StorageError
from vzdump_qemu.formats.storage_config import StorageSection, parse_storage_config
from vzdump_qemu.node.storage_activation import DirectoryActivation, Mount, read_mounts

GONE = "does not exist or is unreachable"


def _section(text: str) -> StorageSection:
    return parse_storage_config(text.encode()).sections["a1"]


def _activation(tmp_path: Path, *mounts: tuple[str, str]) -> DirectoryActivation:
    lines = "".join(
        f"{30 + index} 1 0:{index} / {path} rw,noatime shared:1 - {kind} source rw\n"
        for index, (path, kind) in enumerate((("/", "ext4"), *mounts))
    )
    (tmp_path / "mountinfo").write_text(lines)
    return DirectoryActivation(
        str(tmp_path / "local"), mounts_path=str(tmp_path / "mountinfo"), look_timeout_s=0.2
    )


async def _refusal(activation: DirectoryActivation, section: StorageSection) -> StorageError:
    with pytest.raises(StorageError) as caught:
        await activation.activate(section)
    return caught.value


@pytest.mark.parametrize("option", ["yes", "1", "{x}"])
async def test_row_5_3_dir_that_is_no_mount_point(option: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.mkdir()
    text = f"dir: a1\n\tpath {path}\n\tis_mountpoint {option.format(x=path)}\n"
    error = await _refusal(_activation(tmp_path), _section(text))
    assert str(error) == (
        "unable to activate storage 'a1' - directory is expected to be a mount point but is not "
        f"mounted: '{path}'"
    )
    assert list(path.iterdir()) == []
    await _activation(tmp_path, (str(path), "xfs")).activate(_section(text))


async def test_row_5_3_dir_below_a_mount_point_of_another_path(tmp_path: Path) -> None:
    disk = tmp_path / "disk one"
    text = f"dir: a1\n\tpath {disk}/backups\n\tis_mountpoint {disk}\n"
    error = await _refusal(_activation(tmp_path), _section(text))
    assert str(error).endswith(f"but is not mounted: '{disk}'")
    assert not disk.exists()
    disk.mkdir()
    await _activation(tmp_path, (str(disk).replace(" ", "\\040"), "ext4")).activate(_section(text))
    assert (disk / "backups").is_dir()


async def test_row_5_3_dir_mount_point_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    text = f"dir: a1\n\tpath {tmp_path}/link\n\tis_mountpoint 1\n"
    await _activation(tmp_path, (str(tmp_path / "real"), "ext4")).activate(_section(text))


@pytest.mark.parametrize(
    ("lines", "is_made"),
    [
        ("", True),
        ("\tmkdir 0\n", False),
        ("\tcreate-base-path 0\n", False),
        ("\tmkdir 0\n\tcreate-base-path 1\n", True),
    ],
)
async def test_row_5_3_dir_base_directory_is_made_unless_disabled(
    lines: str, *, is_made: bool, tmp_path: Path
) -> None:
    path = tmp_path / "x/y"
    section = _section(f"dir: a1\n\tpath {path}\n{lines}")
    if is_made:
        await _activation(tmp_path).activate(section)
    else:
        error = await _refusal(_activation(tmp_path), section)
        assert str(error) == f"unable to activate storage 'a1' - directory '{path}' {GONE}"
    assert path.exists() == is_made


async def test_row_5_3_dir_base_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = await _refusal(_activation(tmp_path), _section(f"dir: a1\n\tpath {tmp_path}/file/x\n"))
    assert str(error) == (
        f"unable to activate storage 'a1' - unable to create '{tmp_path}/file/x' - Not a directory"
    )


@pytest.mark.parametrize(
    ("lines", "is_made"),
    [("", True), ("\tcreate-subdirs 0\n", False), ("\tmkdir 0\n", False)],
)
async def test_row_5_3_dir_content_directory_is_made_unless_disabled(
    lines: str, *, is_made: bool, tmp_path: Path
) -> None:
    section = _section(f"dir: a1\n\tpath {tmp_path}\n\tcontent-dirs backup=save\n{lines}")
    activation = _activation(tmp_path)
    await activation.activate(section)
    if is_made:
        assert await activation.writable_directory(section, "backup") == f"{tmp_path}/save"
    else:
        with pytest.raises(StorageError, match=f"directory '{tmp_path}/save' {GONE}"):
            await activation.writable_directory(section, "backup")
    assert (tmp_path / "save").exists() == is_made


async def test_row_5_3_dir_contents_that_would_share_a_directory(tmp_path: Path) -> None:
    section = _section(
        f"dir: a1\n\tpath {tmp_path}\n\tcontent backup,iso\n\tcontent-dirs backup=x,iso=x\n"
    )
    error = await _refusal(_activation(tmp_path), section)
    assert str(error) == (
        f"unable to activate storage 'a1' - 'backup' and 'iso' would share directory '{tmp_path}/x'"
    )


@pytest.mark.slow
async def test_row_5_3_dir_that_does_not_answer_is_given_up_in_time(tmp_path: Path) -> None:
    is_over = threading.Event()

    def hang(path: str) -> bool:
        return is_over.wait()

    _activation(tmp_path)
    activation = DirectoryActivation(
        str(tmp_path),
        mounts_path=str(tmp_path / "mountinfo"),
        is_directory=hang,
        look_timeout_s=0.05,
    )
    try:
        error = await _refusal(activation, _section(f"dir: a1\n\tpath {tmp_path}\n"))
    finally:
        is_over.set()
    assert str(error) == f"unable to activate storage 'a1' - directory '{tmp_path}' {GONE}"


@pytest.mark.parametrize(
    ("kind", "options", "mount_type", "hint"),
    [
        ("nfs", "\tserver 2001:db8::1\n\texport /e\n", "nfs4", "mount -t nfs [2001:db8::1]:/e "),
        ("cifs", "\tserver fs\n\tshare s\n", "cifs", "mount -t cifs //fs/s "),
        ("cephfs", "", "ceph", "mount the file system at "),
    ],
)
async def test_row_5_3_nfs_cifs_cephfs_must_be_mounted(
    kind: str, options: str, mount_type: str, hint: str, tmp_path: Path
) -> None:
    path = tmp_path / "x"
    section = _section(f"{kind}: a1\n\tpath {path}\n{options}")
    error = await _refusal(_activation(tmp_path), section)
    assert str(error) == (
        "unable to activate storage 'a1' - directory is expected to be a mount point but is not "
        f"mounted: '{path}'"
    )
    assert error.hint.startswith(hint)
    assert not path.exists()
    path.mkdir()
    error = await _refusal(_activation(tmp_path, (str(path), "ext4")), section)
    assert str(error) == (
        f"unable to activate storage 'a1' - '{path}' is mounted with a file system of type 'ext4'"
    )
    await _activation(tmp_path, (str(path), mount_type)).activate(section)


async def test_row_5_3_btrfs_is_a_btrfs_file_system(tmp_path: Path) -> None:
    section = _section(f"btrfs: a1\n\tpath {tmp_path}\n")
    error = await _refusal(_activation(tmp_path), section)
    assert str(error) == (
        f"unable to activate storage 'a1' - '{tmp_path}' is not a btrfs file system"
    )
    above = str(tmp_path.parent)
    await _activation(tmp_path, (above, "btrfs")).activate(section)
    covered = _activation(tmp_path, (above, "btrfs"), (above, "ext4"))
    await _refusal(covered, section)


def test_mounts_of_this_process_are_read_and_escapes_undone(tmp_path: Path) -> None:
    assert read_mounts()
    (tmp_path / "m").write_text(
        "1 1 0:1 / /a\\040b\\134c rw master:1 propagate_from:2 - nfs4 s:/e rw\nnonsense\n"
    )
    assert read_mounts(str(tmp_path / "m")) == (Mount(path="/a b\\c", type="nfs4"),)
    with pytest.raises(StorageError, match="No such file or directory"):
        read_mounts(os.fspath(tmp_path / "none"))
