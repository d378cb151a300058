"""Opening, extracting and restoring: folders, compressions, failures."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
import zstandard

from tests.stores.extracting import extract_archive
from tests.stores.packing import pack_raw_files
from vzdump_qemu.errors import ConfigError, TargetError, VmaError
from vzdump_qemu.formats.vma import VmaDevice
from vzdump_qemu.stores.archive_reading import (
    list_archive,
    restore_archive,
    verify_archive,
)
from vzdump_qemu.stores.archive_source import Compression, open_vma_source

GOLDEN = Path(__file__).parents[1] / "data" / "vma"
ONE_DISK = GOLDEN / "create-one-disk.vma"
TWO_DISKS = GOLDEN / "create-two-disks.vma.zst"


def plain(path: Path) -> bytes:
    with open_vma_source(str(path)) as source:
        return b"".join(bytes(chunk) for chunk in source.chunks())


def test_source_name_lies_content_decides(tmp_path: Path) -> None:
    path = tmp_path / "lie.vma.gz"
    path.write_bytes(zstandard.compress(b"x" * 100))
    assert plain(path) == b"x" * 100


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 5_000_000])
def test_source_any_length_gives_all_bytes(size: int, tmp_path: Path) -> None:
    content = os.urandom(size // 2) + bytes(size - size // 2)
    path = tmp_path / "a"
    for packed in (zstandard.compress(content), gzip.compress(content), content):
        path.write_bytes(packed)
        assert plain(path) == content


def test_source_zstd_window_over_limit_is_refused(tmp_path: Path) -> None:
    settings = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    frame = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    path = tmp_path / "a"
    path.write_bytes(frame.compress(b"x" * 1000) + frame.flush())
    with pytest.raises(VmaError, match="zstd file is damaged"):
        plain(path)


def test_source_zstd_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = zstandard.compress(os.urandom(300)) + zstandard.compress(b"second")
    path = tmp_path / "a"
    boundary = len(zstandard.compress(os.urandom(300)))
    for length in set(range(9, len(whole))) - {boundary}:
        path.write_bytes(whole[:length])
        with pytest.raises(VmaError):
            plain(path)


def test_source_closed_early_ends_its_thread() -> None:
    with open_vma_source(str(TWO_DISKS)) as source:
        assert source.compression is Compression.ZSTD
        next(source.chunks())


def test_source_missing_file_is_a_vma_error(tmp_path: Path) -> None:
    with pytest.raises(VmaError, match="can't open file"):
        list_archive(str(tmp_path / "none"))


def test_verify_directory_is_a_vma_error(tmp_path: Path) -> None:
    with pytest.raises(VmaError, match="can't read file"):
        verify_archive(str(tmp_path))


def test_verify_progress_ends_at_stream_length() -> None:
    seen: list[int] = []
    report = verify_archive(str(TWO_DISKS), seen.append)
    assert seen[-1] == report.stream_bytes == 218112


def test_extract_named_disk_only_writes_that(tmp_path: Path) -> None:
    extract_archive(str(TWO_DISKS), str(tmp_path), disks=frozenset({"drive-scsi1"}))
    assert sorted(os.listdir(tmp_path)) == ["disk-drive-scsi1.raw", "qemu-server.conf"]


def test_extract_unknown_disk_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="no device 'drive-ide0'"):
        extract_archive(str(TWO_DISKS), str(out), disks=frozenset({"drive-ide0"}))
    assert not out.exists()


def test_extract_into_used_folder_is_refused_and_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        extract_archive(str(ONE_DISK), str(tmp_path))
    assert os.listdir(tmp_path) == ["mine"]


def test_extract_damage_at_the_end_removes_files_keeps_given_folder(tmp_path: Path) -> None:
    cut = tmp_path / "cut.vma"
    cut.write_bytes(ONE_DISK.read_bytes()[:-1])
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(VmaError, match="short vma extent"):
        extract_archive(str(cut), str(out))
    assert os.listdir(out) == []


def test_extract_zero_disk_is_sparse(tmp_path: Path) -> None:
    extract_archive(str(GOLDEN / "create-all-zero.vma"), str(tmp_path))
    status = (tmp_path / "disk-drive-scsi0.raw").stat()
    assert status.st_size == 8 << 20
    assert status.st_blocks == 0


def test_restore_into_target_that_cannot_be_written_is_a_target_error(tmp_path: Path) -> None:
    path = tmp_path / "target"
    path.touch()
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(TargetError, match="write failed"):
            restore_archive(str(ONE_DISK), lambda device: fd)
    finally:
        os.close(fd)


def test_restore_asks_once_per_device_and_skips_none() -> None:
    asked: list[VmaDevice] = []
    report = restore_archive(str(TWO_DISKS), asked.append)
    assert tuple(asked) == report.header.devices


def test_pack_sparse_disk_of_64_gib_stays_small_and_whole(tmp_path: Path) -> None:
    disk, packed = tmp_path / "disk", tmp_path / "packed"
    with disk.open("wb") as file:
        file.truncate(64 << 30)
        file.seek((32 << 30) + 12345)
        file.write(b"here")
    pack_raw_files(packed, {"drive-scsi0": disk})
    assert packed.stat().st_size < 10 << 20
    [tally] = verify_archive(str(packed)).tallies
    assert (tally.vma_cluster_count, tally.stored_block_count) == (1 << 20, 1)


def test_pack_file_shorter_than_disk_fills_with_zeroes(tmp_path: Path) -> None:
    disk, packed = tmp_path / "disk", tmp_path / "packed"
    disk.write_bytes(b"x" * 1000)
    pack_raw_files(packed, {"d": disk})
    extract_archive(str(packed), str(tmp_path / "out"))
    assert (tmp_path / "out" / "disk-d.raw").read_bytes() == b"x" * 1000 + bytes(24)
