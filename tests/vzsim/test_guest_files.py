"""The guest's own file system: what it survives, and which broken images its checker finds."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import pytest

from vzsim.checkers.guest_consistency import judge_images
from vzsim.fakeqmp.run_state import RunState
from vzsim.kernel import run_simulated
from vzsim.world import guest_files
from vzsim.world.files import SimulatedFiles
from vzsim.world.guest_files import Record, Superblock, Version
from vzsim.world.machine import MachineHost, SimulatedMachine, VmShape, memory_images
from vzsim.world.pipes import Descriptors
from vzsim.world.writer import GuestMark, GuestWriter

SIZES = {"/d0": 1114112, "/d1": 131584}


@dataclass(frozen=True)
class Instant:
    """All disks at one instant, and what the guest knew then."""

    images: list[bytes]
    mark: GuestMark

    def judge(self, *, says_frozen: bool = False) -> list[str]:
        return judge_images(self.images, self.mark, says_frozen=says_frozen)


class Bench:
    """One VM whose guest works."""

    def __init__(self, seed: int, sizes: dict[str, int] | None = None) -> None:
        stream = random.Random(seed)
        sizes = SIZES if sizes is None else sizes
        host = MachineHost(
            files=SimulatedFiles(),
            descriptors=Descriptors(),
            images=memory_images(sizes, stream),
            stream=stream,
        )
        disks = tuple((f"drive-scsi{at}", path) for at, path in enumerate(sizes))
        self.host = host
        self.machine = SimulatedMachine(VmShape(vmid=100, disks=disks), host)
        self.writer = GuestWriter(self.machine, writes_per_s=200, stream=stream)
        self.machine.boot(RunState.RUNNING)
        self.writer.start()

    def look(self) -> Instant:
        mark = self.writer.mark()
        assert mark is not None
        images = [bytes(disk.read(0, disk.size_bytes)) for disk in self.host.images.values()]
        return Instant(images=images, mark=mark)

    async def work(self, seconds: float = 0.5) -> Instant:
        self.writer.start()
        await asyncio.sleep(seconds)
        return self.look()


def _run(work: Callable[[Bench], Awaitable[None]], seed: int = 1) -> None:
    async def main() -> None:
        bench = Bench(seed)
        await work(bench)
        bench.writer.stop()

    run_simulated(main())


def _working_instant(seed: int = 1) -> tuple[Instant, Instant]:
    """Two instants, some transactions apart."""
    found = []

    async def work(bench: Bench) -> None:
        for _ in range(3):
            await bench.work()
        found.append(bench.look())
        for _ in range(3):
            await bench.work()
        found.append(bench.look())

    _run(work, seed)
    first, second = found
    assert 4 < first.mark.acknowledged_seq + 4 < second.mark.acknowledged_seq
    return first, second


def test_every_instant_of_a_working_guest_is_consistent_after_a_crash() -> None:
    unclean = set()

    async def work(bench: Bench) -> None:
        for step in range(60):
            instant = await bench.work(0.002 + 0.013 * (step % 7))
            assert instant.judge() == []
            if instant.mark.begun_seq > 1:
                unclean.add(guest_files.replay(instant.images).needs_replay)
        assert instant.mark.acknowledged_seq > 30

    for seed in range(3):
        _run(work, seed)
    assert unclean == {True}


def test_frozen_guest_is_clean_and_a_thawed_one_is_not() -> None:
    async def work(bench: Bench) -> None:
        await bench.work()
        bench.writer.freezes()
        assert bench.look().mark.is_quiet
        assert bench.look().judge(says_frozen=True) == []
        later = await bench.work()
        assert not later.mark.is_quiet and later.judge() == []
        assert later.judge(says_frozen=True) == ["frozen is said, the file system is not clean"]

    _run(work)


@pytest.mark.parametrize("death", ["reset", "kill", "power-off"])
def test_guest_comes_back_after_every_end(death: str) -> None:
    async def work(bench: Bench) -> None:
        for _ in range(20):
            before = await bench.work(0.03)
            if death == "reset":
                bench.writer.restarts()
            else:
                if death == "power-off":
                    bench.writer.shuts_down()
                    assert not guest_files.replay(bench.look().images).needs_replay
                bench.machine.end_process()
                bench.machine.boot(RunState.RUNNING)
            assert bench.look().judge() == []
            after = await bench.work(0.03)
            assert after.judge() == []
            assert after.mark.acknowledged_seq >= before.mark.acknowledged_seq
        assert bench.writer.record.damage == []

    _run(work)


def test_guest_that_lost_a_flushed_transaction_says_so_when_it_starts() -> None:
    async def work(bench: Bench) -> None:
        old = await bench.work()
        await bench.work(1.0)
        bench.machine.end_process()
        for disk, image in zip(bench.host.images.values(), old.images, strict=True):
            disk.write(0, image)
        bench.machine.boot(RunState.RUNNING)
        await bench.work(0.1)
        assert any("was flushed" in text for text in bench.writer.record.damage)

    _run(work)


def test_disk_taken_later_than_the_other_is_found() -> None:
    for seed in range(8):
        first, second = _working_instant(seed)
        for images in (
            [first.images[0], second.images[1]],
            [second.images[0], first.images[1]],
        ):
            for mark in (first.mark, second.mark):
                assert judge_images(images, mark, says_frozen=False)


def test_disks_older_or_newer_than_the_point_in_time_are_found() -> None:
    first, second = _working_instant()
    lost = judge_images(first.images, second.mark, says_frozen=False)
    assert any("was flushed before the point in time" in text for text in lost)
    newer = judge_images(second.images, first.mark, says_frozen=False)
    assert any("began after the point in time" in text for text in newer)


def test_torn_page_is_found() -> None:
    first, second = _working_instant()
    for key, versions in first.mark.versions.items():
        if second.mark.versions[key][-1] == versions[-1]:
            continue
        disk_index, page_index = key
        offset = guest_files.page_offsets(len(first.images[disk_index]))[page_index]
        middle, end = offset + guest_files.PAGE_BYTES // 2, offset + guest_files.PAGE_BYTES
        torn = bytearray(first.images[disk_index])
        torn[middle:end] = second.images[disk_index][middle:end]
        if torn == first.images[disk_index] or key in guest_files.replay(first.images).redone:
            continue  # the other half came later, or the replay mends it
        images = [*first.images]
        images[disk_index] = bytes(torn)
        found = judge_images(images, first.mark, says_frozen=False)
        assert f"page {page_index} of disk {disk_index} is torn" in found
        return
    pytest.fail("no page changed between the two instants")


def test_page_that_stayed_behind_is_found() -> None:
    first, second = _working_instant()
    base = guest_files.decode_superblock(second.images[0])
    assert base is not None
    for key, versions in second.mark.versions.items():
        settled = [version for version in versions if version.seq <= base.checkpoint_seq]
        is_redone = key in guest_files.replay(second.images).redone
        if is_redone or settled[-1] == first.mark.versions[key][-1]:
            continue
        disk_index, page_index = key
        offset = guest_files.page_offsets(len(second.images[disk_index]))[page_index]
        image = bytearray(second.images[disk_index])
        old = guest_files.encode_page(versions[0], key)
        image[offset : offset + guest_files.PAGE_BYTES] = old
        images = [*second.images]
        images[disk_index] = bytes(image)
        found = judge_images(images, second.mark, says_frozen=False)
        assert [text for text in found if f"page {page_index} of disk {disk_index}" in text]
        return
    pytest.fail("no page was settled between the two instants")


def test_lost_journal_record_of_a_flushed_transaction_is_found() -> None:
    first, _ = _working_instant()
    offset = guest_files.record_offset(first.mark.acknowledged_seq)
    image = bytearray(first.images[1])
    image[offset : offset + 16] = bytes(16)
    found = judge_images([first.images[0], bytes(image)], first.mark, says_frozen=False)
    assert any("the disks end with" in text for text in found)


def test_disk_without_superblock_is_found() -> None:
    first, _ = _working_instant()
    images = [first.images[0], bytes(len(first.images[1]))]
    assert judge_images(images, first.mark, says_frozen=False) == ["disk 1 has no superblock"]


def test_clean_mark_with_a_waiting_transaction_is_found() -> None:
    images = _formatted()
    clean = Superblock(checkpoint_seq=0, is_clean=True)
    for index, image in enumerate(images):
        record = Record(version=Version(1, 1), pages={})
        _put(image, guest_files.record_offset(1), guest_files.encode_record(record, index))
        _put(image, 0, guest_files.encode_superblock(clean, index, 2))
    faults = guest_files.replay(images).faults
    assert faults == ("marked clean, yet transaction 1 waits in the journals",)


def test_records_of_different_mounts_are_no_transaction() -> None:
    images = _formatted()
    for index, image in enumerate(images):
        record = Record(version=Version(1, 1 + index), pages={})
        _put(image, guest_files.record_offset(1), guest_files.encode_record(record, index))
    assert guest_files.replay(images).last_seq == 0


def test_guest_that_was_quiet_is_expected_clean_although_nobody_says_frozen() -> None:
    first, _ = _working_instant()
    found = judge_images(first.images, replace(first.mark, is_quiet=True), says_frozen=False)
    assert found == ["the guest had put its file system in order, the archive has it unclean"]


@pytest.mark.parametrize("size_bytes", [25088, 65536, 131584, 1114112])
def test_pages_lie_apart_and_inside(size_bytes: int) -> None:
    count = guest_files.page_count(size_bytes)
    offsets = list(guest_files.page_offsets(size_bytes))
    ends = [offset + guest_files.PAGE_BYTES for offset in offsets]
    assert count >= 4 and ends[-1] <= size_bytes
    assert all(end <= offset for end, offset in zip(ends, offsets[1:], strict=False))
    ring_end = guest_files.record_offset(guest_files.RECORD_COUNT - 1)
    assert ring_end < offsets[0]


def test_guest_with_disks_too_small_has_no_file_system() -> None:
    async def main() -> None:
        bench = Bench(1, {"/d0": 4096})
        await asyncio.sleep(1)
        assert bench.writer.mark() is None
        bench.writer.freezes()

    run_simulated(main())


def _formatted() -> list[bytearray]:
    images = [bytearray(65536), bytearray(65536)]
    block = Superblock(checkpoint_seq=0, is_clean=False)
    for index, image in enumerate(images):
        _put(image, 0, guest_files.encode_superblock(block, index, 2))
        for at in range(guest_files.page_count(len(image))):
            page = guest_files.encode_page(Version(0, 0), (index, at))
            _put(image, guest_files.page_offsets(len(image))[at], page)
    return images


def _put(image: bytearray, offset: int, data: bytes) -> None:
    image[offset : offset + len(data)] = data
