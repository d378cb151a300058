"""Temporary files and their publishing, through the intakes that use them."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest

from tests.stores.intake_feeding import (
    TWO_DISKS,
    WAIT_S,
    ScriptedFiles,
    expected,
    feed,
    flood,
    nothing_left_over,
    take,
    target_in,
    until,
    zstd_filter,
)
from vzdump_qemu.errors import CompressorError, InternalError, TargetError
from vzdump_qemu.stores.archive_directory import ArchiveDirectory
from vzdump_qemu.stores.archive_output import TargetFiles

__all__ = ["nothing_left_over"]


async def test_intake_publishing_syncs_file_then_names_then_syncs_directory(
    tmp_path: Path,
) -> None:
    files = ScriptedFiles()
    await take(ArchiveDirectory(files=files), target_in(tmp_path), TWO_DISKS)
    assert files.calls == ["open_temp", "sync", "link", "unlink dat", "sync_directory"]


async def test_intake_publishing_without_links_renames(tmp_path: Path) -> None:
    files = ScriptedFiles(fail="link", number=errno.EPERM)
    await take(ArchiveDirectory(files=files), target_in(tmp_path), TWO_DISKS)
    assert files.calls == ["open_temp", "sync", "link", "rename", "sync_directory"]


async def test_intake_failing_open_leaves_nothing(tmp_path: Path) -> None:
    store = ArchiveDirectory(files=ScriptedFiles(fail="open_temp", number=errno.ENOSPC))
    with pytest.raises(TargetError, match="No space left") as caught:
        await store.open_intake(target_in(tmp_path, ("cat",)))
    assert caught.value.hint
    assert os.listdir(tmp_path) == []


async def test_intake_failing_sync_is_a_target_error(tmp_path: Path) -> None:
    intake = await ArchiveDirectory(files=ScriptedFiles(fail="sync")).open_intake(
        target_in(tmp_path)
    )
    feed(intake, TWO_DISKS)
    with pytest.raises(TargetError, match=r"unable to sync .* - Input/output error"):
        await intake.finish(expected(), timeout_s=WAIT_S)
    await intake.discard()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("step", ["link", "unlink dat", "sync_directory"])
async def test_intake_failing_publish_step_leaves_no_final_name(tmp_path: Path, step: str) -> None:
    target = target_in(tmp_path)
    intake = await ArchiveDirectory(files=ScriptedFiles(fail=step)).open_intake(target)
    feed(intake, TWO_DISKS)
    await intake.finish(expected(), timeout_s=WAIT_S)
    with pytest.raises(TargetError) as caught:
        await intake.publish()
    assert str(caught.value) == f"unable to rename '{target.temp_path}' to '{target.final_path}'"
    assert caught.value.hint == "Input/output error"
    if step == "link":
        await intake.discard()
    else:
        with pytest.raises(TargetError, match="unable to remove"):
            await intake.discard()
    assert os.listdir(tmp_path) == (["a.vma.dat"] if step == "unlink dat" else [])
    assert not os.path.exists(target.final_path)


class NameSticksOnce(ScriptedFiles):
    """The directory cannot be synced, and the name not be taken back at once."""

    def __init__(self) -> None:
        super().__init__()
        self._syncs_left = 1
        self._refusals = 1

    def sync_directory(self, path: str) -> None:
        if self._syncs_left:
            self._syncs_left -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync_directory(path)

    def unlink(self, path: str) -> None:
        if path.endswith(".vma") and self._refusals:
            self._refusals -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().unlink(path)


async def test_intake_name_that_stayed_after_a_failed_publishing_goes_with_discarding(
    tmp_path: Path,
) -> None:
    target = target_in(tmp_path)
    intake = await ArchiveDirectory(files=NameSticksOnce()).open_intake(target)
    feed(intake, TWO_DISKS)
    await intake.finish(expected(), timeout_s=WAIT_S)
    with pytest.raises(TargetError):
        await intake.publish()
    assert os.path.exists(target.final_path)
    await intake.discard()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [0, errno.EPERM], ids=["by-link", "by-rename"])
async def test_intake_existing_final_file_is_not_overwritten(tmp_path: Path, number: int) -> None:
    target = target_in(tmp_path)
    Path(target.final_path).write_bytes(b"older")
    files = ScriptedFiles(fail="link", number=number) if number else ScriptedFiles()
    intake = await ArchiveDirectory(files=files).open_intake(target)
    feed(intake, TWO_DISKS)
    await intake.finish(expected(), timeout_s=WAIT_S)
    with pytest.raises(TargetError, match="unable to rename") as caught:
        await intake.publish()
    assert caught.value.hint == "File exists"
    await intake.discard()
    assert Path(target.final_path).read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["a.vma"]


async def test_intake_old_temp_file_is_replaced_not_followed(tmp_path: Path) -> None:
    target = target_in(tmp_path)
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    os.symlink(precious, target.temp_path)
    await take(ArchiveDirectory(), target, TWO_DISKS)
    assert precious.read_bytes() == b"mine"
    assert not os.path.islink(target.final_path)


async def test_intake_publish_before_finish_is_a_bug(tmp_path: Path) -> None:
    intake = await ArchiveDirectory().open_intake(target_in(tmp_path))
    with pytest.raises(InternalError):
        await intake.publish()
    await intake.discard()


async def test_intake_full_target_is_reported_and_the_stream_drained(tmp_path: Path) -> None:
    store = ArchiveDirectory(files=ScriptedFiles(open_as="/dev/full"))
    intake = await store.open_intake(target_in(tmp_path))
    writer = feed(intake, *flood())
    await writer.join()
    assert writer.errors == []
    await until(intake.failure)
    with pytest.raises(TargetError, match=r"unable to write .* - No space left") as caught:
        await intake.finish(expected(), timeout_s=WAIT_S)
    assert caught.value.hint.startswith("free space")
    await intake.discard()


async def test_intake_full_target_behind_a_compressor_names_the_compressor(tmp_path: Path) -> None:
    store = ArchiveDirectory(files=ScriptedFiles(open_as="/dev/full"))
    intake = await store.open_intake(target_in(tmp_path, zstd_filter()))
    feed(intake, TWO_DISKS)
    with pytest.raises(CompressorError, match="wrong exit status 1") as caught:
        await intake.finish(expected(), timeout_s=WAIT_S)
    assert "No space left on device" in str(caught.value)
    await intake.discard()


async def test_intake_discard_after_publish_keeps_the_file(tmp_path: Path) -> None:
    target = target_in(tmp_path)
    await take(ArchiveDirectory(), target, TWO_DISKS)
    assert os.path.exists(target.final_path)


async def test_intake_cancelled_publish_is_settled_by_discard(tmp_path: Path) -> None:
    gate = threading.Event()

    class GatedFiles(TargetFiles):
        def link(self, path: str, new_path: str) -> None:
            gate.wait(WAIT_S)
            super().link(path, new_path)

    target = target_in(tmp_path)
    intake = await ArchiveDirectory(files=GatedFiles()).open_intake(target)
    feed(intake, TWO_DISKS)
    await intake.finish(expected(), timeout_s=WAIT_S)
    publishing = asyncio.create_task(intake.publish())
    await asyncio.wait([publishing], timeout=0.01)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    gate.set()
    await intake.discard()
    assert os.listdir(tmp_path) == ["a.vma"]


async def test_intake_cancelled_opening_leaves_nothing(tmp_path: Path) -> None:
    gate, removed = threading.Event(), threading.Event()

    class GatedFiles(TargetFiles):
        def open_temp(self, path: str) -> int:
            gate.wait(WAIT_S)
            return super().open_temp(path)

        def unlink(self, path: str) -> None:
            super().unlink(path)
            removed.set()

    store = ArchiveDirectory(files=GatedFiles())
    fd_count = len(os.listdir("/proc/self/fd"))
    opening = asyncio.create_task(store.open_intake(target_in(tmp_path)))
    await asyncio.wait([opening], timeout=0.01)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    gate.set()
    await until(removed.is_set)
    assert os.listdir(tmp_path) == []
    await until(lambda: len(os.listdir("/proc/self/fd")) == fd_count)


async def test_intake_loop_stays_responsive_while_the_target_stalls(tmp_path: Path) -> None:
    gate = threading.Event()

    class GatedFiles(TargetFiles):
        def sync(self, fd: int) -> None:
            gate.wait(WAIT_S)

    target = target_in(tmp_path)
    intake = await ArchiveDirectory(files=GatedFiles()).open_intake(target)
    feed(intake, TWO_DISKS)
    finishing = asyncio.create_task(intake.finish(expected(), timeout_s=WAIT_S))
    # The loop itself opens the gate: if the sync ran on it, this line would come too late.
    await asyncio.wait([finishing], timeout=0.05)
    assert not finishing.done()
    gate.set()
    await finishing
    await intake.publish()
