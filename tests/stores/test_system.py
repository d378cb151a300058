"""The host's own clock, ids, processors and threads."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest

from vzdump_qemu.stores.system import (
    SystemClock,
    SystemIds,
    cpu_count,
    run_blocking,
    start_thread,
    wait_done,
)

WAIT_S = 20.0


def test_cpu_count_counts_processor_entries_only(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(
        "processor\t: 0\nmodel name\t: processor\nprocessor\t: 1\n\nprocessor: 2\nprocessors: 9\n"
    )
    assert cpu_count(str(path)) == 3


def test_cpu_count_without_the_list_is_one(tmp_path: Path) -> None:
    assert cpu_count(str(tmp_path / "missing")) == 1
    (tmp_path / "empty").touch()
    assert cpu_count(str(tmp_path / "empty")) == 1


def test_clock_local_time_has_no_zone_and_matches_the_wall() -> None:
    clock = SystemClock()
    moment = clock.local_time(1_700_000_000.0)
    assert moment.tzinfo is None
    assert moment.timestamp() == 1_700_000_000.0


async def test_clock_sleep_moves_the_monotonic_clock() -> None:
    clock = SystemClock()
    before_ns = clock.now_ns()
    await clock.sleep(0.001)
    assert clock.now_ns() - before_ns >= 1_000_000
    assert clock.wall_s() > 1_700_000_000


def test_ids_are_fresh_lower_case_uuids() -> None:
    ids = SystemIds()
    first, second = ids.uuid(), ids.uuid()
    assert first != second
    assert first == str(uuid.UUID(first))
    assert ids.process_id() == os.getpid()


async def test_run_blocking_returns_and_raises() -> None:
    assert await run_blocking(lambda: 5) == 5
    with pytest.raises(FileNotFoundError):
        await run_blocking(lambda: os.stat("/nonexistent"))


async def test_wait_done_cancelled_leaves_the_thread_alone() -> None:
    gate = threading.Event()
    future = start_thread(lambda: gate.wait(WAIT_S), name="gated")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wait_done(future), 0.01)
    gate.set()
    await wait_done(future)
    assert future.result() is True


def test_blocking_call_that_never_returns_does_not_keep_the_process() -> None:
    script = (
        "import asyncio, threading\n"
        "from vzdump_qemu.stores.system import run_blocking\n"
        "async def main():\n"
        "    stuck = run_blocking(threading.Event().wait)\n"
        "    await asyncio.wait_for(stuck, 0.05)\n"
        "try:\n"
        "    asyncio.run(main())\n"
        "except TimeoutError:\n"
        "    print('ended')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=WAIT_S, check=True
    )
    assert done.stdout == "ended\n"
