"""Intakes over real pipes, threads, processes and files."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard

from vzdump_qemu.errors import CompressorError, InternalError, TargetError, VmaError
from vzdump_qemu.formats.vma import VmaDevice, VmaWriter
from vzdump_qemu.ports import ArchiveTarget, VmaExpectation, VmaIntake, VmaProof
from vzdump_qemu.stores.archive_directory import ArchiveDirectory
from vzdump_qemu.stores.vma_intake import RelayedIntake, TargetFiles

DATA = Path(__file__).parent.parent / "data" / "intake"
TWO_DISKS = (DATA / "qemu-two-disks.vma").read_bytes()
UUID = "-".join(
    TWO_DISKS[8:24].hex()[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))
)
WAIT_S = 20.0
# Enough to overrun every pipe buffer behind the write end many times.
MORE_BYTES = 20 * 1024 * 1024


def _zstd_filter(*extra: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "vzdump_qemu.stores.builtin_compressor", "zstd", *extra)


@dataclass
class Writer:
    """Stands for QEMU: writes in a thread, then closes the write end."""

    thread: threading.Thread
    errors: list[OSError]

    async def join(self) -> None:
        while self.thread.is_alive():
            await asyncio.to_thread(self.thread.join, 0.05)


def _write_from(fd: int, pieces: list[bytes]) -> Writer:
    errors: list[OSError] = []

    def run() -> None:
        try:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    view = view[os.write(fd, view) :]
        except OSError as error:
            errors.append(error)
        finally:
            os.close(fd)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return Writer(thread, errors)


def _feed(intake: VmaIntake, *pieces: bytes) -> Writer:
    writer_fd = os.dup(intake.write_fd)
    intake.close_write_end()
    return _write_from(writer_fd, list(pieces))


def _in_pieces(data: bytes, size_bytes: int) -> list[bytes]:
    return [data[at : at + size_bytes] for at in range(0, len(data), size_bytes)]


def _target(directory: Path, compressor: tuple[str, ...] = (), suffix: str = "") -> ArchiveTarget:
    return ArchiveTarget(
        final_path=str(directory / f"a.vma{suffix}"),
        temp_path=str(directory / "a.vma.dat"),
        compressor=compressor,
    )


def _expect(uuid: str = UUID, *device_ids: str) -> VmaExpectation:
    return VmaExpectation(uuid=uuid, device_ids=device_ids or ("drive-scsi1", "drive-scsi0"))


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.to_thread(threading.Event().wait, 0.005)


def _children() -> set[str]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found |= set((task / "children").read_text().split())
    return found


@pytest.fixture(autouse=True)
async def _nothing_left_over() -> AsyncIterator[None]:
    # Executor threads and the loop's own descriptors exist before the count.
    await asyncio.to_thread(len, "")
    fds, children = len(os.listdir("/proc/self/fd")), _children()
    yield
    assert len(os.listdir("/proc/self/fd")) == fds
    assert _children() == children


async def _take(store: ArchiveDirectory, target: ArchiveTarget, stream: bytes) -> VmaProof:
    intake = await store.open_intake(target)
    writer = _feed(intake, stream)
    proof = await intake.finish(_expect(), timeout_s=WAIT_S)
    await writer.join()
    size_bytes = await intake.publish()
    assert size_bytes == os.path.getsize(target.final_path)
    await intake.discard()
    return proof


async def test_intake_whole_stream_without_compressor_is_published(tmp_path: Path) -> None:
    target = _target(tmp_path)
    proof = await _take(ArchiveDirectory(), target, TWO_DISKS)
    assert Path(target.final_path).read_bytes() == TWO_DISKS
    assert proof.stream_bytes == len(TWO_DISKS)
    assert sorted(proof.device_ids) == ["drive-scsi0", "drive-scsi1"]
    assert proof.vma_cluster_count > 0
    assert 0 < proof.stored_bytes < len(TWO_DISKS)
    assert os.listdir(tmp_path) == ["a.vma"]
    assert os.stat(target.final_path).st_mode & 0o137 == 0


@pytest.mark.parametrize("found", [True, False], ids=["as-found", "built-in"])
async def test_intake_through_zstd_is_published_and_unpacks(tmp_path: Path, found: bool) -> None:
    target = _target(tmp_path, ("zstd", "--threads=1"), ".zst")
    store = ArchiveDirectory() if found else ArchiveDirectory(find_program=lambda _: None)
    await _take(store, target, TWO_DISKS)
    packed = Path(target.final_path).read_bytes()
    assert zstandard.ZstdDecompressor().decompressobj().decompress(packed) == TWO_DISKS
    assert zstandard.get_frame_parameters(packed).has_checksum


@pytest.mark.parametrize("found", [True, False], ids=["as-found", "built-in"])
async def test_intake_through_gzip_is_published_and_unpacks(tmp_path: Path, found: bool) -> None:
    target = _target(tmp_path, ("gzip", "--rsyncable"), ".gz")
    store = ArchiveDirectory() if found else ArchiveDirectory(find_program=lambda _: None)
    await _take(store, target, TWO_DISKS)
    assert gzip.decompress(Path(target.final_path).read_bytes()) == TWO_DISKS


@pytest.mark.parametrize("piece_bytes", [1, 7, 511, 4097, 65537])
async def test_intake_odd_pieces_give_the_same_file(tmp_path: Path, piece_bytes: int) -> None:
    target = _target(tmp_path)
    stream = (DATA / "create-one-disk.vma").read_bytes()
    intake = await ArchiveDirectory().open_intake(target)
    writer = _feed(intake, *_in_pieces(stream, piece_bytes))
    await intake.finish(VmaExpectation(uuid="", device_ids=("drive-scsi0",)), timeout_s=WAIT_S)
    await writer.join()
    await intake.publish()
    assert Path(target.final_path).read_bytes() == stream


@pytest.mark.parametrize("cut_bytes", [1, 100, 512, 12288, 12289, 70000, len(TWO_DISKS) - 1])
async def test_intake_truncated_stream_is_refused(tmp_path: Path, cut_bytes: int) -> None:
    intake = await ArchiveDirectory().open_intake(_target(tmp_path))
    _feed(intake, TWO_DISKS[:cut_bytes])
    with pytest.raises(VmaError):
        await intake.finish(_expect(), timeout_s=WAIT_S)
    with pytest.raises(InternalError):
        await intake.publish()
    await intake.discard()
    assert os.listdir(tmp_path) == []


async def test_intake_stream_that_ends_between_extents_is_refused(tmp_path: Path) -> None:
    packed = (DATA / "qemu-incomplete-quit.vma.zst").read_bytes()
    stream = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    intake = await ArchiveDirectory().open_intake(_target(tmp_path))
    _feed(intake, stream)
    with pytest.raises(VmaError, match="missing cluster"):
        await intake.finish(_expect(), timeout_s=WAIT_S)
    await intake.discard()


async def test_intake_foreign_uuid_is_refused(tmp_path: Path) -> None:
    intake = await ArchiveDirectory().open_intake(_target(tmp_path))
    _feed(intake, TWO_DISKS)
    with pytest.raises(VmaError, match=f"unexpected uuid {UUID}"):
        await intake.finish(_expect("1" * 8 + "-0000-0000-0000-" + "0" * 12), timeout_s=WAIT_S)
    with pytest.raises(InternalError):
        await intake.publish()
    await intake.discard()
    assert os.listdir(tmp_path) == []


async def test_intake_foreign_device_is_refused(tmp_path: Path) -> None:
    intake = await ArchiveDirectory().open_intake(_target(tmp_path))
    _feed(intake, TWO_DISKS)
    with pytest.raises(VmaError, match="got devices drive-scsi0, drive-scsi1 instead of"):
        await intake.finish(_expect(UUID, "drive-scsi0"), timeout_s=WAIT_S)
    await intake.discard()


async def test_intake_junk_is_reported_at_once_and_drained(tmp_path: Path) -> None:
    intake = await ArchiveDirectory().open_intake(_target(tmp_path))
    writer = _feed(intake, b"junk" * 4096, bytes(MORE_BYTES))
    await _until(intake.failure)
    assert isinstance(intake.failure(), VmaError)
    await writer.join()
    assert writer.errors == []
    with pytest.raises(VmaError, match="wrong magic"):
        await intake.finish(_expect(), timeout_s=WAIT_S)
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
    intake = await ArchiveDirectory().open_intake(_target(tmp_path, ("sh", "-c", script)))
    writer = _feed(intake, *([TWO_DISKS] if "cat" in script else _flood()))
    await writer.join()
    assert writer.errors == []
    with pytest.raises(CompressorError) as caught:
        await intake.finish(_expect(), timeout_s=WAIT_S)
    assert str(caught.value).endswith(text)
    assert str(caught.value).startswith("sh -c ")
    await intake.discard()
    assert os.listdir(tmp_path) == []


def _flood() -> list[bytes]:
    """A right stream that is far more than the pipes hold."""
    device = VmaDevice(vma_dev_id=1, name="drive-scsi0", size_bytes=MORE_BYTES)
    writer = VmaWriter(uuid=bytes(range(16)), ctime_s=0, configs=(), devices=(device,))
    data = b"x" * MORE_BYTES
    parts = [writer.header_bytes(), *writer.add_clusters(1, 0, data), *writer.finish()]
    return [bytes(part) for part in parts]


async def test_intake_dead_compressor_is_noticed_before_any_data(tmp_path: Path) -> None:
    intake = await ArchiveDirectory().open_intake(_target(tmp_path, ("sh", "-c", "exit 5")))
    await _until(lambda: isinstance(intake.failure(), CompressorError))
    assert "wrong exit status 5" in str(intake.failure())
    await intake.discard()
    assert os.listdir(tmp_path) == []


async def test_intake_unrunnable_compressor_leaves_nothing(tmp_path: Path) -> None:
    script = tmp_path / "broken"
    script.write_text("#!/nonexistent/interpreter\n")
    script.chmod(0o755)
    with pytest.raises(CompressorError, match="unable to start"):
        await ArchiveDirectory().open_intake(_target(tmp_path, (str(script),)))
    assert os.listdir(tmp_path) == ["broken"]


class ScriptedFiles(TargetFiles):
    """Notes the order of calls; fails one of them with a chosen error."""

    def __init__(self, *, fail: str = "", number: int = errno.EIO, open_as: str = "") -> None:
        self.calls: list[str] = []
        self._fail = fail
        self._number = number
        self._open_as = open_as

    def _note(self, name: str) -> None:
        self.calls.append(name)
        if name == self._fail:
            raise OSError(self._number, os.strerror(self._number))

    def open_temp(self, path: str) -> int:
        self._note("open_temp")
        if self._open_as:
            return os.open(self._open_as, os.O_WRONLY | os.O_CLOEXEC)
        return super().open_temp(path)

    def sync(self, fd: int) -> None:
        self._note("sync")
        super().sync(fd)

    def link(self, path: str, new_path: str) -> None:
        self._note("link")
        super().link(path, new_path)

    def rename(self, path: str, new_path: str) -> None:
        self._note("rename")
        super().rename(path, new_path)

    def unlink(self, path: str) -> None:
        self._note("unlink " + path.rsplit(".", 1)[1])
        super().unlink(path)

    def sync_directory(self, path: str) -> None:
        self._note("sync_directory")
        super().sync_directory(path)


async def test_intake_publishing_syncs_file_then_names_then_syncs_directory(
    tmp_path: Path,
) -> None:
    files = ScriptedFiles()
    await _take(ArchiveDirectory(files=files), _target(tmp_path), TWO_DISKS)
    assert files.calls == ["open_temp", "sync", "link", "unlink dat", "sync_directory"]


async def test_intake_publishing_without_links_renames(tmp_path: Path) -> None:
    files = ScriptedFiles(fail="link", number=errno.EPERM)
    await _take(ArchiveDirectory(files=files), _target(tmp_path), TWO_DISKS)
    assert files.calls == ["open_temp", "sync", "link", "rename", "sync_directory"]


async def test_intake_failing_open_leaves_nothing(tmp_path: Path) -> None:
    store = ArchiveDirectory(files=ScriptedFiles(fail="open_temp", number=errno.ENOSPC))
    with pytest.raises(TargetError, match="No space left") as caught:
        await store.open_intake(_target(tmp_path, ("cat",)))
    assert caught.value.hint
    assert os.listdir(tmp_path) == []


async def test_intake_failing_sync_is_a_target_error(tmp_path: Path) -> None:
    intake = await ArchiveDirectory(files=ScriptedFiles(fail="sync")).open_intake(_target(tmp_path))
    _feed(intake, TWO_DISKS)
    with pytest.raises(TargetError, match=r"unable to sync .* - Input/output error"):
        await intake.finish(_expect(), timeout_s=WAIT_S)
    await intake.discard()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("step", ["link", "unlink dat", "sync_directory"])
async def test_intake_failing_publish_step_leaves_no_final_name(tmp_path: Path, step: str) -> None:
    target = _target(tmp_path)
    intake = await ArchiveDirectory(files=ScriptedFiles(fail=step)).open_intake(target)
    _feed(intake, TWO_DISKS)
    await intake.finish(_expect(), timeout_s=WAIT_S)
    with pytest.raises(TargetError) as caught:
        await intake.publish()
    assert str(caught.value) == f"unable to rename '{target.temp_path}' to '{target.final_path}'"
    assert caught.value.hint == "Input/output error"
    if step == "link":
        await intake.discard()
    else:
        with pytest.raises(TargetError, match="unable to remove"):
            await intake.discard()
    assert os.listdir(tmp_path) == (["a.vma.dat"] if step == "unlink dat" else [])
    assert not os.path.exists(target.final_path)


class NameSticksOnce(ScriptedFiles):
    """The directory cannot be synced, and the name not be taken back at once."""

    def __init__(self) -> None:
        super().__init__()
        self._syncs_left = 1
        self._refusals = 1

    def sync_directory(self, path: str) -> None:
        if self._syncs_left:
            self._syncs_left -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync_directory(path)

    def unlink(self, path: str) -> None:
        if path.endswith(".vma") and self._refusals:
            self._refusals -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().unlink(path)


async def test_intake_name_that_stayed_after_a_failed_publishing_goes_with_discarding(
    tmp_path: Path,
) -> None:
    target = _target(tmp_path)
    intake = await ArchiveDirectory(files=NameSticksOnce()).open_intake(target)
    _feed(intake, TWO_DISKS)
    await intake.finish(_expect(), timeout_s=WAIT_S)
    with pytest.raises(TargetError):
        await intake.publish()
    assert os.path.exists(target.final_path)
    await intake.discard()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [0, errno.EPERM], ids=["by-link", "by-rename"])
async def test_intake_existing_final_file_is_not_overwritten(tmp_path: Path, number: int) -> None:
    target = _target(tmp_path)
    Path(target.final_path).write_bytes(b"older")
    files = ScriptedFiles(fail="link", number=number) if number else ScriptedFiles()
    intake = await ArchiveDirectory(files=files).open_intake(target)
    _feed(intake, TWO_DISKS)
    await intake.finish(_expect(), timeout_s=WAIT_S)
    with pytest.raises(TargetError, match="unable to rename") as caught:
        await intake.publish()
    assert caught.value.hint == "File exists"
    await intake.discard()
    assert Path(target.final_path).read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["a.vma"]


async def test_intake_old_temp_file_is_replaced_not_followed(tmp_path: Path) -> None:
    target = _target(tmp_path)
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    os.symlink(precious, target.temp_path)
    await _take(ArchiveDirectory(), target, TWO_DISKS)
    assert precious.read_bytes() == b"mine"
    assert not os.path.islink(target.final_path)


async def test_intake_publish_before_finish_is_a_bug(tmp_path: Path) -> None:
    intake = await ArchiveDirectory().open_intake(_target(tmp_path))
    with pytest.raises(InternalError):
        await intake.publish()
    await intake.discard()


async def test_intake_full_target_is_reported_and_the_stream_drained(tmp_path: Path) -> None:
    store = ArchiveDirectory(files=ScriptedFiles(open_as="/dev/full"))
    intake = await store.open_intake(_target(tmp_path))
    writer = _feed(intake, *_flood())
    await writer.join()
    assert writer.errors == []
    await _until(intake.failure)
    with pytest.raises(TargetError, match=r"unable to write .* - No space left") as caught:
        await intake.finish(_expect(), timeout_s=WAIT_S)
    assert caught.value.hint.startswith("free space")
    await intake.discard()


async def test_intake_full_target_behind_a_compressor_names_the_compressor(tmp_path: Path) -> None:
    store = ArchiveDirectory(files=ScriptedFiles(open_as="/dev/full"))
    intake = await store.open_intake(_target(tmp_path, _zstd_filter()))
    _feed(intake, TWO_DISKS)
    with pytest.raises(CompressorError, match="wrong exit status 1") as caught:
        await intake.finish(_expect(), timeout_s=WAIT_S)
    assert "No space left on device" in str(caught.value)
    await intake.discard()


async def test_intake_stalled_compressor_does_not_hold_up_discard(tmp_path: Path) -> None:
    target = _target(tmp_path, ("sh", "-c", "sleep 1000"))
    intake = await ArchiveDirectory().open_intake(target)
    # The end of the stream comes after the stall: only draining can bring it.
    writer = _feed(intake, *_flood())
    async with asyncio.timeout(WAIT_S):
        await intake.discard()
        await writer.join()
    assert writer.errors == []
    assert os.listdir(tmp_path) == []


async def test_intake_drained_stall_lets_the_writer_end_before_discard(tmp_path: Path) -> None:
    intake = await ArchiveDirectory().open_intake(_target(tmp_path, ("sh", "-c", "sleep 1000")))
    writer = _feed(intake, *_flood())
    assert isinstance(intake, RelayedIntake)
    intake.drain()
    async with asyncio.timeout(WAIT_S):
        await writer.join()
    assert writer.errors == []
    assert intake.failure() is None
    await intake.discard()


async def test_intake_stalled_target_finish_ends_in_time(tmp_path: Path) -> None:
    intake = await ArchiveDirectory().open_intake(_target(tmp_path, ("sh", "-c", "sleep 1000")))
    _feed(intake, TWO_DISKS)
    with pytest.raises(TargetError, match=r"timeout after 0.2s waiting for"):
        await intake.finish(_expect(), timeout_s=0.2)
    await intake.discard()


async def test_intake_stalled_file_is_drained_on_discard(tmp_path: Path) -> None:
    # A FIFO that nobody reads stands for a file on a dead mount.
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    holder_fd = os.open(fifo, os.O_RDWR | os.O_CLOEXEC)
    store = ArchiveDirectory(files=ScriptedFiles(open_as=str(fifo)))
    intake = await store.open_intake(_target(tmp_path))
    writer = _feed(intake, *_flood())
    async with asyncio.timeout(WAIT_S):
        await intake.discard()
        await writer.join()
    assert writer.errors == []
    os.close(holder_fd)


async def test_intake_discard_with_a_writer_that_never_closes_is_bounded(tmp_path: Path) -> None:
    intake = await ArchiveDirectory(discard_timeout_s=0.1).open_intake(_target(tmp_path))
    held_fd = os.dup(intake.write_fd)
    async with asyncio.timeout(WAIT_S):
        await intake.discard()
        await intake.discard()
    with pytest.raises(BrokenPipeError):
        os.write(held_fd, b"x")
    os.close(held_fd)
    assert os.listdir(tmp_path) == []
    assert intake.failure() is None


async def test_intake_discard_after_publish_keeps_the_file(tmp_path: Path) -> None:
    target = _target(tmp_path)
    await _take(ArchiveDirectory(), target, TWO_DISKS)
    assert os.path.exists(target.final_path)


async def test_intake_cancelled_publish_is_settled_by_discard(tmp_path: Path) -> None:
    gate = threading.Event()

    class GatedFiles(TargetFiles):
        def link(self, path: str, new_path: str) -> None:
            gate.wait(WAIT_S)
            super().link(path, new_path)

    target = _target(tmp_path)
    intake = await ArchiveDirectory(files=GatedFiles()).open_intake(target)
    _feed(intake, TWO_DISKS)
    await intake.finish(_expect(), timeout_s=WAIT_S)
    publishing = asyncio.create_task(intake.publish())
    await asyncio.wait([publishing], timeout=0.01)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    gate.set()
    await intake.discard()
    assert os.listdir(tmp_path) == ["a.vma"]


async def test_intake_cancelled_opening_leaves_nothing(tmp_path: Path) -> None:
    gate, removed = threading.Event(), threading.Event()

    class GatedFiles(TargetFiles):
        def open_temp(self, path: str) -> int:
            gate.wait(WAIT_S)
            return super().open_temp(path)

        def unlink(self, path: str) -> None:
            super().unlink(path)
            removed.set()

    store = ArchiveDirectory(files=GatedFiles())
    fd_count = len(os.listdir("/proc/self/fd"))
    opening = asyncio.create_task(store.open_intake(_target(tmp_path)))
    await asyncio.wait([opening], timeout=0.01)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    gate.set()
    await _until(removed.is_set)
    assert os.listdir(tmp_path) == []
    await _until(lambda: len(os.listdir("/proc/self/fd")) == fd_count)


async def test_intake_loop_stays_responsive_while_the_target_stalls(tmp_path: Path) -> None:
    gate = threading.Event()

    class GatedFiles(TargetFiles):
        def sync(self, fd: int) -> None:
            gate.wait(WAIT_S)

    target = _target(tmp_path)
    intake = await ArchiveDirectory(files=GatedFiles()).open_intake(target)
    _feed(intake, TWO_DISKS)
    finishing = asyncio.create_task(intake.finish(_expect(), timeout_s=WAIT_S))
    # The loop itself opens the gate: if the sync ran on it, this line would come too late.
    await asyncio.wait([finishing], timeout=0.05)
    assert not finishing.done()
    gate.set()
    await finishing
    await intake.publish()


@pytest.mark.parametrize("compressor", [(), _zstd_filter()], ids=["plain", "zstd"])
@pytest.mark.parametrize("append", [False, True], ids=["write", "append"])
async def test_intake_to_standard_output_counts_what_was_written(
    tmp_path: Path, compressor: tuple[str, ...], append: bool
) -> None:
    out_path = tmp_path / "out"
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else 0)
    out_fd = os.open(out_path, flags)
    target = ArchiveTarget(final_path="", temp_path="", compressor=compressor)
    intake = await ArchiveDirectory(stdout_fd=out_fd).open_intake(target)
    _feed(intake, TWO_DISKS)
    await intake.finish(_expect(), timeout_s=WAIT_S)
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
    writer = _feed(intake, *_flood())
    await writer.join()
    assert writer.errors == []
    with pytest.raises(TargetError, match="standard output' - Broken pipe"):
        await intake.finish(_expect(), timeout_s=WAIT_S)
    await intake.discard()
    os.close(out_fd)


async def test_intake_write_end_made_non_blocking_by_qemu_still_works(tmp_path: Path) -> None:
    target = _target(tmp_path)
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
    await intake.finish(_expect(), timeout_s=WAIT_S)
    await intake.publish()
    assert Path(target.final_path).read_bytes() == TWO_DISKS


async def test_intake_children_get_no_descriptor_of_the_stream(tmp_path: Path) -> None:
    listing = tmp_path / "fds"
    script = f"ls /proc/self/fd > {listing}; cat"
    target = _target(tmp_path, ("sh", "-c", script))
    await _take(ArchiveDirectory(), target, TWO_DISKS)
    # 3 is the directory that ls itself reads.
    assert set(listing.read_text().split()) <= {"0", "1", "2", "3"}


@pytest.mark.parametrize("compressor", [(), ("sh", "-c", "sleep 0.1; exec cat")])
async def test_intake_written_by_ourselves_is_published(
    tmp_path: Path, compressor: tuple[str, ...]
) -> None:
    target = _target(tmp_path, compressor)
    intake = await ArchiveDirectory().open_intake(target)
    for piece in _in_pieces(TWO_DISKS, 100_000):
        await intake.write(piece)
    await intake.finish(_expect(), timeout_s=WAIT_S)
    await intake.publish()
    assert Path(target.final_path).read_bytes() == TWO_DISKS


async def test_intake_cancelled_write_into_a_stall_is_discarded(tmp_path: Path) -> None:
    intake = await ArchiveDirectory().open_intake(_target(tmp_path, ("sh", "-c", "sleep 1000")))

    async def write_all() -> None:
        for part in _flood():
            await intake.write(part)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(write_all(), 0.2)
    async with asyncio.timeout(WAIT_S):
        await intake.discard()
    assert os.listdir(tmp_path) == []


async def test_intake_write_after_a_failure_raises_it(tmp_path: Path) -> None:
    intake = await ArchiveDirectory().open_intake(_target(tmp_path))
    await intake.write(bytes(12288))
    await _until(intake.failure)
    with pytest.raises(VmaError, match="magic"):
        await intake.write(b"more")
    await intake.discard()
