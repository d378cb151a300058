"""The relay and the file writer by themselves, over real pipes."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vzdump_qemu.errors import VmaError
from vzdump_qemu.formats.vma import VmaDevice, VmaWriter
from vzdump_qemu.stores.vma_relay import PIPE_BYTES, FileWriter, VmaRelay, open_pipe

WAIT_S = 20.0
DISK_BYTES = 4 * 1024 * 1024
HOLED_CLUSTER_COUNT = 40_000


def _stream() -> bytes:
    device = VmaDevice(vma_dev_id=1, name="drive-virtio0", size_bytes=DISK_BYTES)
    writer = VmaWriter(uuid=bytes(range(16)), ctime_s=1, configs=(), devices=(device,))
    disk = bytes(range(1, 256)) * (DISK_BYTES // 255 + 1)
    parts = [writer.header_bytes(), *writer.add_clusters(1, 0, disk[:DISK_BYTES])]
    return b"".join(bytes(part) for part in (*parts, *writer.finish()))


def _write_in_thread(fd: int, data: bytes, *, piece_bytes: int = 1 << 30) -> threading.Thread:
    def run() -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(fd, view[:piece_bytes]) :]
        finally:
            os.close(fd)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def _read_all(fd: int) -> bytes:
    data = bytearray()
    while piece := os.read(fd, 65536):
        data += piece
    os.close(fd)
    return bytes(data)


@pytest.fixture(autouse=True)
def _no_fd_left() -> Iterator[None]:
    count = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == count


def test_open_pipe_is_large_and_not_inherited() -> None:
    read_fd, write_fd = open_pipe()
    os.set_blocking(write_fd, False)
    assert os.write(write_fd, bytes(PIPE_BYTES)) == PIPE_BYTES
    assert not os.get_inheritable(read_fd)
    assert not os.get_inheritable(write_fd)
    os.close(read_fd)
    os.close(write_fd)


def test_relay_whole_stream_is_passed_on_and_proved() -> None:
    stream = _stream()
    in_read_fd, in_write_fd = open_pipe()
    out_read_fd, out_write_fd = open_pipe()
    relay = VmaRelay(source_fd=in_read_fd, sink_fd=out_write_fd)
    thread = _write_in_thread(in_write_fd, stream)
    assert _read_all(out_read_fd) == stream
    relay.ended.result(WAIT_S)
    thread.join(WAIT_S)
    assert relay.stream_error is None
    assert relay.sink_error is None
    assert relay.proof is not None
    assert relay.proof.stream_bytes == len(stream)
    assert relay.proof.vma_cluster_count == DISK_BYTES // 65536
    assert relay.proof.stored_bytes == DISK_BYTES
    assert relay.proof.device_ids == ("drive-virtio0",)


def _stream_of_holes(*, seed: int) -> bytes:
    """Thousands of empty extents, and a few with data at places that the seed chooses."""
    device = VmaDevice(vma_dev_id=1, name="drive-scsi0", size_bytes=HOLED_CLUSTER_COUNT << 16)
    writer = VmaWriter(uuid=bytes(range(16)), ctime_s=1, configs=(), devices=(device,))
    chance = random.Random(seed)
    parts: list[bytes | bytearray | memoryview] = [writer.header_bytes()]
    index = 0
    while index < HOLED_CLUSTER_COUNT:
        count = min(chance.choice((1, 58, 500, 9000)), HOLED_CLUSTER_COUNT - index)
        parts += writer.add_zero_clusters(1, index, count)
        index += count
        count = min(chance.choice((0, 1, 3)), HOLED_CLUSTER_COUNT - index)
        parts += writer.add_clusters(1, index, chance.randbytes(count << 16))
        index += count
    return b"".join(bytes(part) for part in (*parts, *writer.finish()))


def _relayed(stream: bytes, *, piece_bytes: int) -> tuple[VmaRelay, bytes]:
    """A relay that has ended, and what it passed on of a stream that comes in such pieces."""
    in_read_fd, in_write_fd = open_pipe()
    out_read_fd, out_write_fd = open_pipe()
    relay = VmaRelay(source_fd=in_read_fd, sink_fd=out_write_fd)
    thread = _write_in_thread(in_write_fd, stream, piece_bytes=piece_bytes)
    passed = _read_all(out_read_fd)
    relay.ended.result(WAIT_S)
    thread.join(WAIT_S)
    return relay, passed


@pytest.mark.parametrize("piece_bytes", [300, 65536 + 100, 1 << 20])
@pytest.mark.parametrize("seed", [1, 2])
def test_relay_empty_extents_among_data_are_passed_on_and_proved(
    seed: int, piece_bytes: int
) -> None:
    stream = _stream_of_holes(seed=seed)
    relay, passed = _relayed(stream, piece_bytes=piece_bytes)
    assert passed == stream
    assert relay.proof is not None
    assert relay.proof.stream_bytes == len(stream)
    assert relay.proof.vma_cluster_count == HOLED_CLUSTER_COUNT


@pytest.mark.parametrize("missing_bytes", [1, 511, 512, 700])
def test_relay_end_within_empty_extents_is_no_whole_stream(missing_bytes: int) -> None:
    device = VmaDevice(vma_dev_id=1, name="drive-scsi0", size_bytes=HOLED_CLUSTER_COUNT << 16)
    writer = VmaWriter(uuid=bytes(range(16)), ctime_s=1, configs=(), devices=(device,))
    parts = [writer.header_bytes(), *writer.add_zero_clusters(1, 0, HOLED_CLUSTER_COUNT)]
    stream = b"".join(bytes(part) for part in (*parts, *writer.finish()))
    relay, _ = _relayed(stream[:-missing_bytes], piece_bytes=1 << 20)
    assert isinstance(relay.stream_error, VmaError)
    assert relay.proof is None


def test_relay_flipped_bit_behind_empty_extents_is_refused() -> None:
    stream = bytearray(_stream_of_holes(seed=3))
    stream[-100] ^= 1
    relay, _ = _relayed(bytes(stream), piece_bytes=1 << 20)
    assert isinstance(relay.stream_error, VmaError)
    assert relay.proof is None


def test_relay_flipped_header_bit_is_refused_and_drained() -> None:
    stream = bytearray(_stream())
    # In the second extent's header, behind the first one with its 58 full clusters.
    stream[12800 + 512 + 58 * 65536 + 100] ^= 1
    in_read_fd, in_write_fd = open_pipe()
    out_read_fd, out_write_fd = open_pipe()
    relay = VmaRelay(source_fd=in_read_fd, sink_fd=out_write_fd)
    thread = _write_in_thread(in_write_fd, bytes(stream))
    _read_all(out_read_fd)
    relay.ended.result(WAIT_S)
    thread.join(WAIT_S)
    assert isinstance(relay.stream_error, VmaError)
    assert "chechsum" in str(relay.stream_error)
    assert relay.proof is None


def test_relay_broken_sink_is_noticed_while_the_source_is_silent() -> None:
    in_read_fd, in_write_fd = open_pipe()
    out_read_fd, out_write_fd = open_pipe()
    relay = VmaRelay(source_fd=in_read_fd, sink_fd=out_write_fd)
    os.close(out_read_fd)
    for _ in range(2000):
        if relay.sink_error is not None:
            break
        threading.Event().wait(0.005)
    assert isinstance(relay.sink_error, BrokenPipeError)
    assert not relay.ended.done()
    os.close(in_write_fd)
    relay.ended.result(WAIT_S)


def test_relay_stopped_while_draining_closes_the_read_end() -> None:
    in_read_fd, in_write_fd = open_pipe()
    out_read_fd, out_write_fd = open_pipe()
    relay = VmaRelay(source_fd=in_read_fd, sink_fd=out_write_fd)
    relay.drain()
    assert _read_all(out_read_fd) == b""
    assert not relay.ended.done()
    relay.stop()
    relay.ended.result(WAIT_S)
    with pytest.raises(BrokenPipeError):
        os.write(in_write_fd, b"x")
    os.close(in_write_fd)
    # After the end there is nothing left to stop.
    relay.stop()


@pytest.mark.parametrize("flags", [0, os.O_APPEND], ids=["spliced", "copied"])
def test_file_writer_writes_all_and_counts(tmp_path: Path, flags: int) -> None:
    data = _stream()
    target_fd = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT | flags)
    read_fd, write_fd = open_pipe()
    writer = FileWriter(source_fd=read_fd, target_fd=target_fd)
    thread = _write_in_thread(write_fd, data)
    assert writer.ended.result(WAIT_S) == len(data)
    thread.join(WAIT_S)
    os.close(target_fd)
    assert (tmp_path / "out").read_bytes() == data


def test_file_writer_into_a_foreign_blocking_pipe_can_be_stopped() -> None:
    target_read_fd, target_fd = os.pipe()
    read_fd, write_fd = open_pipe()
    writer = FileWriter(source_fd=read_fd, target_fd=target_fd)
    os.set_blocking(write_fd, False)
    # More than the target takes, so the writer waits for a reader that never comes.
    os.write(write_fd, bytes(PIPE_BYTES))
    writer.stop()
    assert writer.ended.result(WAIT_S) <= PIPE_BYTES
    assert os.get_blocking(target_fd)
    for fd in (write_fd, target_fd, target_read_fd):
        os.close(fd)


def test_file_writer_full_target_is_told_and_breaks_the_pipe() -> None:
    target_fd = os.open("/dev/full", os.O_WRONLY)
    read_fd, write_fd = open_pipe()
    writer = FileWriter(source_fd=read_fd, target_fd=target_fd)
    os.write(write_fd, b"x" * 5000)
    with pytest.raises(OSError, match="No space left"):
        writer.ended.result(WAIT_S)
    with pytest.raises(BrokenPipeError):
        os.write(write_fd, b"x")
    os.close(write_fd)
    os.close(target_fd)
