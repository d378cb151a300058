"""How fast VMA packing, extracting and verifying are beside a plain copy of the same data.

Prints medians of interleaved runs, their ratio to ``cp --sparse=never`` of the data part, and the
peak memory of a process that packs, verifies and extracts. Run: ``python benchmarks/vma.py``.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from vzdump_qemu.disk_ports import DiskOrigin
from vzdump_qemu.formats.vma import ConfigBlob, VmaDevice, VmaWriter
from vzdump_qemu.stores.archive_file import ArchiveFile
from vzdump_qemu.stores.archive_reading import verify_archive
from vzdump_qemu.stores.disk_pump import DiskPump
from vzdump_qemu.stores.extraction import extract_backup
from vzdump_qemu.stores.raw_disk import RawDisk
from vzdump_qemu.stores.system import SystemClock
from vzdump_qemu.stores.vma_sink import VmaSink

MIB = 1 << 20
RATIO_MIN = 0.8
RSS_MIB_MAX = 150


def make_disk(disk_path: Path, data_path: Path, size_mib: int) -> int:
    """Write a disk with stretches of data over about 60% of it, and a file of that data alone."""
    chance = random.Random(1)
    noise = chance.randbytes(8 * MIB)
    data_bytes = 0
    with disk_path.open("wb") as disk, data_path.open("wb") as data:
        at = 0
        while at < size_mib * MIB:
            length = min(chance.randrange(1, 4096) * 4096, size_mib * MIB - at)
            if chance.random() < 0.6:
                disk.seek(at)
                rest = length
                while rest:
                    piece = noise[: min(rest, len(noise))]
                    disk.write(piece)
                    data.write(piece)
                    rest -= len(piece)
                data_bytes += length
            at += length
        disk.truncate(size_mib * MIB)
    return data_bytes


def pack(disk_path: Path, vma_path: Path) -> None:
    """As a backup does it, but for the pipe between the sink and the file."""
    origin = DiskOrigin(
        device_id="drive-scsi0", size_bytes=disk_path.stat().st_size, file_path=str(disk_path)
    )
    configs = [ConfigBlob(name="qemu-server.conf", data=b"name: bench\n")]
    device = VmaDevice(vma_dev_id=1, name=origin.device_id, size_bytes=origin.size_bytes)
    fd = os.open(vma_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
    sink = VmaSink(fd, VmaWriter(bytes(range(16)), 0, configs, [device]))
    pump = DiskPump([RawDisk(origin)], sink, clock=SystemClock())
    pump.ended.result()
    if (failure := pump.failure()) is not None:
        raise failure


def timed(work: Callable[[], object], scratch: Path, size_mib: int) -> float:
    """Seconds of one work, on equal terms: nothing to write back, as many pages at hand.

    A virtual machine may have given unused memory back to its host; getting it anew costs more
    than the copying, and would fall on whoever comes last.
    """
    os.sync()
    with scratch.open("wb") as file:
        for _ in range(size_mib + size_mib // 4):
            file.write(bytes(MIB))
    scratch.unlink()
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", default=tempfile.gettempdir())
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.dir, prefix="vma-bench-"))
    try:
        return run(folder, size_mib=options.size_mib, rounds=options.rounds)
    finally:
        shutil.rmtree(folder)


def run(folder: Path, *, size_mib: int, rounds: int) -> int:
    disk, data, vma, out = (folder / name for name in ("disk.raw", "data.raw", "a.vma", "out"))
    data_bytes = make_disk(disk, data, size_mib)
    print(f"disk {size_mib} MiB, data {data_bytes / MIB:.0f} MiB, in {folder}")
    works: dict[str, Callable[[], object]] = {
        "copy": lambda: subprocess.run(
            ["cp", "--sparse=never", "--reflink=never", data, folder / "copy.raw"], check=True
        ),
        "pack": lambda: pack(disk, vma),
        "verify": lambda: verify_archive(str(vma)),
        "extract": lambda: extract_backup(ArchiveFile(str(vma)), str(out)),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for round_index in range(rounds + 1):
        for name, work in works.items():
            seconds = timed(work, folder / "scratch", size_mib)
            if round_index:
                times[name].append(seconds)
            if name == "copy":
                (folder / "copy.raw").unlink()
            if name == "extract":
                shutil.rmtree(out)
        vma.unlink()
    copy_s = statistics.median(times["copy"])
    failed = False
    for name, seconds_of_runs in times.items():
        seconds = statistics.median(seconds_of_runs)
        ratio = copy_s / seconds
        failed |= ratio < RATIO_MIN
        print(f"{name:8} {seconds:6.3f} s  {data_bytes / MIB / seconds:7.0f} MiB/s  {ratio:5.2f}")
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {peak_mib:.0f} MiB")
    return int(failed or peak_mib > RSS_MIB_MAX)


if __name__ == "__main__":
    sys.exit(main())
