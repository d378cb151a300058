"""Exports of real QEMU programs, through pump and intake into archives."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from vzdump_qemu.disk_ports import DiskOrigin, ExtentKind
from vzdump_qemu.errors import DiskReadError
from vzdump_qemu.ports import ArchiveTarget, VmaExpectation, VmaIntake
from vzdump_qemu.qemu.nbd_connection import NbdLimits
from vzdump_qemu.qemu.nbd_disk import NbdDisk
from vzdump_qemu.stores.archive_directory import ArchiveDirectory
from vzdump_qemu.stores.disk_pump import DiskPump
from vzdump_qemu.stores.system import SystemClock
from vzdump_qemu.stores.vma_packer import PumpedVmaPacker
from vzdump_qemu.units import GIB, MIB

_PROGRAMS = ("qemu-storage-daemon", "qemu-nbd", "qemu-img", "qemu-io")
_MISSING = [name for name in _PROGRAMS if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}")

_UUID = "01234567-89ab-cdef-0123-456789abcdef"


class Lab:
    """A directory with images and the servers that export them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.socket = root / "n"
        self.server: subprocess.Popen[bytes] | None = None

    def make_raw(self, name: str, size_bytes: int, *, seed: int = 1) -> Path:
        """A disk with data, written zeroes and holes."""
        chance = random.Random(seed)
        path = self.root / name
        with path.open("wb") as file:
            for at in range(0, size_bytes, MIB):
                kind = chance.randrange(4)
                file.seek(at)
                if kind == 0:
                    file.write(chance.randbytes(min(MIB, size_bytes - at)))
                elif kind == 1:
                    file.write(bytes(min(MIB, size_bytes - at)))
                elif kind == 2:
                    file.write(b"x" * min(12345, size_bytes - at))
            file.truncate(size_bytes)
        return path

    def convert(self, source: Path, name: str) -> Path:
        target = self.root / name
        command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, target]
        subprocess.run(command, check=True)
        return target

    def make_empty(self, name: str, size_bytes: int) -> Path:
        path = self.root / name
        command = ["qemu-img", "create", "-q", "-f", "qcow2", path, str(size_bytes)]
        subprocess.run(command, check=True)
        return path

    def start_daemon(self, *exports: tuple[str, str, Path], bitmap: str = "") -> None:
        """Export images by (name, format, path) from one storage daemon."""
        command = ["qemu-storage-daemon", "--nbd-server", f"addr.type=unix,addr.path={self.socket}"]
        for name, image_format, path in exports:
            command += [
                "--blockdev", f"driver=file,node-name=f-{name},filename={path},read-only=on",
                "--blockdev", f"driver={image_format},node-name={name},file=f-{name},read-only=on",
                "--export", f"type=nbd,id=e-{name},node-name={name},name={name}"
                + (f",bitmaps.0={bitmap}" if bitmap else ""),
            ]  # fmt: skip
        self._start(command)

    def start_qemu_nbd(self, *arguments: object) -> None:
        command = ["qemu-nbd", "-r", "-t", "-k", self.socket, "-x", "d", *arguments]
        self._start([str(part) for part in command])

    def _start(self, command: Sequence[str]) -> None:
        self.server = subprocess.Popen(command)
        limit_s = time.monotonic() + 20
        while not self.socket.exists():
            assert self.server.poll() is None
            assert time.monotonic() < limit_s
            time.sleep(0.01)

    def stop(self) -> None:
        if self.server is not None:
            self.server.send_signal(signal.SIGCONT)
            self.server.kill()
            self.server.wait(20)

    def origin(self, name: str, size_bytes: int, *, bitmap: str = "") -> DiskOrigin:
        return DiskOrigin(
            device_id=f"drive-{name}",
            size_bytes=size_bytes,
            nbd_socket=str(self.socket),
            export_name=name,
            bitmap_name=bitmap,
        )

    async def open_intake(self) -> VmaIntake:
        target = ArchiveTarget(
            final_path=str(self.root / "a.vma"), temp_path=str(self.root / "a.dat"), compressor=()
        )
        return await ArchiveDirectory().open_intake(target)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="vzd-", dir="/tmp") as directory:
        made = Lab(Path(directory))
        yield made
        made.stop()


async def _begin(
    intake: VmaIntake,
    origins: Sequence[DiskOrigin],
    *,
    limits: NbdLimits | None = None,
    rate: int = 0,
) -> DiskPump:
    clock = SystemClock()
    packer = PumpedVmaPacker(
        clock=clock, open_nbd=lambda origin: NbdDisk(origin, clock=clock, limits=limits)
    )
    return await packer.begin(
        origins,
        intake,
        uuid=_UUID,
        configs=[("qemu-server.conf", b"name: x\n")],
        rate_limit_bytes_per_s=rate,
    )


async def _pack(lab: Lab, *origins: DiskOrigin) -> None:
    intake = await lab.open_intake()
    transfer = await _begin(intake, origins)
    await asyncio.wait_for(transfer.finish(), 60)
    device_ids = tuple(origin.device_id for origin in origins)
    expectation = VmaExpectation(uuid=_UUID, device_ids=device_ids)
    await intake.finish(expectation, timeout_s=60)
    await intake.publish()


def _tool(*arguments: object) -> str:
    command = [sys.executable, "-m", "vzdump_qemu", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _assert_same(path: Path, other: Path) -> None:
    subprocess.run(["cmp", path, other], check=True)


async def test_disks_of_a_storage_daemon_come_back_byte_for_byte(lab: Lab) -> None:
    sizes = {"scsi0": 37 * MIB, "scsi1": 5 * MIB + 512, "efidisk0": 540672, "tpmstate0": 512}
    raws = {name: lab.make_raw(f"{name}.raw", size, seed=size) for name, size in sizes.items()}
    qcow2 = lab.convert(raws["scsi0"], "scsi0.qcow2")
    exports = [(name, "raw", path) for name, path in raws.items() if name != "scsi0"]
    lab.start_daemon(("scsi0", "qcow2", qcow2), *exports)
    await _pack(lab, *(lab.origin(name, size) for name, size in sizes.items()))
    assert "a.vma: whole" in _tool("verify", lab.root / "a.vma")
    _tool("extract", lab.root / "a.vma", lab.root / "out")
    for name, path in raws.items():
        _assert_same(path, lab.root / f"out/disk-drive-{name}.raw")


@pytest.mark.parametrize("options", [(), ("--shared=16",), ("--cache=none",)])
async def test_disk_of_qemu_nbd_comes_back_however_many_clients_it_takes(
    lab: Lab, options: tuple[str, ...]
) -> None:
    raw = lab.make_raw("d.raw", 40 * MIB)
    lab.start_qemu_nbd(*options, "-f", "raw", raw)
    await _pack(lab, lab.origin("d", 40 * MIB))
    _tool("extract", lab.root / "a.vma", lab.root / "out")
    _assert_same(raw, lab.root / "out/disk-drive-d.raw")


async def test_empty_disk_is_not_read(lab: Lab) -> None:
    lab.start_daemon(("d", "qcow2", lab.make_empty("huge.qcow2", 64 * GIB)))
    intake = await lab.open_intake()
    transfer = await _begin(intake, [lab.origin("d", 64 * GIB)])
    await asyncio.wait_for(transfer.finish(), 60)
    progress = transfer.progress()
    assert (progress.read_bytes, progress.zero_bytes) == (0, 64 * GIB)
    await intake.discard()


def test_bitmap_of_an_image_tells_what_changed(lab: Lab) -> None:
    path = lab.make_empty("d.qcow2", 16 * MIB)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 1 0 8M", path], check=True)
    subprocess.run(["qemu-img", "bitmap", "--add", path, "daily"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 2 1M 128k", path], check=True)
    lab.start_daemon(("d", "qcow2", path), bitmap="daily")
    disk = NbdDisk(lab.origin("d", 16 * MIB, bitmap="daily"), clock=SystemClock())
    found = [
        (extent.offset_bytes, extent.length_bytes, extent.kind)
        for extent in disk.extents(0, 16 * MIB)
    ]
    disk.close()
    assert found == [
        (0, MIB, ExtentKind.UNCHANGED),
        (MIB, 128 * 1024, ExtentKind.DATA),
        (MIB + 128 * 1024, 15 * MIB - 128 * 1024, ExtentKind.UNCHANGED),
    ]


def test_missing_export_and_missing_bitmap_are_told(lab: Lab) -> None:
    lab.start_daemon(("d", "raw", lab.make_raw("d.raw", MIB)))
    with pytest.raises(DiskReadError, match="'nope' cannot be opened: the server has no such"):
        NbdDisk(lab.origin("nope", MIB), clock=SystemClock())
    with pytest.raises(DiskReadError, match="does not serve the bitmap 'daily'"):
        NbdDisk(lab.origin("d", MIB, bitmap="daily"), clock=SystemClock())


async def test_read_error_below_the_server_is_told(lab: Lab) -> None:
    raw = lab.make_raw("d.raw", 8 * MIB)
    raw.write_bytes(random.Random(1).randbytes(8 * MIB))
    options = f"driver=blkdebug,image.driver=file,image.filename={raw},inject-error.0.event=none"
    options += f",inject-error.0.iotype=read,inject-error.0.sector={6 * MIB // 512}"
    lab.start_qemu_nbd("--image-opts", options)
    intake = await lab.open_intake()
    transfer = await _begin(intake, [lab.origin("d", 8 * MIB)])
    with pytest.raises(DiskReadError, match="unable to read disk drive-d - Input/output error"):
        await asyncio.wait_for(transfer.finish(), 20)
    await intake.discard()
    assert not list(lab.root.glob("a.*"))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_server_that_dies_or_hangs_amid_a_transfer_is_a_bounded_failure(
    lab: Lab, how: signal.Signals
) -> None:
    raw = lab.root / "d.raw"
    raw.write_bytes(os.urandom(64 * MIB))
    lab.start_daemon(("d", "raw", raw))
    intake = await lab.open_intake()
    limits = NbdLimits(handshake_s=5, answer_s=1)
    transfer = await _begin(intake, [lab.origin("d", 64 * MIB)], limits=limits, rate=16 * MIB)
    while not transfer.progress().done_bytes:
        await asyncio.sleep(0.01)
    assert lab.server is not None
    lab.server.send_signal(how)
    with pytest.raises(DiskReadError, match=r"closed the connection|broke|not answer in time"):
        await asyncio.wait_for(transfer.finish(), 10)
    await intake.discard()
    assert not list(lab.root.glob("a.*"))


async def test_cancel_lets_go_of_a_hanging_server(lab: Lab) -> None:
    raw = lab.root / "d.raw"
    raw.write_bytes(os.urandom(64 * MIB))
    lab.start_daemon(("d", "raw", raw))
    intake = await lab.open_intake()
    transfer = await _begin(intake, [lab.origin("d", 64 * MIB)], rate=16 * MIB)
    while not transfer.progress().done_bytes:
        await asyncio.sleep(0.01)
    assert lab.server is not None
    lab.server.send_signal(signal.SIGSTOP)
    await asyncio.wait_for(transfer.cancel(), 5)
    assert transfer.ended.done()
    await intake.discard()
