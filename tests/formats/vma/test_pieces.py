"""What packing by pieces needs of the writer, and what empty disks need of the reader."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from vzdump_qemu.errors import VmaError
from vzdump_qemu.formats.vma import VmaDevice, VmaStreamCheck, VmaWriter, stored_blocks
from vzdump_qemu.units import MIB

_UUID = bytes(range(16))
_CLUSTER = 65536


def _writer(size_bytes: int) -> VmaWriter:
    return VmaWriter(_UUID, 0, [], [VmaDevice(vma_dev_id=1, name="d", size_bytes=size_bytes)])


def _check(stream: bytes) -> VmaStreamCheck:
    check = VmaStreamCheck()
    at = 0
    while at < len(stream):
        raw = stream[at : at + check.needed_bytes]
        at += len(raw) + check.give(raw)
    check.finish()
    return check


def test_flushed_writer_refers_to_no_data_any_more() -> None:
    writer = _writer(4 * MIB + 4096)
    stream = bytearray(writer.header_bytes())
    buffer = bytearray(b"x" * 4 * MIB)
    for part in (*writer.add_clusters(1, 0, buffer), *writer.flush()):
        stream += part
    buffer[:] = bytes(len(buffer))
    assert writer.flush() == []
    # Zeroes alone refer to nothing and wait for more.
    assert writer.add_zero_clusters(1, 64, 1) == []
    assert writer.flush() == []
    for part in writer.finish():
        stream += part
    [tally] = _check(bytes(stream)).tallies()
    assert (tally.vma_cluster_count, tally.stored_block_count) == (65, 1024)
    assert stream.count(b"x" * 4096) == 1024


def test_clusters_examined_elsewhere_are_stored_as_said() -> None:
    data = bytes(4096) + b"y" * 4096 + bytes(_CLUSTER - 8192)
    stored = stored_blocks(memoryview(data))
    assert np.flatnonzero(stored).tolist() == [1]
    one, other = _writer(_CLUSTER), _writer(_CLUSTER)
    one.add_clusters(1, 0, data)
    other.add_examined_clusters(1, 0, data, stored)
    assert b"".join(one.finish()) == b"".join(other.finish())


@pytest.mark.parametrize("cluster_count", [57, 58, 59, 116, 200])
def test_empty_disk_of_any_length_is_whole(cluster_count: int) -> None:
    writer = _writer(cluster_count * _CLUSTER)
    ready = writer.add_zero_clusters(1, 0, cluster_count)
    stream = b"".join([writer.header_bytes(), *ready, *writer.finish()])
    [tally] = _check(stream).tallies()
    assert tally.vma_cluster_count == tally.zero_cluster_count == cluster_count
    assert tally.stored_block_count == 0


def _empty_extent(slots: list[int]) -> bytes:
    raw = bytearray(512)
    raw[:4] = b"VMAE"
    raw[8:24] = _UUID
    for index, slot in enumerate(slots):
        raw[40 + 8 * index : 48 + 8 * index] = slot.to_bytes(8, "big")
    raw[24:40] = hashlib.md5(raw, usedforsecurity=False).digest()
    return bytes(raw)


@pytest.mark.parametrize(
    ("slots", "reason"),
    [
        ([1 << 32 | index for index in range(58)], "duplicated cluster 0"),
        ([1 << 32 | index for index in range(150, 208)], "beyond its end"),
        ([2 << 32 | index for index in range(58)], "wrong dev id 2"),
        ([1 << 48 | 1 << 32 | index for index in range(58, 116)], "too many blocks"),
        ([1 << 32 | 0xFFFFFFFF - 57 + index for index in range(58)], "beyond its end"),
    ],
)
def test_full_empty_extent_is_checked_as_any_other(slots: list[int], reason: str) -> None:
    writer = _writer(200 * _CLUSTER)
    begun = _empty_extent([1 << 32 | index for index in range(58)])
    with pytest.raises(VmaError, match=reason):
        _check(writer.header_bytes() + begun + _empty_extent(slots))
