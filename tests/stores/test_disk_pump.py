"""The pump: what it moves, how it counts, fails and ends."""

from __future__ import annotations

import asyncio
from datetime import datetime

import pytest

from tests.disk_fakes import MemoryReader, MemorySink
from vzdump_qemu.disk_ports import PIECE_BYTES, DiskReader, ExtentKind, TransferProgress
from vzdump_qemu.errors import DiskReadError, InternalError, Interrupted, TargetError
from vzdump_qemu.stores.disk_pump import DiskPump
from vzdump_qemu.stores.rate_limit import RateLimit
from vzdump_qemu.stores.system import SystemClock
from vzdump_qemu.units import MIB, NS_PER_S

DATA, ZERO, UNCHANGED = ExtentKind.DATA, ExtentKind.ZERO, ExtentKind.UNCHANGED
_CONTENT = bytes(range(1, 252)) * 50000


def _pump(sink: MemorySink, *readers: DiskReader, rate: int = 0) -> DiskPump:
    return DiskPump(readers, sink, clock=SystemClock(), rate_limit_bytes_per_s=rate)


async def test_disks_are_moved_whole_and_counted() -> None:
    first = MemoryReader((2 * PIECE_BYTES, DATA), (4096, DATA), content=_CONTENT)
    second = MemoryReader(
        (8 * PIECE_BYTES, ZERO), (4096, DATA), (PIECE_BYTES - 4096, ZERO),
        (PIECE_BYTES, UNCHANGED), content=b"",
    )  # fmt: skip
    sink = MemorySink()
    pump = _pump(sink, first, second)
    await asyncio.wait_for(pump.finish(), 20)
    assert (
        b"".join(sink.pieces[0, at * PIECE_BYTES] for at in range(3))
        == (_CONTENT[: 2 * PIECE_BYTES + 4096])
    )
    # What is not read of a piece is zero, whatever the buffer held before.
    assert sink.pieces[1, 8 * PIECE_BYTES] == bytes(PIECE_BYTES)
    assert sorted(sink.known, key=lambda one: one[1]) == [
        (1, 0, 8 * PIECE_BYTES, ZERO), (1, 9 * PIECE_BYTES, PIECE_BYTES, UNCHANGED),
    ]  # fmt: skip
    total = first.size_bytes + second.size_bytes
    assert pump.progress() == TransferProgress(
        total_bytes=total,
        done_bytes=total,
        read_bytes=2 * PIECE_BYTES + 4096 + 65536,
        zero_bytes=9 * PIECE_BYTES,
        reused_bytes=PIECE_BYTES,
    )
    assert sink.is_finished
    assert sink.is_closed
    assert first.is_closed
    assert second.is_closed
    assert pump.failure() is None
    # An ended transfer stays what it is.
    await pump.cancel()
    await pump.finish()


async def test_no_disks_at_all_is_a_transfer_too() -> None:
    sink = MemorySink()
    await asyncio.wait_for(_pump(sink).finish(), 20)
    assert sink.is_finished


async def test_first_read_error_ends_the_transfer_unfinished() -> None:
    reader = MemoryReader((64 * PIECE_BYTES, DATA), content=_CONTENT)
    reader.fails_at = PIECE_BYTES
    other = MemoryReader((PIECE_BYTES, DATA))
    sink = MemorySink()
    pump = _pump(sink, reader, other)
    with pytest.raises(DiskReadError, match=f"broken at {PIECE_BYTES}"):
        await asyncio.wait_for(pump.finish(), 20)
    failure = pump.failure()
    assert isinstance(failure, DiskReadError)
    assert failure.message == f"broken at {PIECE_BYTES}"
    assert sink.is_interrupted
    assert sink.is_closed
    assert not sink.is_finished
    assert reader.is_closed
    assert other.is_interrupted


async def test_failure_of_the_sink_is_told() -> None:
    sink = MemorySink()
    sink.failure = TargetError("disk full")
    with pytest.raises(TargetError, match="disk full"):
        await asyncio.wait_for(_pump(sink, MemoryReader((1 * MIB, DATA))).finish(), 20)


async def test_failure_of_the_last_step_is_told() -> None:
    class LastStep(MemorySink):
        def finish(self) -> None:
            raise TargetError("no end")

    sink = LastStep()
    pump = _pump(sink, MemoryReader((1 * MIB, ZERO)))
    with pytest.raises(TargetError, match="no end"):
        await asyncio.wait_for(pump.finish(), 20)
    assert sink.is_closed


async def test_bug_in_a_thread_is_a_failure_and_never_a_success() -> None:
    class Buggy(MemorySink):
        def put(self, disk_index: int, offset_bytes: int, data: memoryview) -> int:
            raise ZeroDivisionError("oops")

    sink = Buggy()
    with pytest.raises(InternalError, match="ZeroDivisionError"):
        await asyncio.wait_for(_pump(sink, MemoryReader((1 * MIB, DATA))).finish(), 20)
    assert not sink.is_finished
    assert sink.is_closed


async def test_cancel_ends_waiting_reads_and_closes_everything() -> None:
    reader = MemoryReader((64 * PIECE_BYTES, DATA))
    reader.held.clear()
    sink = MemorySink()
    pump = _pump(sink, reader)
    waiting = asyncio.create_task(pump.finish())
    await asyncio.wait_for(pump.cancel(), 20)
    assert pump.ended.done()
    assert reader.is_closed
    assert sink.is_closed
    assert not sink.is_finished
    with pytest.raises(Interrupted):
        await waiting
    assert pump.failure() is None
    await pump.cancel()


async def test_cancel_reaches_a_transfer_held_back_by_its_rate() -> None:
    reader = MemoryReader((64 * PIECE_BYTES, DATA))
    pump = _pump(MemorySink(), reader, rate=1)
    await asyncio.wait_for(pump.cancel(), 20)
    assert pump.ended.done()
    assert len(reader.reads) <= 1


class _Clock:
    """A clock that stands still until it is moved."""

    now = 0

    def now_ns(self) -> int:
        return self.now

    def wall_s(self) -> float:
        return 0.0

    def local_time(self, wall_s: float) -> datetime:
        return datetime.fromtimestamp(wall_s)

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("threads do not sleep on a clock")


def test_rate_limit_spaces_reads_evenly() -> None:
    clock = _Clock()
    limit = RateLimit(4 * MIB, clock)
    assert [limit.reserve(MIB) for _ in range(4)] == [0.0, 0.25, 0.5, 0.75]
    clock.now = NS_PER_S
    assert limit.reserve(MIB) == 0.0
    # A long pause is no leave to read at full speed afterwards.
    clock.now = 100 * NS_PER_S
    assert [limit.reserve(MIB) for _ in range(4)] == [0.0, 0.0, 0.25, 0.5]


def test_rate_of_zero_is_no_limit() -> None:
    limit = RateLimit(0, _Clock())
    assert [limit.reserve(1 << 60) for _ in range(3)] == [0.0, 0.0, 0.0]
