"""What the proof costs: a VMA stream through an intake, against the program alone.

Runs, interleaved, one stream of the given size through
  * an intake into a file, against ``cat`` reading the same pipe into a file, and
  * an intake with ``zstd --threads=1``, against ``zstd --threads=1`` reading the pipe itself.
Every run ends with a sync of the file. Prints the median of the times, their ratio, and the
processor seconds per GiB of all but the process that writes the stream.

    python benchmarks/relay.py [--size-mib 1024] [--runs 5] [--directory /dev/shm]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vzdump_qemu.formats.vma import Buffer, VmaDevice, VmaWriter
from vzdump_qemu.ports import ArchiveTarget, VmaExpectation
from vzdump_qemu.stores.archive_directory import ArchiveDirectory
from vzdump_qemu.stores.vma_relay import open_pipe
from vzdump_qemu.units import GIB, MIB

CLUSTER_BYTES = 65536
EXTENT_CLUSTER_COUNT = 58
TIMEOUT_S = 600.0
ZSTD = ("zstd", "--threads=1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One run: wall seconds, and processor seconds without the writer of the stream."""

    wall_s: float
    cpu_s: float


def make_parts(size_bytes: int) -> list[Buffer]:
    """A whole stream of one disk; all extents share one buffer, half noise and half text."""
    chance = random.Random(4)
    block = chance.randbytes(2048) + b"nothing new under the sun " * 79
    data = memoryview((block * 17)[:CLUSTER_BYTES] * EXTENT_CLUSTER_COUNT)
    device = VmaDevice(vma_dev_id=1, name="drive-scsi0", size_bytes=size_bytes)
    writer = VmaWriter(uuid=bytes(range(16)), ctime_s=0, configs=(), devices=(device,))
    parts: list[Buffer] = [writer.header_bytes()]
    count = size_bytes // CLUSTER_BYTES
    for first in range(0, count, EXTENT_CLUSTER_COUNT):
        step = min(EXTENT_CLUSTER_COUNT, count - first)
        parts += writer.add_clusters(1, first, data[: step * CLUSTER_BYTES])
    return [*parts, *writer.finish()]


def start_writer(parts: Sequence[Buffer], fd: int) -> int:
    """Fork a process that writes the stream as QEMU does; return its id."""
    process_id = os.fork()
    if process_id:
        return process_id
    os.set_blocking(fd, True)
    for part in parts:
        view = memoryview(part).cast("B")
        while view:
            view = view[os.write(fd, view) :]
    os._exit(0)


def cpu_seconds() -> float:
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total


def measure(run: Callable[[], int]) -> Cost:
    """Time one run, which returns the id of its ended but unreaped writer."""
    cpu_before_s, before_s = cpu_seconds(), time.perf_counter()
    writer_id = run()
    wall_s = time.perf_counter() - before_s
    _, status, usage = os.wait4(writer_id, 0)
    if status:
        raise SystemExit("the writer of the stream failed")
    writer_s = usage.ru_utime + usage.ru_stime
    return Cost(wall_s=wall_s, cpu_s=cpu_seconds() - cpu_before_s - writer_s)


def through_intake(parts: Sequence[Buffer], directory: Path, compressor: tuple[str, ...]) -> int:
    """The product's way, from opening to the final name."""

    async def run() -> int:
        final_path = directory / "intake.vma"
        target = ArchiveTarget(
            final_path=str(final_path),
            temp_path=str(directory / "intake.vma.dat"),
            compressor=compressor,
        )
        intake = await ArchiveDirectory().open_intake(target)
        writer_id = start_writer(parts, intake.write_fd)
        expectation = VmaExpectation(uuid="", device_ids=("drive-scsi0",))
        await intake.finish(expectation, timeout_s=TIMEOUT_S)
        await intake.publish()
        final_path.unlink()
        return writer_id

    return asyncio.run(run())


def through_program(parts: Sequence[Buffer], directory: Path, program: tuple[str, ...]) -> int:
    """The direct way: the program reads the pipe and writes the file."""
    path = directory / "direct.vma"
    read_fd, write_fd = open_pipe()
    with open(path, "wb") as target:
        process = subprocess.Popen(program, stdin=read_fd, stdout=target)
        os.close(read_fd)
        writer_id = start_writer(parts, write_fd)
        os.close(write_fd)
        if process.wait(TIMEOUT_S):
            raise SystemExit(f"{program[0]} failed")
        os.fsync(target.fileno())
    path.unlink()
    return writer_id


def report(name: str, costs: Sequence[Cost], size_bytes: int) -> float:
    wall_s = statistics.median(cost.wall_s for cost in costs)
    cpu_s = statistics.median(cost.cpu_s for cost in costs) * GIB / size_bytes
    rate = size_bytes / MIB / wall_s
    print(f"{name:24} {wall_s:8.3f} s  {rate:8.0f} MiB/s  {cpu_s:7.3f} CPU s/GiB")
    return wall_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--directory", default=None, help="where the files go")
    options = parser.parse_args()
    size_bytes = options.size_mib * MIB
    parts = make_parts(size_bytes)
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        contests: dict[str, Callable[[], int]] = {
            "intake to file": lambda: through_intake(parts, directory, ()),
            "cat to file": lambda: through_program(parts, directory, ("cat",)),
            "intake with zstd": lambda: through_intake(parts, directory, ZSTD),
            "zstd alone": lambda: through_program(parts, directory, (*ZSTD, "-q", "-c")),
        }
        costs: dict[str, list[Cost]] = {contest: [] for contest in contests}
        for _ in range(options.runs):
            for contest, run in contests.items():
                costs[contest].append(measure(run))
    walls = {contest: report(contest, costs[contest], size_bytes) for contest in contests}
    print(f"file: intake takes {walls['intake to file'] / walls['cat to file']:.3f} of cat")
    print(f"zstd: intake takes {walls['intake with zstd'] / walls['zstd alone']:.3f} of zstd")


if __name__ == "__main__":
    main()
