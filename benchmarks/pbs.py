"""How fast our client backs up to a server, and restores, beside hashing and compressing alone.

The floor is SHA-256 and zstd level 1 of the same data in as many threads, without any network. The
server is the simulator's, in a process of its own on this machine, so it takes its share of the
processors: with two of them it hashes and decompresses what the client has just compressed and
hashed. Processor times are printed for that reason: their ratio is what a client comes to whose
server is another machine. Prints medians of interleaved runs, ratios to the floor and the client's
peak memory. Run: ``python benchmarks/pbs.py``.
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
from collections.abc import Callable
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


async def serve() -> None:
    """A server until standard input ends; where it is goes to standard output."""
    from vzsim.fakepbs import Certificate, FakePbs, PbsConfig, PbsListener, PbsSurroundings

    async def offload(function: Callable[..., object], *arguments: object) -> object:
        return await asyncio.to_thread(function, *arguments)

    pbs = FakePbs(
        PbsConfig(),
        PbsSurroundings(now_s=time.time, chance=os.urandom, offload=offload),  # type: ignore[arg-type]
    )
    listener = PbsListener(pbs, Certificate.make(time.time()))
    port = await listener.start()
    print(json.dumps({"port": port, "fingerprint": str(listener.fingerprint)}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await listener.close()
    print(json.dumps({"cpu_s": time.process_time()}), flush=True)


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


def run_child(act: str, place: dict[str, object], arguments: list[str]) -> dict[str, float]:
    command = [
        sys.executable, __file__, "--act", act, "--port", str(place["port"]),
        "--fingerprint", str(place["fingerprint"]), *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def measure(options: argparse.Namespace, directory: Path) -> bool:
    disk, target = directory / "disk.raw", directory / "restored.raw"
    make_disk(disk, options.size_mib)
    command = [sys.executable, __file__, "--act", "serve"]
    found: dict[str, list[dict[str, float]]] = {"floor": [], "up": [], "down": []}
    for number in range(1, options.runs + 1):
        # A server of its own for each run: what it has is known, and its memory is its own.
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdin and server.stdout
            place = json.loads(server.stdout.readline())
            arguments = [
                "--disk", str(disk), "--target", str(target), "--number", str(number),
                "--threads", str(options.threads), *(["--encrypt"] if options.encrypt else []),
            ]  # fmt: skip
            for act, figures in found.items():
                figures.append(run_child(act, place, arguments))
            server.stdin.close()
            server_cpu_s = json.loads(server.stdout.readline())["cpu_s"]
        subprocess.run(["cmp", str(disk), str(target)], check=True)
    floor_s = statistics.median(one["s"] for one in found["floor"])
    print(
        f"{options.size_mib} MiB, {options.threads} threads, {os.cpu_count()} processors, "
        f"load {os.getloadavg()[0]:.1f}; server took {server_cpu_s:.1f} s of processor time"
    )
    floor_cpu_s = statistics.median(one["cpu_s"] for one in found["floor"])
    is_good = True
    for act, figures in found.items():
        seconds = statistics.median(one["s"] for one in figures)
        rss_mib = max(one["rss_mib"] for one in figures)
        ratio = floor_s / seconds
        cpu_s = statistics.median(one["cpu_s"] for one in figures)
        print(
            f"{act:6} {seconds:6.2f} s  {options.size_mib / seconds:6.0f} MiB/s  "
            f"ratio {ratio:4.2f}  {cpu_s:5.1f} s of processor time, ratio "
            f"{floor_cpu_s / cpu_s:4.2f}  peak {rss_mib:4.0f} MiB"
        )
        if act != "floor":
            is_good = is_good and ratio >= RATIO_MIN and rss_mib <= RSS_MIB_MAX
    print("as required" if is_good else f"NOT {RATIO_MIN} of the floor in {RSS_MIB_MAX} MiB")
    return is_good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mib", type=int, default=512)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=max(2, os.cpu_count() or 2))
    parser.add_argument("--encrypt", action="store_true")
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"))
    for hidden in ("act", "fingerprint"):
        parser.add_argument(f"--{hidden}", help=argparse.SUPPRESS)
    for hidden in ("port", "number"):
        parser.add_argument(f"--{hidden}", type=int, default=0, help=argparse.SUPPRESS)
    for hidden in ("disk", "target"):
        parser.add_argument(f"--{hidden}", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.act == "serve":
        asyncio.run(serve())
        return 0
    if options.act:
        child(options)
        return 0
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        return 0 if measure(options, Path(directory)) else 1


if __name__ == "__main__":
    sys.exit(main())
