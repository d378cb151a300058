"""Block status: allocation and dirty bitmap, alone and together."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from vzdump_qemu.disk_ports import ExtentKind
from vzdump_qemu.errors import DiskReadError
from vzdump_qemu.formats.nbd import StatusRuns, check_status_length, decode_status, merge_status

DATA, ZERO, UNCHANGED = ExtentKind.DATA, ExtentKind.ZERO, ExtentKind.UNCHANGED
_HOLE, _ZERO_FLAG = 1, 2


def _runs(*extents: tuple[int, int], context_id: int = 1) -> StatusRuns:
    payload = struct.pack(">I", context_id) + b"".join(struct.pack(">II", *one) for one in extents)
    check_status_length(len(payload))
    found_id, runs = decode_status(payload)
    assert found_id == context_id
    return runs


def _merged(
    length: int, allocation: StatusRuns | None, bitmap: StatusRuns | None = None
) -> Sequence[tuple[int, int, ExtentKind]]:
    found = {number: runs for number, runs in ((1, allocation), (2, bitmap)) if runs is not None}
    extents = merge_status(
        1000,
        length,
        found,
        allocation_context_id=1 if allocation else None,
        bitmap_context_id=2 if bitmap else None,
    )
    return [(one.offset_bytes, one.length_bytes, one.kind) for one in extents]


def test_allocation_alone_tells_zeroes_and_joins_equal_neighbours() -> None:
    runs = _runs((100, 0), (50, _HOLE), (30, _HOLE | _ZERO_FLAG), (20, _ZERO_FLAG), (10, 0))
    # A hole that is not said to be zero may hold anything.
    assert _merged(210, runs) == [(1000, 150, DATA), (1150, 50, ZERO), (1200, 10, DATA)]


def test_answer_for_less_than_asked_tells_of_that_part_only() -> None:
    assert _merged(500, _runs((100, 0))) == [(1000, 100, DATA)]


def test_last_extent_beyond_the_request_is_cut_off() -> None:
    assert _merged(150, _runs((100, 0), (900, 3))) == [(1000, 100, DATA), (1100, 50, ZERO)]


def test_bitmap_alone_tells_what_did_not_change() -> None:
    assert _merged(30, None, _runs((10, 0), (20, 1))) == [(1000, 10, UNCHANGED), (1010, 20, DATA)]


def test_bitmap_and_allocation_with_different_edges_are_merged() -> None:
    allocation = _runs((10, 0), (30, 3), (60, 0))
    bitmap = _runs((20, 1), (30, 0), (100, 1))
    assert _merged(90, allocation, bitmap) == [
        (1000, 10, DATA), (1010, 10, ZERO), (1020, 30, UNCHANGED), (1050, 40, DATA),
    ]  # fmt: skip


def test_shorter_one_of_two_contexts_bounds_the_answer() -> None:
    assert _merged(90, _runs((90, 0)), _runs((20, 1), (10, 0))) == [
        (1000, 20, DATA), (1020, 10, UNCHANGED),
    ]  # fmt: skip


def test_missing_context_is_refused() -> None:
    with pytest.raises(DiskReadError, match="left a context out"):
        merge_status(0, 10, {1: _runs((10, 0))}, allocation_context_id=1, bitmap_context_id=2)


def test_empty_extent_is_refused() -> None:
    with pytest.raises(DiskReadError, match="empty extent"):
        _runs((10, 0), (0, 1))


@pytest.mark.parametrize("length", [0, 4, 11, 13, (8 << 20) + 4])
def test_status_of_impossible_length_is_refused(length: int) -> None:
    with pytest.raises(DiskReadError, match="announced a block status"):
        check_status_length(length)


def test_hundred_thousand_extents_are_told_of() -> None:
    entries = b"".join(struct.pack(">II", 65536, 3 * (index & 1)) for index in range(131072))
    payload = struct.pack(">I", 1) + entries
    check_status_length(len(payload))
    _, runs = decode_status(payload)
    extents = merge_status(
        0, 131072 << 16, {1: runs}, allocation_context_id=1, bitmap_context_id=None
    )
    assert len(extents) == 131072
    assert extents[-1].end_bytes == 131072 << 16
