"""Intakes that are given up: stalls, cancellations, and writers that never close."""

from __future__ import annotations

import asyncio
import os
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
    target_in,
)
from vzdump_qemu.errors import TargetError
from vzdump_qemu.stores.archive_directory import ArchiveDirectory
from vzdump_qemu.stores.vma_intake import RelayedIntake

__all__ = ["nothing_left_over"]


async def test_intake_stalled_compressor_does_not_hold_up_discard(tmp_path: Path) -> None:
    target = target_in(tmp_path, ("sh", "-c", "sleep 1000"))
    intake = await ArchiveDirectory().open_intake(target)
    # The end of the stream comes after the stall: only draining can bring it.
    writer = feed(intake, *flood())
    async with asyncio.timeout(WAIT_S):
        await intake.discard()
        await writer.join()
    assert writer.errors == []
    assert os.listdir(tmp_path) == []


async def test_intake_drained_stall_lets_the_writer_end_before_discard(tmp_path: Path) -> None:
    intake = await ArchiveDirectory().open_intake(target_in(tmp_path, ("sh", "-c", "sleep 1000")))
    writer = feed(intake, *flood())
    assert isinstance(intake, RelayedIntake)
    intake.drain()
    async with asyncio.timeout(WAIT_S):
        await writer.join()
    assert writer.errors == []
    assert intake.failure() is None
    await intake.discard()


async def test_intake_stalled_target_finish_ends_in_time(tmp_path: Path) -> None:
    intake = await ArchiveDirectory().open_intake(target_in(tmp_path, ("sh", "-c", "sleep 1000")))
    feed(intake, TWO_DISKS)
    with pytest.raises(TargetError, match=r"timeout after 0.2s waiting for"):
        await intake.finish(expected(), timeout_s=0.2)
    await intake.discard()


async def test_intake_stalled_file_is_drained_on_discard(tmp_path: Path) -> None:
    # A FIFO that nobody reads stands for a file on a dead mount.
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    holder_fd = os.open(fifo, os.O_RDWR | os.O_CLOEXEC)
    store = ArchiveDirectory(files=ScriptedFiles(open_as=str(fifo)))
    intake = await store.open_intake(target_in(tmp_path))
    writer = feed(intake, *flood())
    async with asyncio.timeout(WAIT_S):
        await intake.discard()
        await writer.join()
    assert writer.errors == []
    os.close(holder_fd)


async def test_intake_discard_with_a_writer_that_never_closes_is_bounded(tmp_path: Path) -> None:
    intake = await ArchiveDirectory(discard_timeout_s=0.1).open_intake(target_in(tmp_path))
    held_fd = os.dup(intake.write_fd)
    async with asyncio.timeout(WAIT_S):
        await intake.discard()
        await intake.discard()
    with pytest.raises(BrokenPipeError):
        os.write(held_fd, b"x")
    os.close(held_fd)
    assert os.listdir(tmp_path) == []
    assert intake.failure() is None


async def test_intake_cancelled_write_into_a_stall_is_discarded(tmp_path: Path) -> None:
    intake = await ArchiveDirectory().open_intake(target_in(tmp_path, ("sh", "-c", "sleep 1000")))

    async def write_all() -> None:
        for part in flood():
            await intake.write(part)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(write_all(), 0.2)
    async with asyncio.timeout(WAIT_S):
        await intake.discard()
    assert os.listdir(tmp_path) == []
