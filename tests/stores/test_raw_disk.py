"""Raw files as disks: holes, tails, and files that change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vzdump_qemu.disk_ports import DiskOrigin, DiskReader, ExtentKind
from vzdump_qemu.errors import DiskReadError
from vzdump_qemu.stores.raw_disk import RawDisk
from vzdump_qemu.units import MIB


def _open(path: Path, size_bytes: int) -> RawDisk:
    return RawDisk(DiskOrigin(device_id="drive-scsi0", size_bytes=size_bytes, file_path=str(path)))


def _kinds(disk: DiskReader) -> list[tuple[int, int, ExtentKind]]:
    found, at = [], 0
    while at < disk.size_bytes:
        for extent in disk.extents(at, disk.size_bytes - at):
            assert extent.offset_bytes == at
            found.append((at, extent.length_bytes, extent.kind))
            at = extent.end_bytes
    return found


def _read(disk: RawDisk, offset: int, length: int) -> bytes:
    buffer = bytearray(b"\xee" * length)
    disk.read_into(offset, memoryview(buffer))
    return bytes(buffer)


def test_holes_of_a_file_are_told_and_data_is_read(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.seek(2 * MIB)
        file.write(b"x" * MIB)
        file.truncate(8 * MIB)
    disk = _open(path, 8 * MIB)
    assert _kinds(disk) == [
        (0, 2 * MIB, ExtentKind.ZERO),
        (2 * MIB, MIB, ExtentKind.DATA),
        (3 * MIB, 5 * MIB, ExtentKind.ZERO),
    ]
    assert _read(disk, 2 * MIB - 2, 4) == b"\0\0xx"
    disk.close()


def test_range_is_kept_to(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"x" * MIB)
    disk = _open(path, MIB)
    [extent] = disk.extents(4096, 8192)
    assert (extent.offset_bytes, extent.length_bytes) == (4096, 8192)
    disk.close()


def test_file_of_odd_length_is_padded_to_the_sector(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"x" * 1000)
    disk = _open(path, 1024)
    assert sum(length for _, length, _ in _kinds(disk)) == 1024
    assert _read(disk, 0, 1024) == b"x" * 1000 + bytes(24)
    assert _read(disk, 1000, 24) == bytes(24)
    disk.close()


@pytest.mark.parametrize("size_bytes", [512, 1000, 1536])
def test_file_of_another_size_is_refused(tmp_path: Path, size_bytes: int) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"x" * 1000)
    with pytest.raises(DiskReadError, match=r"drive-scsi0 - .* has 1000 bytes instead of"):
        _open(path, size_bytes)


def test_file_made_shorter_meanwhile_is_an_error_and_no_zeroes(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"x" * MIB)
    disk = _open(path, MIB)
    os.truncate(path, 4096)
    with pytest.raises(DiskReadError, match="made shorter"):
        _read(disk, 0, MIB)
    with pytest.raises(DiskReadError, match="made shorter"):
        disk.extents(65536, 65536)
    disk.close()


def test_missing_file_directory_and_fifo_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DiskReadError, match=r"cannot open .*No such file"):
        _open(tmp_path / "nothing", 512)
    with pytest.raises(DiskReadError, match="neither a file nor a block device"):
        _open(tmp_path, 512)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DiskReadError, match="neither a file nor a block device"):
        _open(tmp_path / "fifo", 512)


def test_interrupted_disk_is_not_read_any_more(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"x" * 512)
    disk = _open(path, 512)
    disk.interrupt()
    with pytest.raises(DiskReadError, match="reading was ended"):
        _read(disk, 0, 512)
    with pytest.raises(DiskReadError, match="reading was ended"):
        disk.extents(0, 512)
    disk.close()
    disk.close()
