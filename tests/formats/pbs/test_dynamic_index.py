"""Dynamic indexes: the example of the format, any chunks, what is refused."""

from __future__ import annotations

import hashlib
import struct
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vzdump_qemu.errors import PbsCorrupt, PbsError
from vzdump_qemu.formats.pbs.digest import chunk_digest
from vzdump_qemu.formats.pbs.dynamic_index import (
    DynamicEntry,
    DynamicIndex,
    build_dynamic_index,
    encode_dynamic_index,
)
from vzdump_qemu.formats.pbs.index_header import IndexStamp

CHUNK = 4 << 20
STAMP = IndexStamp(uuid=bytes(16), ctime_s=0)
CSUM = bytes.fromhex("d29387f1f7645357df541fe71b53e6398b04e493cf7e54935ed703097d98f7af")
INDEX = build_dynamic_index(
    [
        DynamicEntry(end_bytes=CHUNK, digest=chunk_digest(bytes(CHUNK))),
        DynamicEntry(end_bytes=CHUNK + 512, digest=chunk_digest(bytes(512))),
    ],
    STAMP,
)
ENCODED = encode_dynamic_index(INDEX)


def with_ends(*ends: int) -> bytes:
    return ENCODED[:4096] + b"".join(struct.pack("<Q", end) + bytes(32) for end in ends)


def test_example_has_the_sum_of_the_format() -> None:
    assert len(ENCODED) == 4096 + 80
    assert ENCODED[:8].hex() == "1c914ea519bab3cd"
    assert ENCODED[32:64] == INDEX.index_csum() == INDEX.stored_csum == CSUM
    assert ENCODED[64:4096] == bytes(4032)
    INDEX.check(index_csum=CSUM, size_bytes=CHUNK + 512)
    assert DynamicIndex.decode(ENCODED) == INDEX


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 16 << 20), min_size=1, max_size=40))
def test_index_any_chunks_return(lengths: list[int]) -> None:
    entries = [
        DynamicEntry(end_bytes=end, digest=hashlib.sha256(b"%d" % end).digest())
        for end in accumulate(lengths)
    ]
    index = DynamicIndex.decode(encode_dynamic_index(build_dynamic_index(entries, STAMP)))
    assert list(index) == entries == [index.entry(i) for i in range(index.chunk_count)]
    assert index.size_bytes == sum(lengths)
    begin = 0
    for number, entry in enumerate(entries):
        assert index.chunk_index_at(begin) == index.chunk_index_at(entry.end_bytes - 1) == number
        begin = entry.end_bytes
    for offset in (-1, begin):
        with pytest.raises(PbsError, match="beyond the end"):
            index.chunk_index_at(offset)


@pytest.mark.parametrize(
    "ends", [(), (0,), (5, 5), (5, 4), ((16 << 20) + 1,), (1, (1 << 64) - 1), (1, 2, 1)]
)
def test_decode_impossible_ends_are_refused(ends: tuple[int, ...]) -> None:
    with pytest.raises(PbsCorrupt):
        DynamicIndex.decode(with_ends(*ends))


def test_decode_truncated_anywhere_is_refused_or_whole_records() -> None:
    for length in range(4090, len(ENCODED)):
        if length == 4096 + 40:
            assert DynamicIndex.decode(ENCODED[:length]).chunk_count == 1
            continue
        with pytest.raises(PbsCorrupt):
            DynamicIndex.decode(ENCODED[:length])
    with pytest.raises(PbsCorrupt, match="magic"):
        DynamicIndex.decode(bytes(len(ENCODED)))


def test_decode_too_many_chunks_are_refused() -> None:
    with pytest.raises(PbsCorrupt, match="more than 1 chunks"):
        DynamicIndex.decode(ENCODED, chunk_count_max=1)


def test_check_finds_size_and_sum() -> None:
    with pytest.raises(PbsCorrupt, match="wrong size"):
        INDEX.check(index_csum=CSUM, size_bytes=CHUNK)
    with pytest.raises(PbsCorrupt, match="wrong index checksum"):
        INDEX.check(index_csum=bytes(32), size_bytes=CHUNK + 512)


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [DynamicEntry(end_bytes=1, digest=b"")],
        [DynamicEntry(end_bytes=-1, digest=bytes(32))],
        [DynamicEntry(end_bytes=1 << 64, digest=bytes(32))],
        [DynamicEntry(end_bytes=2, digest=bytes(32)), DynamicEntry(end_bytes=2, digest=bytes(32))],
    ],
)
def test_build_impossible_chunks_are_refused(entries: list[DynamicEntry]) -> None:
    with pytest.raises(PbsError):
        build_dynamic_index(entries, STAMP)


def test_entry_out_of_range_is_refused() -> None:
    for number in (-1, 2):
        with pytest.raises(PbsError, match="beyond the end"):
            INDEX.entry(number)
