"""A stream into an intake, as QEMU writes it, and what must not be left over afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from vzdump_qemu.formats.vma import VmaDevice, VmaWriter
from vzdump_qemu.ports import ArchiveTarget, VmaExpectation, VmaIntake, VmaProof
from vzdump_qemu.stores.archive_directory import ArchiveDirectory
from vzdump_qemu.stores.archive_output import TargetFiles

DATA = Path(__file__).parent.parent / "data" / "intake"
TWO_DISKS = (DATA / "qemu-two-disks.vma").read_bytes()
UUID = "-".join(
    TWO_DISKS[8:24].hex()[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))
)
WAIT_S = 20.0
# Enough to overrun every pipe buffer behind the write end many times.
MORE_BYTES = 20 * 1024 * 1024


def zstd_filter(*extra: str) -> tuple[str, ...]:
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


def feed(intake: VmaIntake, *pieces: bytes) -> Writer:
    writer_fd = os.dup(intake.write_fd)
    intake.close_write_end()
    return _write_from(writer_fd, list(pieces))


def in_pieces(data: bytes, size_bytes: int) -> list[bytes]:
    return [data[at : at + size_bytes] for at in range(0, len(data), size_bytes)]


def target_in(directory: Path, compressor: tuple[str, ...] = (), suffix: str = "") -> ArchiveTarget:
    return ArchiveTarget(
        final_path=str(directory / f"a.vma{suffix}"),
        temp_path=str(directory / "a.vma.dat"),
        compressor=compressor,
    )


def expected(uuid: str = UUID, *device_ids: str) -> VmaExpectation:
    return VmaExpectation(uuid=uuid, device_ids=device_ids or ("drive-scsi1", "drive-scsi0"))


async def until(condition: Callable[[], object]) -> None:
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
async def nothing_left_over() -> AsyncIterator[None]:
    # Executor threads and the loop's own descriptors exist before the count.
    await asyncio.to_thread(len, "")
    fds, children = len(os.listdir("/proc/self/fd")), _children()
    yield
    assert len(os.listdir("/proc/self/fd")) == fds
    assert _children() == children


async def take(store: ArchiveDirectory, target: ArchiveTarget, stream: bytes) -> VmaProof:
    intake = await store.open_intake(target)
    writer = feed(intake, stream)
    proof = await intake.finish(expected(), timeout_s=WAIT_S)
    await writer.join()
    size_bytes = await intake.publish()
    assert size_bytes == os.path.getsize(target.final_path)
    await intake.discard()
    return proof


def flood() -> list[bytes]:
    """A right stream that is far more than the pipes hold."""
    device = VmaDevice(vma_dev_id=1, name="drive-scsi0", size_bytes=MORE_BYTES)
    writer = VmaWriter(uuid=bytes(range(16)), ctime_s=0, configs=(), devices=(device,))
    data = b"x" * MORE_BYTES
    parts = [writer.header_bytes(), *writer.add_clusters(1, 0, data), *writer.finish()]
    return [bytes(part) for part in parts]


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
