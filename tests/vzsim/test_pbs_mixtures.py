"""Backups, cancels and failing servers in any mixture: what is called done is the point in time."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.vzsim.pbs_bench import CHUNK, PbsBench
from vzdump_qemu.errors import QmpCommandError
from vzsim.fakepbs import Fault, FaultKind
from vzsim.fakeqmp.guest import Guest
from vzsim.fakeqmp.script import BackupRules, GuestRules, Script
from vzsim.kernel import run_simulated

pytestmark = pytest.mark.slow

_ENDPOINTS = (
    "POST /fixed_chunk", "PUT /fixed_index", "POST /fixed_close", "POST /blob", "POST /finish",
)  # fmt: skip
_KINDS = (FaultKind.REPLY, FaultKind.RESET, FaultKind.GOAWAY, FaultKind.HANG)
_BACKUP_COUNT = 6


@pytest.mark.parametrize("seed", range(6))
def test_every_backup_called_done_is_the_point_in_time(seed: int) -> None:
    async def run() -> int:
        stream = random.Random(seed)
        rules = Script(
            guest=GuestRules(
                writes_per_s=4.0, write_bytes=30_000, seed=seed, keep_point_in_time="kept"
            ),
            backup=BackupRules(bytes_per_s=stream.choice([0, CHUNK, 40 * CHUNK])),
        )
        bench = PbsBench(chunk_counts=(3, 2), rules=rules)
        Guest(bench.machine).start()
        return sum([await _back_up_somehow(bench, stream) for _ in range(_BACKUP_COUNT)])

    assert run_simulated(run(), shuffle=random.Random(seed)) > 0


async def _back_up_somehow(bench: PbsBench, stream: random.Random) -> bool:
    """One backup that may be spoiled; whether it is called done, which is then proved."""
    number, is_cancelled = bench.backup_count, stream.random() < 0.25
    if stream.random() < 0.25:
        fault = Fault(
            kind=stream.choice(_KINDS),
            endpoint=stream.choice(_ENDPOINTS),
            first=stream.randint(1, 3),
        )
        bench.pbs.faults.add(fault)
    try:
        await bench.begin(use_dirty_bitmap=stream.random() < 0.85, max_workers=stream.randint(1, 4))
        kept = [bench.host.kept_disks[f"kept/drive-scsi{index}.raw"] for index in range(2)]
        if is_cancelled:
            await asyncio.sleep(0.3 * stream.random())
            if (await bench.ask("query-backup"))["status"] == "active":
                await bench.ask("backup-cancel")
        status = await bench.until(lambda status: status["status"] != "active", poll_s=0.5)
    except QmpCommandError:
        status = {"status": "error"}
    bench.pbs.faults.heal()
    is_done = bool(status["status"] == "done")
    assert (number in await bench.backup_times()) is is_done
    if is_done:
        for index, content in enumerate(kept):
            assert bench.disk(number, disk_index=index) == content
    return is_done
