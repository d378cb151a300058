"""The reader: any split of the input, any damage, any claim in a header."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vzdump_qemu.errors import VmaError
from vzdump_qemu.formats.vma import (
    ClusterBook,
    DataRead,
    HeaderRead,
    VmaDevice,
    VmaEvent,
    VmaReader,
    VmaStreamCheck,
)

GOLDEN = Path(__file__).parents[2] / "data" / "vma"
ONE_DISK = (GOLDEN / "create-one-disk.vma").read_bytes()
SMALL = ("create-one-disk", "create-size-512", "create-config-only", "create-eight-odd-sizes")


def renewed(data: bytearray, begin: int, length: int, field: int) -> bytearray:
    data[field : field + 16] = bytes(16)
    data[field : field + 16] = hashlib.md5(data[begin : begin + length]).digest()
    return data


def read(stream: bytes, step: int) -> tuple[list[VmaEvent], dict[int, dict[int, int]]]:
    """All events but data, and each byte that is not zero by device and offset."""
    reader, events, content = VmaReader(), list[VmaEvent](), dict[int, dict[int, int]]()
    for at in range(0, len(stream), step):
        reader.feed(stream[at : at + step])
        while (event := reader.next_event()) is not None:
            if isinstance(event, DataRead):
                found = content.setdefault(event.vma_dev_id, {})
                for place, byte in enumerate(event.data, start=event.disk_offset_bytes):
                    if byte:
                        found[place] = byte
            else:
                events.append(event)
    reader.finish()
    return events, content


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("step", [1, 511, 4097])
def test_reader_any_split_gives_the_same_events(name: str, step: int) -> None:
    stream = (GOLDEN / f"{name}.vma").read_bytes()
    assert read(stream, step) == read(stream, len(stream))


def test_reader_first_event_is_the_header() -> None:
    reader = VmaReader()
    reader.feed(ONE_DISK)
    event = reader.next_event()
    assert isinstance(event, HeaderRead)
    assert [row.name for row in event.header.devices] == ["drive-scsi0"]
    assert event.header.config("qemu-server.conf") is not None
    assert event.header.config("none") is None


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (0, "can't read vma header - got EOF"),
        (12287, "can't read vma header - got EOF"),
        (12288, "can't read vma header data - got EOF"),
        (12799, "can't read vma header data - got EOF"),
        (12800, "detected missing cluster 0 for stream drive-scsi0"),
        (12801, r"read short extent \(1 bytes\)"),
        (13312, r"short vma extent \(512 < 41472\)"),
        (len(ONE_DISK) - 1, r"short vma extent \(41471 < 41472\)"),
    ],
)
def test_reader_cut_stream_is_named_by_its_place(length: int, text: str) -> None:
    with pytest.raises(VmaError, match=text) as refusal:
        read(ONE_DISK[:length], 5000)
    assert refusal.value.offset_bytes == length or "extent (1 b" in str(refusal.value)


def test_reader_unknown_device_number_is_refused() -> None:
    data = bytearray(ONE_DISK)
    data[12800 + 43] = 7
    with pytest.raises(VmaError, match="got wrong dev id 7") as refusal:
        read(bytes(renewed(data, 12800, 512, 12824)), len(data))
    assert refusal.value.offset_bytes == 12800


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 13400), st.integers(1, 255), st.booleans(), st.sampled_from([1 << 20, 700]))
def test_reader_changed_byte_never_raises_anything_else(
    at: int, change: int, sums_renewed: bool, step: int
) -> None:
    data = bytearray(ONE_DISK)
    data[at] ^= change
    if sums_renewed:
        renewed(data, 0, 12800, 32)
        renewed(data, 12800, 512, 12824)
    try:
        read(bytes(data), step)
    except VmaError as error:
        assert str(error).isprintable()


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=600), st.sampled_from([0, 4, 60, 12288, 12800, 13312]))
def test_reader_any_bytes_never_raise_anything_else(tail: bytes, kept: int) -> None:
    with pytest.raises(VmaError):
        read(ONE_DISK[:kept] + tail, 300)


@pytest.mark.parametrize("size_bytes", [(1 << 48) - 512, 1 << 48])
def test_reader_huge_device_costs_no_memory(size_bytes: int) -> None:
    data = bytearray(ONE_DISK)
    struct.pack_into(">Q", data, 4096 + 32 + 8, size_bytes)
    stream = bytes(renewed(data, 0, 12800, 32))
    tracemalloc.start()
    try:
        with pytest.raises(VmaError, match=r"missing cluster 4 .*\(429496729\d of"):
            read(stream, len(stream))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size_bytes", [(1 << 48) + 512, 1 << 63, (1 << 64) - 512])
def test_reader_impossible_device_size_is_refused(size_bytes: int) -> None:
    data = bytearray(ONE_DISK)
    struct.pack_into(">Q", data, 4096 + 32 + 8, size_bytes)
    with pytest.raises(VmaError, match="too large"):
        read(bytes(renewed(data, 0, 12800, 32)), len(data))


def test_reader_huge_header_is_refused_before_it_is_collected() -> None:
    data = bytearray(ONE_DISK[:12288])
    struct.pack_into(">I", data, 56, 0xFFFFFE00)
    reader = VmaReader()
    reader.feed(data)
    with pytest.raises(VmaError, match="wrong vma header size"):
        reader.next_event()


def test_reader_header_full_of_empty_strings_costs_little() -> None:
    header_bytes = 1 << 20
    data = bytearray(ONE_DISK[:12800]) + bytearray(header_bytes - 12800)
    struct.pack_into(">II", data, 52, header_bytes - 12288, header_bytes)
    renewed(data, 0, header_bytes, 32)
    reader = VmaReader()
    tracemalloc.start()
    try:
        reader.feed(data)
        assert isinstance(reader.next_event(), HeaderRead)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_stream_check_skipping_data_agrees_with_reader() -> None:
    check, at = VmaStreamCheck(), 0
    while at < len(ONE_DISK):
        needed = check.needed_bytes
        at += needed + check.give(ONE_DISK[at : at + needed])
    check.finish()
    reader = VmaReader()
    reader.feed(ONE_DISK)
    while reader.next_event() is not None:
        pass
    reader.finish()
    assert check.tallies() == reader.check.tallies()
    assert check.extent_count == 1


def book_of(size_bytes: int) -> ClusterBook:
    return ClusterBook([VmaDevice(vma_dev_id=1, name="d", size_bytes=size_bytes)])


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300_000), st.lists(st.integers(0, 299_999), max_size=6))
def test_book_any_order_of_parts_is_complete_once(count: int, cuts: list[int]) -> None:
    book = book_of(count * 65536)
    edges = sorted({0, count, *(cut for cut in cuts if cut < count)})
    parts = list(pairwise(edges))
    for begin, end in parts[1::2] + parts[::2]:
        with pytest.raises(VmaError, match="missing"):
            book.check_complete()
        book.mark(1, begin, end - begin)
    book.check_complete()
    for begin, end in parts:
        with pytest.raises(VmaError, match=f"duplicated cluster {end - 1} "):
            book.mark(1, end - 1, 1)
        assert begin < end


def test_book_first_missing_behind_full_pages_is_named() -> None:
    book = book_of(200_000 * 65536)
    book.mark(1, 0, 70_001)
    book.mark(1, 70_002, 50_000)
    with pytest.raises(VmaError, match=r"missing cluster 70001 .*\(79999 of 200000"):
        book.check_complete()


def test_book_clusters_too_scattered_are_refused_in_bounded_memory() -> None:
    book = book_of(1 << 48)
    with pytest.raises(VmaError, match="too scattered"):
        for page_index in range(65536):
            book.mark(1, page_index * 65536, 1)


def test_book_ram_state_out_of_order_is_refused() -> None:
    book = ClusterBook([VmaDevice(vma_dev_id=1, name="vmstate", size_bytes=1)])
    book.mark(1, 0, 3)
    with pytest.raises(VmaError, match="out of order vmstate data"):
        book.mark(1, 4, 1)
    book.check_complete()
