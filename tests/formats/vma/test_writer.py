"""The writer: known streams, refusals, and what it gives back of what it was given."""

from __future__ import annotations

import hashlib
import random
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vzdump_qemu.errors import VmaError
from vzdump_qemu.formats.vma import (
    ConfigBlob,
    DataRead,
    VmaDevice,
    VmaReader,
    VmaStreamCheck,
    VmaWriter,
)

UUID = bytes.fromhex("85b03adba9f0483ab08aa317ea61f2a2")
CLUSTER = 65536
CONFIG = ConfigBlob(name="qemu-server.conf", data=b"name: x\n")


def device(size_bytes: int, name: str = "drive-scsi0", vma_dev_id: int = 1) -> VmaDevice:
    return VmaDevice(vma_dev_id=vma_dev_id, name=name, size_bytes=size_bytes)


def whole(writer: VmaWriter, data: bytes) -> bytes:
    parts = [writer.header_bytes(), *writer.add_clusters(1, 0, data), *writer.finish()]
    return b"".join(bytes(part) for part in parts)


def extent_offsets(stream: bytes) -> list[int]:
    check, at, offsets = VmaStreamCheck(), 0, []
    while at < len(stream):
        needed = check.needed_bytes
        at += needed + check.give(stream[at : at + needed])
        if check.extent is not None:
            offsets.append(check.extent.offset_bytes)
    check.finish()
    assert check.stream_bytes == len(stream)
    return offsets


def read_disks(stream: bytes, step: int) -> tuple[VmaReader, dict[int, bytearray]]:
    reader, disks = VmaReader(), dict[int, bytearray]()
    for at in range(0, len(stream), step):
        reader.feed(stream[at : at + step])
        while (event := reader.next_event()) is not None:
            if isinstance(event, DataRead):
                header = reader.check.header
                assert header is not None
                size = next(
                    row.size_bytes for row in header.devices if row.vma_dev_id == event.vma_dev_id
                )
                disk = disks.setdefault(event.vma_dev_id, bytearray(size))
                begin = event.disk_offset_bytes
                disk[begin : begin + len(event.data)] = event.data
                assert len(disk) == size
    reader.finish()
    return reader, disks


def test_writer_worked_example_gives_recorded_sums() -> None:
    disk = bytearray(135680)
    for at, text in ((0, b"BLK0"), (20480, b"BLK5"), (131072, b"LAST"), (135168, b"TAIL")):
        disk[at : at + 4] = text
    config = ConfigBlob(
        name="qemu-server.conf", data=b"name: x\n#qmdump#map:scsi0:drive-scsi0::raw:\n"
    )
    stream = whole(VmaWriter(UUID, 1795413111, [config], [device(135680)]), bytes(disk))
    assert len(stream) == 29696
    assert stream[32:48].hex() == "1358ca707b05a5b9e20bb4be59529b62"
    assert stream[48:60].hex() == "000030000000005000003200"
    assert stream[12800:12848].hex() == (
        "564d41450000000485b03adba9f0483ab08aa317ea61f2a2d489bc019e5afbb49362b82bb46b5359"
        "0021000100000000"
    )
    assert stream[0x6400:0x6404] == b"TAIL"
    assert stream[0x6600:] == bytes(0x7400 - 0x6600)


def test_writer_full_clusters_put_58_into_an_extent() -> None:
    stream = whole(VmaWriter(UUID, 0, [CONFIG], [device(7864320, name="big")]), b"\x01" * 7864320)
    assert len(stream) == 7878656
    assert extent_offsets(stream) == [12800, 3814400, 7616000]


@pytest.mark.parametrize("looked_at", [True, False])
def test_writer_zero_disk_takes_three_empty_extents(looked_at: bool) -> None:
    writer = VmaWriter(UUID, 0, [CONFIG], [device(8 << 20)])
    if looked_at:
        stream = whole(writer, bytes(8 << 20))
    else:
        parts = [writer.header_bytes(), *writer.add_zero_clusters(1, 0, 128), *writer.finish()]
        stream = b"".join(bytes(part) for part in parts)
    assert len(stream) == 14336
    assert extent_offsets(stream) == [12800, 13312, 13824]


def test_writer_without_disk_makes_one_empty_extent() -> None:
    writer = VmaWriter(UUID, 0, [CONFIG], [])
    stream = writer.header_bytes() + b"".join(bytes(part) for part in writer.finish())
    assert len(stream) == 13312
    assert extent_offsets(stream) == [12800]


@pytest.mark.slow
def test_writer_hole_of_64_gib_takes_under_a_second() -> None:
    writer = VmaWriter(UUID, 0, [], [device(64 << 30)])
    begin = time.perf_counter()
    ready = writer.add_zero_clusters(1, 0, 1 << 20)
    assert time.perf_counter() - begin < 1
    assert sum(len(part) for part in ready + writer.finish()) == -(-(1 << 20) // 58) * 512


@pytest.mark.parametrize("length", [254, 507, 508, 509, 510, 1021, 65534])
def test_writer_first_string_fills_its_sectors_stays_readable(length: int) -> None:
    name = "n" * length
    stream = whole(VmaWriter(UUID, 0, [], [device(512, name=name)]), b"x" * 512)
    reader, disks = read_disks(stream, len(stream))
    header = reader.check.header
    assert header is not None
    assert header.devices == (device(512, name=name),)
    assert disks == {1: b"x" * 512}


@pytest.mark.parametrize(
    ("configs", "devices", "text"),
    [
        ([], [], "neither"),
        ([ConfigBlob(name="a", data=bytes(65536))], [], "over 65535"),
        ([ConfigBlob(name=f"c{i}", data=bytes(65000)) for i in range(8)], [], "over 524288"),
        ([ConfigBlob(name=f"c{i}", data=b"") for i in range(257)], [], "257 configurations"),
        ([CONFIG, CONFIG], [], "name of another file"),
        ([ConfigBlob(name="../evil", data=b"")], [], "unsafe"),
        ([ConfigBlob(name="disk-a.raw", data=b"")], [device(512, "a")], "name of another file"),
        ([CONFIG], [device(0)], "no content"),
        ([CONFIG], [device(1000)], "no multiple of 512"),
        ([CONFIG], [device(512, "a/b")], "unsafe"),
        ([CONFIG], [device(512, "")], "unsafe"),
        ([CONFIG], [device(512, "x" * 65535)], "name of 65536 bytes"),
        ([CONFIG], [device(512), device(512)], "not unique"),
        ([CONFIG], [device(512), device(512, vma_dev_id=2)], "two devices"),
        ([CONFIG], [device(512, vma_dev_id=255)], "out of range"),
        ([CONFIG], [device(512, vma_dev_id=0)], "out of range"),
        ([CONFIG], [device((1 << 48) + 512)], "too large"),
        ([], [device(512, f"d{i}", i) for i in range(1, 256)], "255 devices"),
    ],
)
def test_writer_of_what_vma_cannot_hold_is_refused(
    configs: list[ConfigBlob], devices: list[VmaDevice], text: str
) -> None:
    with pytest.raises(VmaError, match=text):
        VmaWriter(UUID, 0, configs, devices)


def test_writer_with_254_devices_is_readable() -> None:
    devices = [device(512, f"d{i}", i) for i in range(1, 255)]
    writer = VmaWriter(UUID, 0, [], devices)
    parts = [writer.header_bytes()]
    for row in devices:
        parts += [bytes(part) for part in writer.add_clusters(row.vma_dev_id, 0, b"y" * 512)]
    parts += [bytes(part) for part in writer.finish()]
    reader, disks = read_disks(b"".join(parts), 1 << 20)
    assert len(disks) == len(reader.check.tallies()) == 254


@pytest.mark.parametrize("count", [1, 2, 3, 128, 129, 255, 256])
def test_writer_with_any_number_of_configurations_is_readable(count: int) -> None:
    configs = [ConfigBlob(name=f"c{i}", data=b"x") for i in range(count)]
    writer = VmaWriter(UUID, 0, configs, [device(512, "d", 254)])
    reader = VmaReader()
    reader.feed(writer.header_bytes())
    assert reader.next_event() is not None
    header = reader.check.header
    assert header is not None
    assert [config.name for config in header.configs] == [config.name for config in configs]
    assert [row.vma_dev_id for row in header.devices] == [254]


def test_writer_finish_with_missing_cluster_is_refused() -> None:
    writer = VmaWriter(UUID, 0, [], [device(4 * CLUSTER)])
    writer.add_clusters(1, 0, b"x" * CLUSTER)
    writer.add_zero_clusters(1, 2, 2)
    with pytest.raises(VmaError, match=r"missing cluster 1 for stream drive-scsi0 \(1 of 4"):
        writer.finish()


def test_writer_cluster_given_twice_is_refused() -> None:
    writer = VmaWriter(UUID, 0, [], [device(4 * CLUSTER)])
    writer.add_zero_clusters(1, 0, 3)
    with pytest.raises(VmaError, match="duplicated cluster 2"):
        writer.add_clusters(1, 2, bytes(CLUSTER))


@pytest.mark.parametrize(
    ("vma_dev_id", "index", "length"), [(2, 0, 512), (1, 0, 512), (1, 1, 1024), (1, 9, CLUSTER)]
)
def test_writer_data_that_fits_nowhere_is_refused(vma_dev_id: int, index: int, length: int) -> None:
    writer = VmaWriter(UUID, 0, [], [device(CLUSTER + 512)])
    with pytest.raises(VmaError):
        writer.add_clusters(vma_dev_id, index, bytes(length))


def test_writer_ram_state_with_zeroes_keeps_its_length() -> None:
    state = b"a" * 4096 + bytes(CLUSTER * 2 - 4096)
    stream = whole(VmaWriter(UUID, 0, [], [device(len(state), "vmstate")]), state)
    _, disks = read_disks(stream, 1000)
    assert disks[1] == state


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=4), st.integers(0, 1 << 32), st.booleans()
)
def test_writer_any_disks_in_any_order_come_back(
    sectors: list[int], seed: int, pieces_large: bool
) -> None:
    chance = random.Random(seed)
    devices = [device(count * 512, f"d{i}", i) for i, count in enumerate(sectors, start=1)]
    disks = {
        row.vma_dev_id: b"".join(
            chance.choice((bytes(512), bytes(511) + b"x", b"y" * 512))
            if chance.random() < 0.3
            else bytes(512)
            for _ in range(row.size_bytes // 512)
        )
        for row in devices
    }
    writer = VmaWriter(UUID, -5, [CONFIG, replace(CONFIG, name="b")], devices)
    steps = [(row, index) for row in devices for index in range(row.vma_cluster_count)]
    if not pieces_large:
        chance.shuffle(steps)
    parts = [writer.header_bytes()]
    for row, index in steps:
        part = disks[row.vma_dev_id][index * CLUSTER : (index + 1) * CLUSTER]
        if not any(part) and chance.random() < 0.5:
            ready = writer.add_zero_clusters(row.vma_dev_id, index, 1)
        else:
            ready = writer.add_clusters(row.vma_dev_id, index, part)
        parts += [bytes(one) for one in ready]
    stream = b"".join([*parts, *(bytes(one) for one in writer.finish())])
    _, found = read_disks(stream, chance.randrange(1, 10000))
    for row in devices:
        digest = hashlib.sha256(found.get(row.vma_dev_id, bytearray(row.size_bytes)))
        assert digest.digest() == hashlib.sha256(disks[row.vma_dev_id]).digest()
