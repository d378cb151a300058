"""Targets that are full or slow: the backup's trouble, not the guest's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.conftest import MakeGuest
from integration.scenario import WritingGuest, run

NOISE_BYTES = 16 << 20
SLOW_BYTES_PER_S = 2 << 20
PIECE_BYTES = 64 << 10
WATCHED_S = 8.0


@pytest.fixture(scope="module")
def guest(make_guest: MakeGuest) -> WritingGuest:
    """One guest with more data than the targets take."""
    guest = make_guest()
    guest.start()
    guest.ask(f"dd if=/dev/urandom of=/data0/noise bs=1M count={NOISE_BYTES >> 20}")
    return guest


@pytest.fixture
def small_target(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB."""
    if os.geteuid() != 0:
        pytest.skip("NOT covered: only root can mount a small file system")
    run("mount", "-t", "tmpfs", "-o", "size=6m", "small", tmp_path)
    yield tmp_path
    run("umount", tmp_path)


def test_full_target_fails_the_backup_and_keeps_nothing(
    guest: WritingGuest, small_target: Path
) -> None:
    with guest.backing_up("--dumpdir", small_target) as backup:
        backup.wait(255)
    assert "No space left on device" in backup.log, backup.log
    assert not list(small_target.glob("*.vma*"))
    guest.wait_writes()
    guest.assert_let_go()


def _rounds_per_s(guest: WritingGuest, watched_s: float) -> tuple[float, list[int]]:
    first, begin_s = len(guest.rounds()), time.monotonic()
    time.sleep(watched_s)
    rounds, end_s = guest.rounds()[first:], time.monotonic()
    return len(rounds) / (end_s - begin_s), sorted(us for _, us in rounds)


def _told(name: str, rate: float, sorted_us: list[int]) -> str:
    p50, p99 = (sorted_us[int(len(sorted_us) * share)] for share in (0.5, 0.99))
    longest = sorted_us[-1]
    return f"{name}: {rate:.1f} rounds/s; write p50 {p50} us, p99 {p99} us, longest {longest} us"


def test_slow_target_does_not_slow_the_guest(
    guest: WritingGuest, capsys: pytest.CaptureFixture[str]
) -> None:
    idle_rate, idle_us = _rounds_per_s(guest, WATCHED_S)
    words = [sys.executable, "-m", "vzdump_qemu", "--root", guest.lab.root, guest.vmid]
    process = subprocess.Popen(
        [str(word) for word in [*words, "--stdout", 1]],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    began_s, taken_bytes = time.monotonic(), 0
    first = 0
    while piece := process.stdout.read(PIECE_BYTES):
        if taken_bytes == 0:
            first, first_s = len(guest.rounds()), time.monotonic()
        taken_bytes += len(piece)
        ahead_s = taken_bytes / SLOW_BYTES_PER_S - (time.monotonic() - began_s)
        time.sleep(max(ahead_s, 0))
    rounds, end_s = guest.rounds()[first:], time.monotonic()
    assert process.wait() == 0
    assert taken_bytes > NOISE_BYTES
    busy_rate, busy_us = len(rounds) / (end_s - first_s), sorted(us for _, us in rounds)
    with capsys.disabled():
        print()
        print(_told("idle", idle_rate, idle_us))
        print(_told("target of 2 MiB/s", busy_rate, busy_us))
    # Copying old data away costs something, a target that cannot keep up must not.
    assert busy_rate > idle_rate / 2
    assert busy_us[-1] < 2_000_000
    guest.wait_writes()
    guest.assert_let_go()
