"""Kills backups of a writing guest, again and again, at moments drawn by a seed.

Owns the killing and what must hold after each kill; the test kills a few times, the command as
often as it is told to.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from integration.scenario import LIMIT_S, SLOW, WritingGuest, wait_until

# A backup of this guest takes about that long.
LATEST_KILL_S = 4.0
# On a machine with nothing else to do. Emulation on shared CPUs is several times slower.
THAWED_WITHIN_S = 1.0


@dataclass(frozen=True)
class Kill:
    """One kill: how long after the start, and when the guest had written again."""

    moment_s: float
    writing_again_s: float
    was_in_time: bool


def kill_backups(
    guest: WritingGuest,
    *,
    count: int,
    seed: int,
    tell: Callable[[str], None],
    thawed_within_s: float = THAWED_WITHIN_S,
) -> list[Kill]:
    """Kill `count` backups; after each one everything is put back, and a backup succeeds."""
    draw = random.Random(seed)
    kills = []
    for _ in range(count):
        kill = _kill_one(guest, draw.uniform(0.3, LATEST_KILL_S))
        tell(
            f"killed at {kill.moment_s:.2f} s, "
            f"the guest wrote again after {kill.writing_again_s:.2f} s"
        )
        assert kill.writing_again_s < thawed_within_s, kill
        kills.append(kill)
    return kills


def _kill_one(guest: WritingGuest, moment_s: float) -> Kill:
    process = _spawn(guest)
    try:
        process.wait(moment_s)
        was_in_time = False
    except subprocess.TimeoutExpired:
        was_in_time = True
    process.kill()
    killed_s, last = time.monotonic(), guest.last_round()
    process.wait()
    wait_until(lambda: guest.last_round() >= last + 2, "rounds after the kill")
    again_s = time.monotonic() - killed_s
    journals = guest.lab.root / "var/lib/vzdump-qemu"
    wait_until(lambda: not list(journals.glob("*.journal")), "the guardian's work")
    assert guest.run_state() == "running"
    guest.assert_let_go()
    guest.wait_writes()
    for archive in guest.archives():
        # Only one that had been proved whole may have its name.
        guest.lab.must("verify", archive)
        archive.unlink()
    backup = guest.backup()
    backup.judge(frozen=True)
    for archive in guest.archives():
        archive.unlink()
    subprocess.run(["rm", "-r", *guest.lab.dump.glob("*.extracted")], check=True)
    return Kill(moment_s=moment_s, writing_again_s=again_s, was_in_time=was_in_time)


def _spawn(guest: WritingGuest) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "vzdump_qemu", "--root", guest.lab.root, guest.vmid, *SLOW]
    return subprocess.Popen(
        [str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def wait_for_room(guest: WritingGuest, full_share: float = 0.7) -> None:
    """Boot anew with empty journals before they fill the disks."""
    written_bytes = guest.last_round() * 4096
    if written_bytes > full_share * min(disk.size_mib for disk in guest.disks) * (1 << 20):
        guest.destroy()
        guest.create()
        guest.start()
        wait_until(lambda: guest.last_round() > 0, "the new guest", limit_s=LIMIT_S)
