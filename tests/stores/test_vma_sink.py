"""Disks into archives: the whole way through a real intake, and every way it can end early."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.disk_fakes import MemoryReader
from tests.nbd_peer import ToldServer, memory_export, serving
from tests.stores.extracting import extract_archive
from vzdump_qemu.disk_ports import PIECE_BYTES, DiskOrigin, DiskReader, ExtentKind
from vzdump_qemu.errors import DiskReadError, InternalError, Interrupted, TargetError, VmaError
from vzdump_qemu.formats.vma import VmaDevice, VmaWriter
from vzdump_qemu.ports import ArchiveTarget, VmaExpectation, VmaIntake, VmaProof
from vzdump_qemu.qemu.nbd_disk import NbdDisk
from vzdump_qemu.stores.archive_directory import ArchiveDirectory
from vzdump_qemu.stores.archive_reading import list_archive, verify_archive
from vzdump_qemu.stores.disk_pump import DiskPump
from vzdump_qemu.stores.system import SystemClock
from vzdump_qemu.stores.vma_packer import PumpedVmaPacker
from vzdump_qemu.stores.vma_relay import open_pipe
from vzdump_qemu.stores.vma_sink import VmaSink
from vzdump_qemu.units import GIB

_UUID = "01234567-89ab-cdef-0123-456789abcdef"
_CONFIGS = [("qemu-server.conf", b"name: x\n"), ("qemu-server.fw", b"[OPTIONS]\n")]
_DATA = ExtentKind.DATA


def _open_nbd(origin: DiskOrigin) -> DiskReader:
    return NbdDisk(origin, clock=SystemClock())


async def _open_intake(directory: Path, *compressor: str) -> VmaIntake:
    target = ArchiveTarget(
        final_path=str(directory / "a.vma"),
        temp_path=str(directory / "a.dat"),
        compressor=compressor,
    )
    return await ArchiveDirectory(discard_timeout_s=5).open_intake(target)


async def _begin(
    intake: VmaIntake, origins: Sequence[DiskOrigin], *, readers: Sequence[DiskReader] = ()
) -> DiskPump:
    given = iter(readers)
    open_nbd = (lambda _: next(given)) if readers else _open_nbd
    packer = PumpedVmaPacker(clock=SystemClock(), open_nbd=open_nbd)
    return await packer.begin(
        origins, intake, uuid=_UUID, configs=_CONFIGS, rate_limit_bytes_per_s=0
    )


async def _pack(directory: Path, origins: Sequence[DiskOrigin]) -> VmaProof:
    intake = await _open_intake(directory)
    transfer = await _begin(intake, origins)
    async with asyncio.timeout(30):
        await transfer.finish()
    expectation = VmaExpectation(uuid=_UUID, device_ids=tuple(each.device_id for each in origins))
    proof = await intake.finish(expectation, timeout_s=30)
    await intake.publish()
    return proof


def _nbd_origin(size_bytes: int = 512) -> DiskOrigin:
    return DiskOrigin(device_id="drive-scsi0", size_bytes=size_bytes, nbd_socket="/nowhere")


def _disk_content(size_bytes: int, seed: int) -> bytes:
    """Noise, zeroes and text in blocks of 4096, with long stretches of each."""
    chance = random.Random(seed)
    content = bytearray()
    while len(content) < size_bytes:
        length = 4096 * chance.choice((1, 3, 16, 200, 1500))
        content += chance.choice((bytes(length), chance.randbytes(length), b"text" * (length // 4)))
    return bytes(content[:size_bytes])


@pytest.mark.parametrize("size_bytes", [512, 4096, 65536 + 512, 11 << 20, (4 << 20) + 135680])
async def test_raw_file_comes_back_as_it_was(tmp_path: Path, size_bytes: int) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(_disk_content(size_bytes, seed=size_bytes))
    origin = DiskOrigin(device_id="drive-scsi0", size_bytes=size_bytes, file_path=str(path))
    await _pack(tmp_path, [origin])
    extract_archive(str(tmp_path / "a.vma"), str(tmp_path / "out"))
    assert (tmp_path / "out/disk-drive-scsi0.raw").read_bytes() == path.read_bytes()


async def test_disks_of_both_kinds_come_back_with_all_configurations(tmp_path: Path) -> None:
    contents = {f"drive-scsi{index}": _disk_content(9_000_448, seed=index) for index in range(3)}
    raw_path = tmp_path / "disk.raw"
    raw_path.write_bytes(contents["drive-scsi2"])
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        path = Path(short) / "n"
        exports = [memory_export(content, name=name) for name, content in contents.items()]
        origins = [
            DiskOrigin(
                device_id=name,
                size_bytes=len(content),
                nbd_socket="" if name == "drive-scsi2" else str(path),
                export_name=name,
                file_path=str(raw_path) if name == "drive-scsi2" else "",
            )
            for name, content in contents.items()
        ]
        with serving(path, *exports):
            proof = await _pack(tmp_path, origins)
    assert proof.device_ids == tuple(contents)
    assert proof.vma_cluster_count == 3 * 138
    vma_path = str(tmp_path / "a.vma")
    extract_archive(vma_path, str(tmp_path / "out"))
    for name, content in contents.items():
        assert (tmp_path / f"out/disk-{name}.raw").read_bytes() == content
    for name, data in _CONFIGS:
        assert (tmp_path / "out" / name).read_bytes() == data
    report = verify_archive(vma_path)
    stored = {row.device.name: row.stored_block_count for row in report.tallies}
    for name, content in contents.items():
        blocks = (content[at : at + 4096] for at in range(0, len(content), 4096))
        assert stored[name] == sum(any(block) for block in blocks)


async def test_empty_disk_is_packed_without_reading(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(3 * GIB)
    origin = DiskOrigin(device_id="drive-scsi0", size_bytes=3 * GIB, file_path=str(path))
    proof = await _pack(tmp_path, [origin])
    assert (proof.vma_cluster_count, proof.stored_bytes) == (3 * GIB >> 16, 0)
    assert (tmp_path / "a.vma").stat().st_size < 1 << 20


async def test_archive_without_disks_holds_the_configurations(tmp_path: Path) -> None:
    await _pack(tmp_path, [])
    header = list_archive(str(tmp_path / "a.vma")).header
    assert [(each.name, each.data) for each in header.configs] == _CONFIGS


async def test_progress_counts_blocks_found_zero(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(4096) + b"x" + bytes(8191) + b"y" * 512)
    size_bytes = path.stat().st_size
    intake = await _open_intake(tmp_path)
    origin = DiskOrigin(device_id="drive-scsi0", size_bytes=size_bytes, file_path=str(path))
    transfer = await _begin(intake, [origin])
    await asyncio.wait_for(transfer.finish(), 20)
    progress = transfer.progress()
    assert (progress.done_bytes, progress.read_bytes) == (size_bytes, size_bytes)
    assert progress.zero_bytes == 8192
    await intake.discard()


async def test_disk_that_cannot_be_opened_leaves_the_intake_its_own(tmp_path: Path) -> None:
    intake = await _open_intake(tmp_path)
    with pytest.raises(DiskReadError, match="drive-scsi0 - cannot connect"):
        await _begin(intake, [_nbd_origin()])
    assert intake.write_fd >= 0
    await intake.discard()


async def test_begin_cancelled_while_a_server_keeps_silent_leaves_the_intake_its_own(
    tmp_path: Path,
) -> None:
    met, silent = threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> None:
        met.set()
        connection.recv(1)
        silent.set()

    intake = await _open_intake(tmp_path)
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        path = Path(short) / "n"
        origin = DiskOrigin(device_id="drive-scsi0", size_bytes=512, nbd_socket=str(path))
        with ToldServer(path, serve, size_bytes=512, negotiates=False):
            beginning = asyncio.create_task(_begin(intake, [origin]))
            assert await asyncio.to_thread(met.wait, 20)
            beginning.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(beginning, 20)
        assert silent.is_set()
    assert intake.write_fd >= 0
    await intake.discard()


async def test_what_vma_cannot_hold_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    intake = await _open_intake(tmp_path)
    with pytest.raises(VmaError, match="size 513"):
        await _begin(intake, [_nbd_origin(513)])
    await intake.discard()


async def test_read_error_ends_the_stream_and_the_proof_fails(tmp_path: Path) -> None:
    reader = MemoryReader((8 * PIECE_BYTES, _DATA), content=b"x" * PIECE_BYTES)
    reader.fails_at = 5 * PIECE_BYTES
    intake = await _open_intake(tmp_path)
    transfer = await _begin(intake, [_nbd_origin(reader.size_bytes)], readers=[reader])
    with pytest.raises(DiskReadError, match="broken at"):
        await asyncio.wait_for(transfer.finish(), 20)
    with pytest.raises(VmaError):
        await intake.finish(VmaExpectation(uuid=_UUID, device_ids=("drive-scsi0",)), timeout_s=20)
    await intake.discard()
    assert not list(tmp_path.iterdir())


class _PipeIntake:
    """An intake that is a pipe and nothing else."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = open_pipe()

    def close_write_end(self) -> None:
        os.close(self.write_fd)
        self.write_fd = -1


@pytest.fixture
def stuck() -> Iterator[_PipeIntake]:
    intake = _PipeIntake()
    yield intake
    os.close(intake.read_fd)


async def test_cancel_while_nobody_reads_the_pipe_ends_the_stream(stuck: _PipeIntake) -> None:
    reader = MemoryReader((8 * PIECE_BYTES, _DATA), content=b"x" * 8 * PIECE_BYTES)
    transfer = await _begin(stuck, [_nbd_origin(reader.size_bytes)], readers=[reader])  # type: ignore[arg-type]
    # Something is in the pipe, and there is far more to come than it takes.
    await asyncio.to_thread(os.read, stuck.read_fd, 1)
    await asyncio.wait_for(transfer.cancel(), 20)
    assert transfer.ended.done()
    while os.read(stuck.read_fd, 1 << 20):
        continue
    with pytest.raises(Interrupted):
        await transfer.finish()


async def test_read_end_that_goes_away_is_a_failure_of_the_target() -> None:
    intake = _PipeIntake()
    reader = MemoryReader((8 * PIECE_BYTES, _DATA), content=b"x" * 8 * PIECE_BYTES)
    transfer = await _begin(intake, [_nbd_origin(reader.size_bytes)], readers=[reader])  # type: ignore[arg-type]
    os.close(intake.read_fd)
    with pytest.raises(TargetError, match="archive stream - Broken pipe"):
        await asyncio.wait_for(transfer.finish(), 20)


async def test_intake_that_closes_its_end_does_not_take_ours(tmp_path: Path) -> None:
    reader = MemoryReader((2 * PIECE_BYTES, _DATA), content=b"x" * PIECE_BYTES)
    reader.held.clear()
    intake = await _open_intake(tmp_path)
    transfer = await _begin(intake, [_nbd_origin(reader.size_bytes)], readers=[reader])
    intake.drain()
    reader.held.set()
    await asyncio.wait_for(transfer.finish(), 20)
    await intake.discard()


def test_sink_refuses_what_did_not_change() -> None:
    read_fd, write_fd = os.pipe()
    device = VmaDevice(vma_dev_id=1, name="d", size_bytes=512)
    sink = VmaSink(write_fd, VmaWriter(bytes(16), 0, [], [device]))
    with pytest.raises(InternalError, match="cannot leave out"):
        sink.put_unchanged(0, 0, 512)
    sink.close()
    assert os.read(read_fd, 1) == b""
    os.close(read_fd)


def test_sink_that_lacks_a_piece_does_not_finish() -> None:
    read_fd, write_fd = os.pipe()
    device = VmaDevice(vma_dev_id=1, name="d", size_bytes=512)
    sink = VmaSink(write_fd, VmaWriter(bytes(16), 0, [], [device]))
    with pytest.raises(VmaError, match="missing cluster 0"):
        sink.finish()
    sink.close()
    os.close(read_fd)
