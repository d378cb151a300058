"""What a pull costs: a disk behind a real NBD export into an archive, and beside it the floor.

The disk is served by `qemu-storage-daemon` from the page cache. Interleaved, medians:
  * pull: NBD client, pump, VMA packing, proof and sync of an uncompressed archive;
  * ``nbdcopy EXPORT null:``, which only receives, and
  * ``dd`` of the data to a file with its sync: together the floor;
  * ``qemu-img convert`` of the same export to a sparse raw file, with a sync;
  * offline: a raw file into an archive, and ``cp`` of its data, with a sync.
Then an empty disk, and how time and memory grow with the size and the number of disks.
Processor seconds are those of the program named, not of the server.

Needs qemu-storage-daemon, qemu-img and nbdcopy (Debian: qemu-system-common, qemu-utils,
libnbd-bin).

    python benchmarks/pull.py [--quick] [--runs 5] [--directory /var/tmp]

Goals: pull at most 1.5 times nbdcopy plus the writing; 64 GiB of nothing within 1 s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vzdump_qemu.disk_ports import DiskOrigin
from vzdump_qemu.ports import ArchiveTarget, VmaExpectation
from vzdump_qemu.qemu.nbd_disk import NbdDisk
from vzdump_qemu.stores.archive_directory import ArchiveDirectory
from vzdump_qemu.stores.system import SystemClock
from vzdump_qemu.stores.vma_packer import PumpedVmaPacker
from vzdump_qemu.units import GIB, MIB

FLOOR_FACTOR_MAX = 1.5
EMPTY_S_MAX = 1.0
PEAK_MIB_MAX = 150
UUID = "01234567-89ab-cdef-0123-456789abcdef"
TIMEOUT_S = 600.0
PROGRAMS = ("qemu-storage-daemon", "qemu-img", "nbdcopy", "dd", "cp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One run of one program; the peak of its memory is known of our own only."""

    wall_s: float
    cpu_s: float
    peak_mib: float = 0.0


def pull(origins: Sequence[DiskOrigin], target: Path) -> Cost:
    """The product's way, in a process of its own: start-up is not counted, memory is."""
    parts = [
        f"{one.device_id},{one.size_bytes},{one.nbd_socket},{one.export_name},{one.file_path}"
        for one in origins
    ]
    command = [sys.executable, __file__, "--child", str(target), *parts]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    target.unlink()
    return Cost(**json.loads(told))


def pull_here(target: str, parts: Sequence[str]) -> None:
    """What the process of `pull` does."""
    origins = []
    for part in parts:
        name, size, nbd_socket, export, path = part.split(",")
        origins.append(
            DiskOrigin(
                device_id=name,
                size_bytes=int(size),
                nbd_socket=nbd_socket,
                export_name=export,
                file_path=path,
            )
        )
    clock = SystemClock()
    packer = PumpedVmaPacker(clock=clock, open_nbd=lambda origin: NbdDisk(origin, clock=clock))

    async def run() -> None:
        where = ArchiveTarget(final_path=target, temp_path=f"{target}.dat", compressor=())
        intake = await ArchiveDirectory().open_intake(where)
        transfer = await packer.begin(
            origins, intake, uuid=UUID, configs=[("a.conf", b"x\n")], rate_limit_bytes_per_s=0
        )
        await transfer.finish()
        names = tuple(origin.device_id for origin in origins)
        await intake.finish(VmaExpectation(uuid=UUID, device_ids=names), timeout_s=TIMEOUT_S)
        await intake.publish()

    before = resource.getrusage(resource.RUSAGE_SELF)
    begin = time.perf_counter()
    asyncio.run(run())
    wall_s = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_SELF)
    # Not ru_maxrss, which begins with what the process that started us had.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak_mib = int(status.split("VmHWM:")[1].split()[0]) / 1024
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s, "peak_mib": peak_mib}))


def program(command: Sequence[object], output: Path | None = None) -> Cost:
    """Run a program; its output file is synced as a part of it, and removed."""
    begin = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise SystemExit(f"{command[0]} failed")
    if output is not None:
        fd = os.open(output, os.O_RDWR)
        os.fsync(fd)
        os.close(fd)
    wall_s = time.perf_counter() - begin
    if output is not None:
        output.unlink()
    cpu_s = usage.ru_utime + usage.ru_stime
    return Cost(wall_s=wall_s, cpu_s=cpu_s)


def make_disk(path: Path, size_bytes: int, data_bytes: int) -> None:
    """A sparse disk whose data lies in stretches of 64 MiB, spread evenly."""
    noise = random.Random(1).randbytes(16 * MIB)
    stretch_count = max(data_bytes // (64 * MIB), 1)
    with path.open("wb") as file:
        for index in range(stretch_count if data_bytes else 0):
            file.seek(size_bytes // stretch_count * index // MIB * MIB)
            rest = data_bytes // stretch_count
            while rest:
                rest -= file.write(noise[: min(rest, len(noise))])
        file.truncate(size_bytes)


@contextmanager
def serving(directory: Path, paths: Sequence[Path]) -> Iterator[list[DiskOrigin]]:
    """Export raw files from one storage daemon; as origins."""
    socket_path = directory / "nbd"
    socket_path.unlink(missing_ok=True)
    command = ["qemu-storage-daemon", "--nbd-server", f"addr.type=unix,addr.path={socket_path}"]
    for path in paths:
        name = path.stem
        command += [
            "--blockdev", f"driver=file,node-name=f{name},filename={path},read-only=on",
            "--blockdev", f"driver=raw,node-name={name},file=f{name},read-only=on",
            "--export", f"type=nbd,id=e{name},node-name={name},name={name}",
        ]  # fmt: skip
    server = subprocess.Popen(command)
    try:
        while not socket_path.exists():
            if server.poll() is not None:
                raise SystemExit("qemu-storage-daemon failed")
            time.sleep(0.01)
        yield [
            DiskOrigin(
                device_id=path.stem,
                size_bytes=path.stat().st_size,
                nbd_socket=str(socket_path),
                export_name=path.stem,
            )
            for path in paths
        ]
    finally:
        server.terminate()
        server.wait(30)


def contest(
    works: dict[str, Callable[[], Cost]], *, run_count: int, data_bytes: int
) -> dict[str, float]:
    """Median seconds of each work, interleaved, after one round that nobody counts."""
    costs: dict[str, list[Cost]] = {name: [] for name in works}
    for round_index in range(run_count + 1):
        for name, work in works.items():
            os.sync()
            cost = work()
            if round_index:
                costs[name].append(cost)
    medians = {}
    for name, of_runs in costs.items():
        medians[name] = statistics.median(cost.wall_s for cost in of_runs)
        cpu_s = statistics.median(cost.cpu_s for cost in of_runs) * GIB / max(data_bytes, 1)
        peak_mib = max(cost.peak_mib for cost in of_runs)
        print(
            f"{name:22} {medians[name]:7.3f} s  {data_bytes / MIB / medians[name]:7.0f} MiB/s"
            f"  {cpu_s:6.3f} CPU s/GiB" + (f"  peak {peak_mib:4.0f} MiB" if peak_mib else "")
        )
    return medians


def compare(directory: Path, *, unit_bytes: int, run_count: int) -> bool:
    """Pull and offline packing of a disk of 4 units with 1 unit of data; whether goals are met."""
    disk, data = directory / "disk.raw", directory / "data.raw"
    make_disk(disk, 4 * unit_bytes, unit_bytes)
    make_disk(data, unit_bytes, unit_bytes)
    vma, copy = directory / "a.vma", directory / "copy.raw"
    print(f"disk of {4 * unit_bytes // MIB} MiB with {unit_bytes // MIB} MiB of data")
    with serving(directory, [disk]) as origins:
        url = f"nbd+unix:///disk?socket={directory}/nbd"
        offline = DiskOrigin(device_id="disk", size_bytes=4 * unit_bytes, file_path=str(disk))
        medians = contest(
            {
                "nbdcopy to null": lambda: program(["nbdcopy", url, "null:"]),
                "dd, data once": lambda: program(
                    ["dd", f"if={data}", f"of={copy}", "bs=1M", "conv=fsync"], copy
                ),
                "pull": lambda: pull(origins, vma),
                "qemu-img convert": lambda: program(
                    ["qemu-img", "convert", "-f", "raw", "-O", "raw", url, copy], copy
                ),
                "cp, data once": lambda: program(
                    ["cp", "--sparse=never", "--reflink=never", data, copy], copy
                ),
                "offline": lambda: pull([offline], vma),
            },
            run_count=run_count,
            data_bytes=unit_bytes,
        )
    floor_s = FLOOR_FACTOR_MAX * medians["nbdcopy to null"] + medians["dd, data once"]
    print(f"pull / (1.5 nbdcopy + dd)  {medians['pull'] / floor_s:5.2f}  (goal: at most 1)")
    print(f"pull / qemu-img convert    {medians['pull'] / medians['qemu-img convert']:5.2f}")
    print(f"offline / cp               {medians['offline'] / medians['cp, data once']:5.2f}")
    disk.unlink()
    data.unlink()
    return medians["pull"] <= floor_s


def grow_in_size(directory: Path, *, gib_steps: Sequence[int], run_count: int) -> bool:
    """Disks of rising size, empty and with 64 MiB of data; whether the goal is met."""
    is_met = True
    vma = directory / "a.vma"
    for size_gib in gib_steps:
        for data_bytes in (0, 64 * MIB):
            path = directory / "sparse.raw"
            make_disk(path, size_gib * GIB, data_bytes)
            with serving(directory, [path]) as origins:
                costs = [pull(origins, vma) for _ in range(run_count)]
            wall_s = statistics.median(cost.wall_s for cost in costs)
            peak_mib = max(cost.peak_mib for cost in costs)
            print(
                f"{size_gib:3} GiB, {data_bytes // MIB:2} MiB of data  {wall_s:7.3f} s"
                f"  peak {peak_mib:4.0f} MiB"
            )
            if not data_bytes and wall_s > EMPTY_S_MAX * max(size_gib / 64, 1):
                is_met = False
            path.unlink()
    print(f"goal: 64 GiB of nothing within {EMPTY_S_MAX:g} s")
    return is_met


def grow_in_number(directory: Path, *, total_bytes: int, run_count: int) -> bool:
    """The same amount of data on 1, 4 and 16 disks; whether memory stays within bounds."""
    is_met = True
    for count in (1, 4, 16):
        paths = [directory / f"disk{index}.raw" for index in range(count)]
        for path in paths:
            make_disk(path, total_bytes * 2 // count, total_bytes // count)
        with serving(directory, paths) as origins:
            costs = [pull(origins, directory / "a.vma") for _ in range(run_count)]
        wall_s = statistics.median(cost.wall_s for cost in costs)
        peak_mib = max(cost.peak_mib for cost in costs)
        is_met &= peak_mib <= PEAK_MIB_MAX
        print(
            f"{count:2} disks, {total_bytes // MIB} MiB of data  {wall_s:7.3f} s"
            f"  peak {peak_mib:4.0f} MiB"
        )
        for path in paths:
            path.unlink()
    print(f"goal: at most {PEAK_MIB_MAX} MiB of memory")
    return is_met


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the data, fewer runs")
    parser.add_argument("--runs", type=int, default=None)
    parser.add_argument("--directory", default=None, help="where the files go")
    options = parser.parse_args()
    run_count = options.runs or (3 if options.quick else 5)
    few_count = 1 if options.quick else 3
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        print(f"NOT measured, not installed: {', '.join(missing)}")
        return 1
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} processors, load {load:.1f}")
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="pull-") as name:
        directory = Path(name)
        met = [
            compare(directory, unit_bytes=GIB // (4 if options.quick else 1), run_count=run_count),
            grow_in_size(
                directory,
                gib_steps=(1, 64) if options.quick else (1, 4, 16, 64),
                run_count=few_count,
            ),
            grow_in_number(
                directory, total_bytes=(256 if options.quick else 1024) * MIB, run_count=few_count
            ),
        ]
    return 0 if all(met) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        pull_here(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main())
