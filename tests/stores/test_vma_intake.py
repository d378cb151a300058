"""Intakes over real pipes, threads, processes and files."""

from __future__ import annotations

import asyncio
import gzip
import os
import threading
from pathlib import Path

import pytest
import zstandard

from tests.stores.intake_feeding import (
    DATA,
    MORE_BYTES,
    TWO_DISKS,
    UUID,
    WAIT_S,
    expected,
    feed,
    flood,
    in_pieces,
    nothing_left_over,
    take,
    target_in,
    until,
    zstd_filter,
)
from vzdump_qemu.errors import CompressorError, InternalError, TargetError, VmaError
from vzdump_qemu.ports import ArchiveTarget, VmaExpectation
from vzdump_qemu.stores.archive_directory import ArchiveDirectory

__all__ = ["nothing_left_over"]


async def test_intake_whole_stream_without_compressor_is_published(tmp_path: Path) -> None:
    target = target_in(tmp_path)
    proof = await take(ArchiveDirectory(), target, TWO_DISKS)
    assert Path(target.final_path).read_bytes() == TWO_DISKS
    assert proof.stream_bytes == len(TWO_DISKS)
    assert sorted(proof.device_ids) == ["drive-scsi0", "drive-scsi1"]
    assert proof.vma_cluster_count > 0
    assert 0 < proof.stored_bytes < len(TWO_DISKS)
    assert os.listdir(tmp_path) == ["a.vma"]
    assert os.stat(target.final_path).st_mode & 0o137 == 0


@pytest.mark.parametrize("found", [True, False], ids=["as-found", "built-in"])
async def test_intake_through_zstd_is_published_and_unpacks(tmp_path: Path, found: bool) -> None:
    target = target_in(tmp_path, ("zstd", "--threads=1"), ".zst")
    store = ArchiveDirectory() if found else ArchiveDirectory(find_program=lambda _: None)
    await take(store, target, TWO_DISKS)
    packed = Path(target.final_path).read_bytes()
    assert zstandard.ZstdDecompressor().decompressobj().decompress(packed) == TWO_DISKS
    assert zstandard.get_frame_parameters(packed).has_checksum


@pytest.mark.parametrize("found", [True, False], ids=["as-found", "built-in"])
async def test_intake_through_gzip_is_published_and_unpacks(tmp_path: Path, found: bool) -> None:
    target = target_in(tmp_path, ("gzip", "--rsyncable"), ".gz")
    store = ArchiveDirectory() if found else ArchiveDirectory(find_program=lambda _: None)
    await take(store, target, TWO_DISKS)
    assert gzip.decompress(Path(target.final_path).read_bytes()) == TWO_DISKS


@pytest.mark.parametrize("piece_bytes", [1, 7, 511, 4097, 65537])
async def test_intake_odd_pieces_give_the_same_file(tmp_path: Path, piece_bytes: int) -> None:
    target = target_in(tmp_path)
    stream = (DATA / "create-one-disk.vma").read_bytes()
    intake = await ArchiveDirectory().open_intake(target)
    writer = feed(intake, *in_pieces(stream, piece_bytes))
    await intake.finish(VmaExpectation(uuid="", device_ids=("drive-scsi0",)), timeout_s=WAIT_S)
    await writer.join()
    await intake.publish()
    assert Path(target.final_path).read_bytes() == stream


@pytest.mark.parametrize("cut_bytes", [1, 100, 512, 12288, 12289, 70000, len(TWO_DISKS) - 1])
async def test_intake_truncated_stream_is_refused(tmp_path: Path, cut_bytes: int) -> None:
    intake = await ArchiveDirectory().open_intake(target_in(tmp_path))
    feed(intake, TWO_DISKS[:cut_bytes])
    with pytest.raises(VmaError):
        await intake.finish(expected(), timeout_s=WAIT_S)
    with pytest.raises(InternalError):
        await intake.publish()
    await intake.discard()
    assert os.listdir(tmp_path) == []


async def test_intake_stream_that_ends_between_extents_is_refused(tmp_path: Path) -> None:
    packed = (DATA / "qemu-incomplete-quit.vma.zst").read_bytes()
    stream = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    intake = await ArchiveDirectory().open_intake(target_in(tmp_path))
    feed(intake, stream)
    with pytest.raises(VmaError, match="missing cluster"):
        await intake.finish(expected(), timeout_s=WAIT_S)
    await intake.discard()


async def test_intake_foreign_uuid_is_refused(tmp_path: Path) -> None:
    intake = await ArchiveDirectory().open_intake(target_in(tmp_path))
    feed(intake, TWO_DISKS)
    with pytest.raises(VmaError, match=f"unexpected uuid {UUID}"):
        await intake.finish(expected("1" * 8 + "-0000-0000-0000-" + "0" * 12), timeout_s=WAIT_S)
    with pytest.raises(InternalError):
        await intake.publish()
    await intake.discard()
    assert os.listdir(tmp_path) == []


async def test_intake_foreign_device_is_refused(tmp_path: Path) -> None:
    intake = await ArchiveDirectory().open_intake(target_in(tmp_path))
    feed(intake, TWO_DISKS)
    with pytest.raises(VmaError, match="got devices drive-scsi0, drive-scsi1 instead of"):
        await intake.finish(expected(UUID, "drive-scsi0"), timeout_s=WAIT_S)
    await intake.discard()


async def test_intake_junk_is_reported_at_once_and_drained(tmp_path: Path) -> None:
    intake = await ArchiveDirectory().open_intake(target_in(tmp_path))
    writer = feed(intake, b"junk" * 4096, bytes(MORE_BYTES))
    await until(intake.failure)
    assert isinstance(intake.failure(), VmaError)
    await writer.join()
    assert writer.errors == []
    with pytest.raises(VmaError, match="wrong magic"):
        await intake.finish(expected(), timeout_s=WAIT_S)
    await intake.discard()


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("echo no licence >&2; exit 3", "wrong exit status 3: no licence"),
        ("cat >/dev/null; echo late >&2; exit 4", "wrong exit status 4: late"),
        ("kill -9 $$", "wrong exit status 0 (signal 9)"),
        ("cat >/dev/null; kill -11 $$", "wrong exit status 0 (signal 11)"),
        ("exec 0<&-; exit 0", "ended before the stream did"),
    ],
    ids=["early", "late", "killed-early", "killed-late", "stops-reading"],
)
async def test_intake_failing_compressor_is_the_root_cause(
    tmp_path: Path, script: str, text: str
) -> None:
    intake = await ArchiveDirectory().open_intake(target_in(tmp_path, ("sh", "-c", script)))
    writer = feed(intake, *([TWO_DISKS] if "cat" in script else flood()))
    await writer.join()
    assert writer.errors == []
    with pytest.raises(CompressorError) as caught:
        await intake.finish(expected(), timeout_s=WAIT_S)
    assert str(caught.value).endswith(text)
    assert str(caught.value).startswith("sh -c ")
    await intake.discard()
    assert os.listdir(tmp_path) == []


async def test_intake_dead_compressor_is_noticed_before_any_data(tmp_path: Path) -> None:
    intake = await ArchiveDirectory().open_intake(target_in(tmp_path, ("sh", "-c", "exit 5")))
    await until(lambda: isinstance(intake.failure(), CompressorError))
    assert "wrong exit status 5" in str(intake.failure())
    await intake.discard()
    assert os.listdir(tmp_path) == []


async def test_intake_unrunnable_compressor_leaves_nothing(tmp_path: Path) -> None:
    script = tmp_path / "broken"
    script.write_text("#!/nonexistent/interpreter\n")
    script.chmod(0o755)
    with pytest.raises(CompressorError, match="unable to start"):
        await ArchiveDirectory().open_intake(target_in(tmp_path, (str(script),)))
    assert os.listdir(tmp_path) == ["broken"]


@pytest.mark.parametrize("compressor", [(), zstd_filter()], ids=["plain", "zstd"])
@pytest.mark.parametrize("append", [False, True], ids=["write", "append"])
async def test_intake_to_standard_output_counts_what_was_written(
    tmp_path: Path, compressor: tuple[str, ...], append: bool
) -> None:
    out_path = tmp_path / "out"
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else 0)
    out_fd = os.open(out_path, flags)
    target = ArchiveTarget(final_path="", temp_path="", compressor=compressor)
    intake = await ArchiveDirectory(stdout_fd=out_fd).open_intake(target)
    feed(intake, TWO_DISKS)
    await intake.finish(expected(), timeout_s=WAIT_S)
    assert await intake.publish() == out_path.stat().st_size
    await intake.discard()
    os.close(out_fd)
    data = out_path.read_bytes()
    if compressor:
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    assert data == TWO_DISKS


@pytest.mark.parametrize("compressor", [(), ("cat",)], ids=["plain", "filter"])
async def test_intake_to_a_closed_standard_output_is_a_target_error(
    compressor: tuple[str, ...],
) -> None:
    read_fd, out_fd = os.pipe()
    os.close(read_fd)
    target = ArchiveTarget(final_path="", temp_path="", compressor=compressor)
    intake = await ArchiveDirectory(stdout_fd=out_fd).open_intake(target)
    writer = feed(intake, *flood())
    await writer.join()
    assert writer.errors == []
    with pytest.raises(TargetError, match="standard output' - Broken pipe"):
        await intake.finish(expected(), timeout_s=WAIT_S)
    await intake.discard()
    os.close(out_fd)


async def test_intake_write_end_made_non_blocking_by_qemu_still_works(tmp_path: Path) -> None:
    target = target_in(tmp_path)
    intake = await ArchiveDirectory().open_intake(target)
    os.set_blocking(intake.write_fd, False)
    fd = os.dup(intake.write_fd)
    intake.close_write_end()
    intake.close_write_end()
    view = memoryview(TWO_DISKS)
    while view:
        try:
            view = view[os.write(fd, view[:70001]) :]
        except BlockingIOError:
            await asyncio.to_thread(threading.Event().wait, 0.001)
    os.close(fd)
    await intake.finish(expected(), timeout_s=WAIT_S)
    await intake.publish()
    assert Path(target.final_path).read_bytes() == TWO_DISKS


async def test_intake_children_get_no_descriptor_of_the_stream(tmp_path: Path) -> None:
    listing = tmp_path / "fds"
    script = f"ls /proc/self/fd > {listing}; cat"
    target = target_in(tmp_path, ("sh", "-c", script))
    await take(ArchiveDirectory(), target, TWO_DISKS)
    # 3 is the directory that ls itself reads.
    assert set(listing.read_text().split()) <= {"0", "1", "2", "3"}


@pytest.mark.parametrize("compressor", [(), ("sh", "-c", "sleep 0.1; exec cat")])
async def test_intake_written_by_ourselves_is_published(
    tmp_path: Path, compressor: tuple[str, ...]
) -> None:
    target = target_in(tmp_path, compressor)
    intake = await ArchiveDirectory().open_intake(target)
    for piece in in_pieces(TWO_DISKS, 100_000):
        await intake.write(piece)
    await intake.finish(expected(), timeout_s=WAIT_S)
    await intake.publish()
    assert Path(target.final_path).read_bytes() == TWO_DISKS


async def test_intake_write_after_a_failure_raises_it(tmp_path: Path) -> None:
    intake = await ArchiveDirectory().open_intake(target_in(tmp_path))
    await intake.write(bytes(12288))
    await until(intake.failure)
    with pytest.raises(VmaError, match="magic"):
        await intake.write(b"more")
    await intake.discard()
