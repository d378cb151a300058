"""What a backup costs the guest: its synced writes alone, and while a slow target takes them.

A real guest on a real QEMU writes 64 KiB with fsync in a loop to the disk that is backed up, to
clusters that it did not touch since the backup began: each write has its old data copied away
first, the dearest case. One guest pauses for 20 ms after each write, as busy as the one of which a
record exists; the other does not pause at all, and so shows what the copying takes.

The archive goes to standard output, read at 5 MB/s. Each round measures the guest alone, then
during the backup, on the guest's own clock; printed are the medians of the rounds and of each
round's ratio. The disk is opened as the lab does it: fsync reaches the host's. The guest without
pause needs a large disk, whose reading takes processor time as well.

With --patched-qemu the same is measured with that QEMU's own backup job; without, what was
recorded of it once is printed beside, and named so.

Needs what `integration/guest.py` needs to build a guest, or VZDUMP_QEMU_BUILT_GUEST.

    python benchmarks/guest_impact.py [--quick] [--rounds 5] [--directory /var/tmp]

Goals of a pull, for the guest that pauses: at least 85 % of the writes per second, p99 within
3 times that of idle, and no write fails.
"""

from __future__ import annotations

import argparse
import gzip
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from integration.guest import BUSYBOX, GuestFiles, NoGuest, build_guest  # noqa: E402
from vzdump_qemu.units import MIB  # noqa: E402

RATE_SHARE_MIN = 0.85
P99_FACTOR_MAX = 3.0
TARGET_BYTES_PER_S = 5_000_000
PIECE_BYTES = 64 * 1024
BOOT_LIMIT_S = 180.0
BACKUP_LIMIT_S = 600.0
STOCK_QEMU = "qemu-system-x86_64"
RECORDED = (
    "patched QEMU's own job, recorded earlier and NOT measured now (give --patched-qemu PATH): "
    "41 -> 1.7 writes/s, longest write 1.5 s"
)
TOOL = [sys.executable, "-m", "vzdump_qemu"]
_WRITES = re.compile(r"^W (\d+)((?: \d+)+)\r?$", re.MULTILINE)
_VMID = 100

# Prints, about four times a second, how many microseconds passed and how long each write took.
WRITER = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 65536, LINE_US = 250000 };

static long now_us(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000L + now.tv_nsec / 1000;
}

int main(int argc, char **argv)
{
	static char data[PIECE] __attribute__((aligned(4096)));
	int fd = open(argv[1], O_WRONLY);
	long first = atol(argv[2]), count = atol(argv[3]), pause_us = atol(argv[4]);
	long line_us = now_us();
	setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	for (long index = 0;; index++) {
		long before_us = now_us();
		if (pwrite(fd, data, PIECE, (first + index % count) * PIECE) != PIECE || fsync(fd)) {
			printf("\nWRITE FAILED: %s\n", strerror(errno));
			fflush(stdout);
			return 1;
		}
		long after_us = now_us();
		static char times[1 << 15];
		static int length;
		length += snprintf(times + length, 16, " %ld", after_us - before_us);
		if (after_us - line_us >= LINE_US || length > (1 << 15) - 64) {
			printf("W %ld%s\n", after_us - line_us, times);
			fflush(stdout);
			line_us = now_us();
			length = 0;
		}
		if (pause_us)
			usleep(pause_us);
	}
}
"""
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
for module in $(/bin/busybox cat /modules.wanted); do /bin/busybox modprobe $module; done
/bin/writer /dev/vda FIRST COUNT PAUSE
while :; do /bin/busybox sleep 60; done
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Noise that the slow target has to take, and then zeroes that the guest overwrites by zeroes.

    They lie on the host's disk as data, so old ones are copied away like any other; in the archive
    they take no room, so there may be more of them than the guest overwrites meanwhile.
    """

    noise_bytes: int
    zero_bytes: int
    pause_us: int

    @property
    def disk_bytes(self) -> int:
        return self.noise_bytes + self.zero_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Impact:
    """What the guest's writes were like for a while, and what it cost the host."""

    write_us: Sequence[int]
    guest_us: int
    qemu_cpu_s: float
    tool_cpu_s: float
    load: float

    @property
    def writes_per_s(self) -> float:
        return len(self.write_us) * 1e6 / self.guest_us

    def percentile_ms(self, share: float) -> float:
        ordered = sorted(self.write_us)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)] / 1000

    @property
    def longest_ms(self) -> float:
        return max(self.write_us) / 1000


class Guest:
    """One lab with one running VM whose guest does nothing but write."""

    def __init__(self, root: Path, qemu: str, files: GuestFiles, shape: Shape) -> None:
        self.root = root
        self.console = root / "console"
        tool(
            "lab", "create", root, "--vm", _VMID, "--qemu", qemu, "--no-agent",
            "--disk", f"virtio0={shape.disk_bytes // MIB}M",
        )  # fmt: skip
        fill(root / f"var/lib/vz/images/{_VMID}/vm-{_VMID}-disk-0.raw", shape)
        config = root / f"etc/pve/qemu-server/{_VMID}.conf"
        text = config.read_text().replace("memory: 64", "memory: 192")
        config.write_text(f"{text}args: {files.arguments(self.console)}\n")
        tool("lab", "start", root, _VMID)
        self._qemu_pid = int((root / f"var/run/qemu-server/{_VMID}.pid").read_text())
        deadline_s = time.monotonic() + BOOT_LIMIT_S
        while "\nW " not in self.told():
            if time.monotonic() > deadline_s:
                raise SystemExit(f"the guest did not write:\n{self.told()[-2000:]}")
            time.sleep(0.1)

    def told(self) -> str:
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def idle(self, length_s: float) -> Impact:
        """The guest alone."""
        with self._watched() as begin:
            time.sleep(length_s)
        return self._since(begin, tool_cpu_s=0.0)

    def during_backup(self, *words: str) -> Impact:
        """The guest while a backup runs into the slow target."""
        command = [*TOOL, "--root", self.root, _VMID, "--stdout", "1", *words]
        log = self.root / "log"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with log.open("wb") as errors, self._watched() as begin:
            process = subprocess.Popen(
                [str(word) for word in command], stdout=subprocess.PIPE, stderr=errors
            )
            taken_bytes = take_slowly(process)
            # The disk is released after the last byte: that belongs to the backup too.
            code = process.wait()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if code or not taken_bytes:
            raise SystemExit(f"the backup failed:\n{log.read_text(errors='replace')[-4000:]}")
        spent_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return self._since(begin, tool_cpu_s=spent_s)

    @contextmanager
    def _watched(self) -> Iterator[tuple[int, float]]:
        yield len(self.told()), self._qemu_cpu_s()
        # What was being written when it ended is told a little later.
        time.sleep(0.3)

    def _since(self, begin: tuple[int, float], *, tool_cpu_s: float) -> Impact:
        told = self.told()
        if "WRITE FAILED" in told:
            raise SystemExit(f"a write of the guest FAILED:\n{told[-2000:]}")
        lines = _WRITES.findall(told[begin[0] :])
        if not lines:
            raise SystemExit("the guest wrote nothing")
        return Impact(
            write_us=[int(word) for _, words in lines for word in words.split()],
            guest_us=sum(int(passed) for passed, _ in lines),
            qemu_cpu_s=self._qemu_cpu_s() - begin[1],
            tool_cpu_s=tool_cpu_s,
            load=os.getloadavg()[0],
        )

    def _qemu_cpu_s(self) -> float:
        fields = Path(f"/proc/{self._qemu_pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def take_slowly(process: subprocess.Popen[bytes]) -> int:
    """Read a process's output at the target's speed; how many bytes there were."""
    assert process.stdout is not None
    begin_s, taken_bytes = 0.0, 0
    deadline_s = time.monotonic() + BACKUP_LIMIT_S
    while piece := process.stdout.read(PIECE_BYTES):
        begin_s = begin_s or time.monotonic()
        taken_bytes += len(piece)
        time.sleep(max(begin_s + taken_bytes / TARGET_BYTES_PER_S - time.monotonic(), 0))
        if time.monotonic() > deadline_s:
            process.kill()
    return taken_bytes


def tool(*words: object) -> None:
    done = subprocess.run(
        [*TOOL, *map(str, words)], check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        raise SystemExit(f"{words[:2]} failed:\n{done.stdout.decode(errors='replace')}")


def fill(path: Path, shape: Shape) -> None:
    """No holes: each write of the guest costs the same."""
    noise = random.Random(1)
    with path.open("r+b") as file:
        for _ in range(shape.noise_bytes // MIB):
            file.write(noise.randbytes(MIB))
        for _ in range(shape.zero_bytes // MIB):
            file.write(bytes(MIB))
        os.fsync(file.fileno())


def add_writer(directory: Path, files: GuestFiles, shape: Shape) -> GuestFiles:
    """The integration tests' guest, whose first process only writes."""
    tree = directory / f"writing-{shape.pause_us}"
    (tree / "bin").mkdir(parents=True)
    source = tree / "writer.c"
    source.write_text(WRITER)
    subprocess.run(
        ["cc", "-O2", "-static", "-o", str(tree / "bin/writer"), str(source)], check=True
    )
    init = tree / "init"
    text = INIT.replace("FIRST", str(shape.noise_bytes // PIECE_BYTES))
    text = text.replace("COUNT", str(shape.zero_bytes // PIECE_BYTES))
    init.write_text(text.replace("PAUSE", str(shape.pause_us)))
    init.chmod(0o755)
    packed = subprocess.run(
        [BUSYBOX, "cpio", "-o", "-H", "newc"],
        input=b"init\nbin/writer\n", cwd=tree, check=True, capture_output=True,
    ).stdout  # fmt: skip
    initramfs = tree.with_suffix(".gz")
    # What comes later in an initramfs replaces what came before.
    initramfs.write_bytes(files.initramfs.read_bytes() + gzip.compress(packed, compresslevel=1))
    return GuestFiles(kernel=files.kernel, initramfs=initramfs, scribe=files.scribe)


def tell(name: str, impacts: Sequence[Impact]) -> None:
    """One line: medians of the rounds, and the longest write of all."""

    def median(values: Iterator[float]) -> float:
        return statistics.median(values)

    print(
        f"{name:14} {median(one.writes_per_s for one in impacts):7.1f} writes/s"
        f"  p50 {median(one.percentile_ms(0.5) for one in impacts):7.1f} ms"
        f"  p99 {median(one.percentile_ms(0.99) for one in impacts):7.1f} ms"
        f"  max {median(one.longest_ms for one in impacts):7.1f} ms"
        f" (of all {max(one.longest_ms for one in impacts):.1f})"
        f"  CPU QEMU {median(one.qemu_cpu_s for one in impacts):.1f} s"
        f" tool {median(one.tool_cpu_s for one in impacts):.1f} s"
        f"  load {median(one.load for one in impacts):.1f}",
        flush=True,
    )


def compete(
    guest: Guest, words: Sequence[str], shape: Shape, *, round_count: int, idle_s: float
) -> bool:
    """Idle and backup in turn; whether the goals are met."""
    idle, busy = [], []
    # One that nobody counts: caches fill, the image's blocks are placed.
    guest.during_backup(*words)
    for _ in range(round_count):
        idle.append(guest.idle(idle_s))
        busy.append(guest.during_backup(*words))
    tell("idle", idle)
    tell("during backup", busy)
    pairs = list(zip(idle, busy, strict=True))
    share = statistics.median(after.writes_per_s / before.writes_per_s for before, after in pairs)
    p99_factor = statistics.median(
        after.percentile_ms(0.99) / before.percentile_ms(0.99) for before, after in pairs
    )
    goals = ("no goal", "no goal")
    if shape.pause_us:
        goals = (f"goal: at least {RATE_SHARE_MIN}", f"goal: at most {P99_FACTOR_MAX:g}")
    print(f"writes/s, backup / idle  {share:5.2f}  ({goals[0]})")
    print(f"p99, backup / idle       {p99_factor:5.2f}  ({goals[1]})")
    print("failed writes            none", flush=True)
    if max(len(one.write_us) for one in busy) > shape.zero_bytes // PIECE_BYTES:
        print("the guest went round its disk: later writes had nothing to copy away", flush=True)
    return share >= RATE_SHARE_MIN and p99_factor <= P99_FACTOR_MAX


def measure(
    directory: Path, qemu: str, files: GuestFiles, shape: Shape, options: argparse.Namespace
) -> bool:
    """Idle against backup with this QEMU, in a lab of its own; whether the goals are met."""
    root = directory / "lab"
    words = ("--data-path", "pull" if qemu == STOCK_QEMU else "native")
    try:
        guest = Guest(root, qemu, files, shape)
        return compete(guest, words, shape, round_count=options.rounds, idle_s=options.idle_s)
    finally:
        if root.exists():
            tool("lab", "destroy", root)
            shutil.rmtree(root, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller disk, shorter rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patched-qemu", metavar="PATH", help="one that has a backup job")
    parser.add_argument("--directory", default=None, help="where the lab goes")
    options = parser.parse_args()
    options.idle_s = 4.0 if options.quick else 10.0
    noise_bytes = (24 if options.quick else 64) * MIB
    pausing = Shape(noise_bytes=noise_bytes, zero_bytes=64 * MIB, pause_us=20_000)
    zero_bytes = (1024 if options.quick else 2048) * MIB
    endless = Shape(noise_bytes=noise_bytes, zero_bytes=zero_bytes, pause_us=0)
    if shutil.which(STOCK_QEMU) is None:
        print(f"NOT measured, not installed: {STOCK_QEMU}")
        return 1
    print(
        f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}; {options.rounds} rounds, "
        f"{noise_bytes // MIB} MiB of noise, target {TARGET_BYTES_PER_S / 1e6:g} MB/s"
    )
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="impact-") as name:
        directory = Path(name)
        try:
            built = build_guest(directory)
        except NoGuest as error:
            print(f"NOT measured, no guest: {error}")
            return 1
        is_met = True
        for shape in (pausing, endless):
            files = add_writer(directory, built, shape)
            guest_name = "a guest that pauses" if shape.pause_us else "a guest without pause"
            print(f"pull, stock QEMU, {guest_name}", flush=True)
            is_good = measure(directory, STOCK_QEMU, files, shape, options)
            is_met &= is_good or not shape.pause_us
            if options.patched_qemu:
                print(f"own job, patched QEMU, {guest_name}", flush=True)
                # For comparison: no goal of ours.
                measure(directory, options.patched_qemu, files, shape, options)
        if not options.patched_qemu:
            print(RECORDED)
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
