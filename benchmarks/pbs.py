"""How fast our client backs up to a server, and restores, beside hashing and compressing alone.

The floor is SHA-256 and zstd level 1 of the same data in as many threads on the same processors,
without any network. The server is the simulator's, on this machine; it hashes, decompresses and
sums what it is sent as a real one does, which costs about as much as the floor and is not the
client's work. So everything is measured twice:

apart     client and floor have half of the processors, the server has the other half: what the
          client comes to whose server is another machine. Neither can take time from the other,
          so these are the figures to be judged by, wall time and processor time alike.
together  client, server and floor have all processors. Where they are few, the wall time counts
          the server's work too; ``busy`` tells whether any processor had nothing to do.

Medians of interleaved runs. Ratios are floor to client: of wall time, and of processor time.
``server`` is the server's processor time, ``busy`` the processors that both kept busy together,
``peak`` the client's largest memory. Another load on the machine shows in wall times first.
Run: ``python benchmarks/pbs.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import zstandard

from vzdump_qemu.disk_ports import DiskOrigin
from vzdump_qemu.formats.pbs import (
    BackupGroup,
    BackupRef,
    BackupType,
    EncryptionKey,
    Fingerprint,
    Namespace,
    Repository,
)
from vzdump_qemu.formats.pbs.repository import AuthId
from vzdump_qemu.stores.pbs import (
    BackupKey,
    BackupReader,
    PbsDisk,
    PbsEndpoint,
    PbsUploader,
    Secret,
    TlsTrust,
    make_login,
)
from vzdump_qemu.stores.raw_disk import RawDisk
from vzdump_qemu.stores.system import SystemClock

MIB = 1 << 20
CHUNK = 4 * MIB
RATIO_MIN = 0.7
RSS_MIB_MAX = 300
GROUP = BackupGroup(backup_type=BackupType.VM, backup_id="100")
INDEX_NAME = "drive-scsi0.img.fidx"
Figures = dict[str, float]
SECRET = "5e7c9d1a-0000-4000-8000-00000000b4c6"  # the simulator's default token


def make_disk(path: Path, size_mib: int) -> None:
    """Half of it does not compress, half of it compresses to about a third; no chunk twice."""
    chance = random.Random(1)
    words = [chance.randbytes(6).hex().encode() for _ in range(4096)]
    with path.open("wb") as disk:
        for number in range(size_mib // 4):
            if number % 2:
                disk.write(chance.randbytes(CHUNK))
            else:
                text = b" ".join(chance.choices(words, k=CHUNK // 13 + 1))
                disk.write(text[:CHUNK])


def floor_run(path: Path, thread_count: int) -> None:
    """Hash and compress every chunk in threads, and keep nothing."""
    numbers = iter(range(path.stat().st_size // CHUNK))
    lock = threading.Lock()

    def work() -> None:
        compressor = zstandard.ZstdCompressor(level=1)
        with path.open("rb", buffering=0) as disk:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                content = os.pread(disk.fileno(), CHUNK, number * CHUNK)
                hashlib.sha256(content).digest()
                compressor.compress(content)

    threads = [threading.Thread(target=work) for _ in range(thread_count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def connect(options: argparse.Namespace) -> PbsEndpoint:
    auth_id = AuthId.parse("root@pam!vzdump")
    clock = SystemClock()
    return PbsEndpoint(
        Repository(datastore="tank", host="127.0.0.1", port=options.port, auth_id=auth_id),
        trust=TlsTrust(fingerprint=Fingerprint.parse(options.fingerprint)),
        login=make_login(auth_id, Secret(SECRET), clock),
        clock=clock,
    )


def backup_ref(options: argparse.Namespace) -> BackupRef:
    return BackupRef(backup_group=GROUP, backup_time_s=1_700_000_000 + options.number)


def bench_key(options: argparse.Namespace) -> BackupKey | None:
    return BackupKey(key=EncryptionKey(bytes([options.number] * 32))) if options.encrypt else None


async def upload(options: argparse.Namespace) -> None:
    size_bytes = options.disk.stat().st_size
    uploader = PbsUploader(
        connect(options), clock=SystemClock(), open_nbd=RawDisk, thread_count=options.threads
    )
    opened = await uploader.open(
        backup_ref(options),
        [PbsDisk(device_id="drive-scsi0", size_bytes=size_bytes)],
        configs=(("qemu-server.conf", b"name: bench\n"),),
        key=bench_key(options),
    )
    transfer = await opened.begin(
        [DiskOrigin(device_id="drive-scsi0", size_bytes=size_bytes, file_path=str(options.disk))]
    )
    await transfer.finish()
    await opened.finish()


async def restore(options: argparse.Namespace) -> None:
    key = bench_key(options)
    reader = await BackupReader.open(
        connect(options), Namespace(), backup_ref(options), key=None if key is None else key.key
    )
    with options.target.open("wb") as target:
        target.truncate(options.disk.stat().st_size)
        await reader.restore_disk(
            INDEX_NAME, target.fileno(), is_zeroed=True, thread_count=options.threads
        )
    await reader.close()


async def serve(thread_count: int) -> None:
    """A server until standard input ends; where it is goes to standard output."""
    from vzsim.fakepbs import Certificate, FakePbs, PbsConfig, PbsListener, PbsSurroundings

    workers = ThreadPoolExecutor(thread_count)

    async def offload(function: Callable[..., object], *arguments: object) -> object:
        return await asyncio.get_running_loop().run_in_executor(workers, function, *arguments)

    pbs = FakePbs(
        PbsConfig(),
        PbsSurroundings(now_s=time.time, chance=os.urandom, offload=offload),  # type: ignore[arg-type]
    )
    listener = PbsListener(pbs, Certificate.make(time.time()))
    port = await listener.start()
    print(json.dumps({"port": port, "fingerprint": str(listener.fingerprint)}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await listener.close()


def child(options: argparse.Namespace) -> None:
    """One measured act in this process; seconds and peak memory go to standard output."""
    import vzdump_qemu.formats.pbs.encryption_key  # noqa: F401 - loaded before the clock starts

    begin, begin_cpu = time.perf_counter(), time.process_time()
    match options.act:
        case "floor":
            floor_run(options.disk, options.threads)
        case "up":
            asyncio.run(upload(options))
        case "down":
            asyncio.run(restore(options))
    seconds = time.perf_counter() - begin
    cpu_s = time.process_time() - begin_cpu
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "s": seconds,
                "rss_mib": usage.ru_maxrss / 1024,
                "cpu_s": cpu_s,
            }
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which processors the client (and the floor) has, and which the server."""

    name: str
    client: tuple[int, ...]
    server: tuple[int, ...]


def layouts() -> list[Layout]:
    every = tuple(sorted(os.sched_getaffinity(0)))
    half = len(every) // 2
    found = [Layout(name="together", client=every, server=every)]
    if half:
        found.insert(0, Layout(name="apart", client=every[:half], server=every[half:]))
    return found


def own_command(act: str, cpus: tuple[int, ...], *arguments: str) -> list[str]:
    return [
        sys.executable, __file__, "--act", act, "--cpus", ",".join(map(str, cpus)), *arguments,
    ]  # fmt: skip


@contextmanager
def server_running(layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """A server of its own for each run: what it has is known. Its process, and where it is."""
    command = own_command("serve", layout.server, "--threads", str(len(layout.server)))
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin and server.stdout
        place = json.loads(server.stdout.readline())
        yield server.pid, ["--port", str(place["port"]), "--fingerprint", place["fingerprint"]]
        server.stdin.close()


def processor_s(process_id: int) -> float:
    """What a process has used so far, in user and system mode."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_once(options: argparse.Namespace, layout: Layout, number: int) -> dict[str, Figures]:
    found: dict[str, Figures] = {}
    with server_running(layout) as (server_id, place):
        arguments = [
            *place, "--disk", str(options.disk), "--target", str(options.target),
            "--number", str(number), "--threads", str(options.threads or len(layout.client)),
            *(["--encrypt"] if options.encrypt else []),
        ]  # fmt: skip
        for act in ("floor", "up", "down"):
            # Giving back the memory of an old target is no part of a restore.
            options.target.unlink(missing_ok=True)
            begin_s = processor_s(server_id)
            done = subprocess.run(
                own_command(act, layout.client, *arguments),
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            found[act] = json.loads(done.stdout)
            found[act]["server_s"] = processor_s(server_id) - begin_s
    subprocess.run(["cmp", str(options.disk), str(options.target)], check=True)
    return found


def report(options: argparse.Namespace, layout: Layout, runs: list[dict[str, Figures]]) -> bool:
    """Print a layout's figures; whether they are as required."""
    thread_count = options.threads or len(layout.client)
    print(
        f"{layout.name}: client on {len(layout.client)} of {os.cpu_count()} processors in "
        f"{thread_count} threads, server on {len(layout.server)}"
    )
    middle = {
        act: {name: statistics.median(run[act][name] for run in runs) for name in runs[0][act]}
        for act in runs[0]
    }
    floor = middle["floor"]
    is_good = True
    for act, figures in middle.items():
        wall_ratio = floor["s"] / figures["s"]
        cpu_ratio = floor["cpu_s"] / figures["cpu_s"]
        busy = (figures["cpu_s"] + figures["server_s"]) / figures["s"]
        rss_mib = max(run[act]["rss_mib"] for run in runs)
        print(
            f"  {act:6} {figures['s']:6.2f} s {options.size_mib / figures['s']:6.0f} MiB/s  "
            f"ratio {wall_ratio:4.2f}  processor {figures['cpu_s']:5.2f} s, ratio "
            f"{cpu_ratio:4.2f}  server {figures['server_s']:5.2f} s  busy {busy:4.2f}  "
            f"peak {rss_mib:4.0f} MiB"
        )
        if act != "floor":
            is_fast = min(wall_ratio, cpu_ratio) >= RATIO_MIN or layout.name == "together"
            is_good = is_good and is_fast and rss_mib <= RSS_MIB_MAX
    return is_good


def measure(options: argparse.Namespace, directory: Path) -> bool:
    options.disk, options.target = directory / "disk.raw", directory / "restored.raw"
    make_disk(options.disk, options.size_mib)
    found: dict[Layout, list[dict[str, Figures]]] = {layout: [] for layout in layouts()}
    for number in range(1, options.runs + 1):
        for layout, runs in found.items():
            runs.append(measure_once(options, layout, number))
    print(f"{options.size_mib} MiB, {options.runs} runs, load {os.getloadavg()[0]:.1f}")
    are_good = [report(options, layout, runs) for layout, runs in found.items()]
    is_good = all(are_good)
    print("as required" if is_good else f"NOT {RATIO_MIN} of the floor in {RSS_MIB_MAX} MiB")
    return is_good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="default: one per processor")
    parser.add_argument("--encrypt", action="store_true")
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"))
    for hidden in ("act", "fingerprint", "cpus"):
        parser.add_argument(f"--{hidden}", help=argparse.SUPPRESS)
    for hidden in ("port", "number"):
        parser.add_argument(f"--{hidden}", type=int, default=0, help=argparse.SUPPRESS)
    for hidden in ("disk", "target"):
        parser.add_argument(f"--{hidden}", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in options.cpus.split(",")})
    if options.act == "serve":
        asyncio.run(serve(options.threads))
        return 0
    if options.act:
        child(options)
        return 0
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        return 0 if measure(options, Path(directory)) else 1


if __name__ == "__main__":
    sys.exit(main())
