"""Cutting what a reader knows into pieces."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from tests.disk_fakes import MemoryReader
from vzdump_qemu.disk_ports import PIECE_BYTES, Extent, ExtentKind
from vzdump_qemu.errors import DiskReadError
from vzdump_qemu.stores.disk_pieces import KnownPieces, ReadPiece, cut_pieces
from vzdump_qemu.units import GIB, KIB

DATA, ZERO, UNCHANGED = ExtentKind.DATA, ExtentKind.ZERO, ExtentKind.UNCHANGED
_P = PIECE_BYTES


def test_long_zeroes_are_known_and_data_is_cut() -> None:
    reader = MemoryReader((2 * _P, ZERO), (_P + 512, DATA), (5 * _P - 512, ZERO), (100, ZERO))
    assert list(cut_pieces(reader)) == [
        KnownPieces(0, 2 * _P, ZERO),
        ReadPiece(2 * _P, _P, ((0, _P),)),
        ReadPiece(3 * _P, _P, ((0, 64 * KIB),)),
        KnownPieces(4 * _P, 4 * _P, ZERO),
        KnownPieces(8 * _P, 100, ZERO),
    ]


def test_short_gaps_are_read_and_long_ones_are_not() -> None:
    reader = MemoryReader(
        (4096, DATA), (60 * KIB, ZERO), (4096, DATA), (1 << 20, ZERO), (512, DATA)
    )
    begin = 64 * KIB + 4096 + (1 << 20)
    [piece] = cut_pieces(reader)
    assert piece == ReadPiece(
        0, reader.size_bytes, ((0, 128 * KIB), (begin - begin % (64 * KIB), begin + 512))
    )


def test_piece_that_changed_in_part_is_read_with_what_did_not() -> None:
    reader = MemoryReader((_P, UNCHANGED), (4096, DATA), (_P - 4096, UNCHANGED), (_P, UNCHANGED))
    assert list(cut_pieces(reader)) == [
        KnownPieces(0, _P, UNCHANGED),
        ReadPiece(_P, _P, ((0, _P),)),
        KnownPieces(2 * _P, _P, UNCHANGED),
    ]


def test_piece_half_zero_and_half_unchanged_is_read() -> None:
    reader = MemoryReader((_P // 2, ZERO), (_P // 2, UNCHANGED))
    assert list(cut_pieces(reader)) == [ReadPiece(0, _P, ((_P // 2, _P),))]


def test_huge_hole_comes_in_windows() -> None:
    pieces = list(cut_pieces(MemoryReader((64 * GIB, ZERO))))
    assert pieces == [KnownPieces(index * GIB, GIB, ZERO) for index in range(64)]


def test_empty_disk_has_no_pieces() -> None:
    assert list(cut_pieces(MemoryReader())) == []


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_any_disk_cover_it_once_and_read_all_data(seed: int) -> None:
    chance = random.Random(seed)
    parts = [
        (chance.choice((512, 4096, 65536, _P, 3 * _P)) * chance.randrange(1, 9),
         chance.choice((DATA, ZERO, UNCHANGED)))
        for _ in range(40)
    ]  # fmt: skip
    reader = MemoryReader(*parts)
    at = 0
    read: list[tuple[int, int]] = []
    for piece in cut_pieces(reader):
        assert piece.offset_bytes == at
        assert at % _P == 0
        at += piece.length_bytes
        assert at % _P == 0 or at == reader.size_bytes
        if isinstance(piece, ReadPiece):
            assert piece.length_bytes <= _P
            read += [(piece.offset_bytes + b, piece.offset_bytes + e) for b, e in piece.reads]
    assert at == reader.size_bytes
    for extent in reader.extents(0, reader.size_bytes):
        if extent.kind is DATA:
            covered = sum(
                max(0, min(end, extent.end_bytes) - max(begin, extent.offset_bytes))
                for begin, end in read
            )
            assert covered == extent.length_bytes


@pytest.mark.parametrize(
    "told",
    [[], [Extent(512, 512, DATA)], [Extent(0, 0, DATA)], [Extent(0, 2048, DATA)],
     [Extent(0, 256, DATA), Extent(512, 512, DATA)]],
)  # fmt: skip
def test_reader_that_tells_nonsense_is_refused(told: Sequence[Extent]) -> None:
    class Nonsense(MemoryReader):
        def extents(self, offset_bytes: int, length_bytes: int) -> Sequence[Extent]:
            return told

    with pytest.raises(DiskReadError, match="of the disk"):
        list(cut_pieces(Nonsense((1024, DATA))))
