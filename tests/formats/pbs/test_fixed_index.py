"""Fixed indexes: the example of the format, any disk and order, what is refused."""

from __future__ import annotations

import hashlib
import struct
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vzdump_qemu.errors import PbsCorrupt, PbsError
from vzdump_qemu.formats.pbs.digest import chunk_digest
from vzdump_qemu.formats.pbs.fixed_index import (
    FixedGeometry,
    FixedIndex,
    FixedIndexBuilder,
    encode_fixed_index,
)
from vzdump_qemu.formats.pbs.index_header import IndexStamp

CHUNK = 4 << 20
STAMP = IndexStamp(uuid=bytes(range(16)), ctime_s=1700000000)
EXAMPLE_SIZE = CHUNK + 512
EXAMPLE_CSUM = bytes.fromhex("d257e9cf61689977342b3f81e5352b17af9a2d10f342842634f7861d6e5d8634")


def example() -> FixedIndex:
    """4 MiB and 512 bytes of zeroes."""
    builder = FixedIndexBuilder(FixedGeometry(size_bytes=EXAMPLE_SIZE))
    builder.set_digest(1, chunk_digest(bytes(512)))
    builder.set_digest(0, chunk_digest(bytes(CHUNK)))
    return builder.finish(STAMP)


EXAMPLE = encode_fixed_index(example())


def test_example_has_the_bytes_of_the_format() -> None:
    assert len(EXAMPLE) == 4160
    assert EXAMPLE[:8].hex() == "2f7f41ed91fd0fcd"
    assert EXAMPLE[8:24] == STAMP.uuid
    assert EXAMPLE[24:32] == struct.pack("<q", 1700000000)
    assert EXAMPLE[32:64] == EXAMPLE_CSUM
    assert EXAMPLE[64:72].hex() == "0002400000000000"
    assert EXAMPLE[72:80].hex() == "0000400000000000"
    assert EXAMPLE[80:4096] == bytes(4016)
    assert EXAMPLE[4096:].hex() == (
        "bb9f8df61474d25e71fa00722318cd387396ca1736605e1248821cc0de3d3af8"
        "076a27c79e5ace2a3d47f9dd2e83e4ff6ea8872b3c2218f66c92b89b55f36560"
    )


def test_decode_example_returns_it() -> None:
    index = FixedIndex.decode(EXAMPLE)
    assert index == example()
    assert index.index_csum() == index.stored_csum == EXAMPLE_CSUM
    assert list(index) == [index.digest(0), index.digest(1)]
    geometry = index.geometry
    assert (geometry.chunk_count, geometry.index_bytes) == (2, 4160)
    assert [geometry.chunk_offset_bytes(i) for i in (0, 1)] == [0, CHUNK]
    assert [geometry.chunk_length_bytes(i) for i in (0, 1)] == [CHUNK, 512]
    for call in (geometry.chunk_length_bytes, index.digest):
        for beyond in (-1, 2):
            with pytest.raises(PbsError, match="beyond the end"):
                call(beyond)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40 * 65536),
    st.sampled_from([65536, 131072, CHUNK]),
    st.randoms(use_true_random=False),
    st.binary(min_size=16, max_size=16),
    st.integers(-(1 << 63), (1 << 63) - 1),
)
def test_index_any_disk_and_order_returns(
    size_bytes: int, chunk_bytes: int, random: Random, uuid: bytes, ctime_s: int
) -> None:
    geometry = FixedGeometry(size_bytes=size_bytes, chunk_bytes=chunk_bytes)
    digests = [hashlib.sha256(b"%d" % i).digest() for i in range(geometry.chunk_count)]
    places = list(range(geometry.chunk_count))
    random.shuffle(places)
    builder = FixedIndexBuilder(geometry)
    for place in places:
        builder.set_digest(place, digests[place])
    index = builder.finish(IndexStamp(uuid=uuid, ctime_s=ctime_s))
    again = FixedIndex.decode(encode_fixed_index(index))
    assert again == index and list(again) == digests
    assert again.index_csum() == hashlib.sha256(b"".join(digests)).digest()
    assert sum(map(geometry.chunk_length_bytes, places)) == size_bytes


def test_decode_truncated_or_trailing_is_refused() -> None:
    for length in [*range(0, 4160, 7), 4095, 4096, 4159]:
        with pytest.raises(PbsCorrupt):
            FixedIndex.decode(EXAMPLE[:length])
    with pytest.raises(PbsCorrupt, match=r"got unexpected file size \(4160 != 4161\)"):
        FixedIndex.decode(EXAMPLE + b"\0")
    with pytest.raises(PbsCorrupt, match=r"index too small \(4095\)"):
        FixedIndex.decode(EXAMPLE[:4095])
    with pytest.raises(PbsCorrupt, match="got unknown magic number"):
        FixedIndex.decode(bytes(4160))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (64, 0), (64, 1 << 63), (64, (64 << 40) + 1), (72, 0), (72, 1), (72, 3 << 20),
        (72, 8 << 20), (72, 32768), (72, 1 << 63),
    ],
)  # fmt: skip
def test_decode_impossible_geometry_is_refused(place: int, value: int) -> None:
    changed = bytearray(EXAMPLE)
    struct.pack_into("<Q", changed, place, value)
    with pytest.raises(PbsCorrupt):
        FixedIndex.decode(changed)


def test_decode_size_over_the_limit_of_the_caller_is_refused() -> None:
    with pytest.raises(PbsCorrupt, match="over 512"):
        FixedIndex.decode(EXAMPLE, size_bytes_max=512)


def test_check_computes_the_sum_and_trusts_nothing_stored() -> None:
    example().check(index_csum=EXAMPLE_CSUM, size_bytes=EXAMPLE_SIZE)
    changed = bytearray(EXAMPLE)
    changed[4096] ^= 1
    with pytest.raises(PbsCorrupt, match="wrong index checksum"):
        FixedIndex.decode(changed).check(index_csum=EXAMPLE_CSUM, size_bytes=EXAMPLE_SIZE)
    with pytest.raises(PbsCorrupt, match="wrong size"):
        example().check(index_csum=EXAMPLE_CSUM, size_bytes=512)


def test_builder_with_base_replaces_single_chunks() -> None:
    geometry = FixedGeometry(size_bytes=EXAMPLE_SIZE)
    builder = FixedIndexBuilder(geometry, base=FixedIndex.decode(EXAMPLE))
    assert builder.missing_count == 0
    assert builder.index_csum() == EXAMPLE_CSUM
    builder.set_digest(0, b"\5" * 32)
    index = builder.finish(STAMP)
    assert (index.digest(0), index.digest(1)) == (b"\5" * 32, example().digest(1))
    builder.set_digest(0, example().digest(0))
    assert builder.index_csum() == EXAMPLE_CSUM
    assert index.digest(0) == b"\5" * 32


def test_builder_counts_each_missing_chunk_once() -> None:
    builder = FixedIndexBuilder(FixedGeometry(size_bytes=3 * CHUNK))
    for _ in range(2):
        builder.set_digest(2, bytes(32))
    assert builder.missing_count == 2
    with pytest.raises(PbsError, match="2 of 3 chunks are missing, the first is 0"):
        builder.index_csum()


def test_builder_refuses_what_does_not_fit() -> None:
    geometry = FixedGeometry(size_bytes=EXAMPLE_SIZE)
    builder = FixedIndexBuilder(geometry)
    for place, digest in ((2, bytes(32)), (-1, bytes(32)), (0, bytes(31))):
        with pytest.raises(PbsError):
            builder.set_digest(place, digest)
    with pytest.raises(PbsError, match="another size"):
        FixedIndexBuilder(FixedGeometry(size_bytes=CHUNK), base=example())
    with pytest.raises(PbsError, match="over"):
        FixedIndexBuilder(FixedGeometry(size_bytes=1 << 50))


@pytest.mark.parametrize("stamp", [IndexStamp(uuid=b"", ctime_s=0),
                                   IndexStamp(uuid=bytes(16), ctime_s=1 << 63)])  # fmt: skip
def test_encode_stamp_that_does_not_fit_is_refused(stamp: IndexStamp) -> None:
    builder = FixedIndexBuilder(FixedGeometry(size_bytes=1))
    builder.set_digest(0, bytes(32))
    with pytest.raises(PbsError):
        encode_fixed_index(builder.finish(stamp))
