"""Dirty bitmaps of backups to a server: when they are relied on, and what a failure leaves."""

from __future__ import annotations

from typing import Any

import pytest

from tests.vzsim.pbs_bench import CHUNK, RAW_KEY, PbsBench, in_simulation, key_file
from vzdump_qemu.formats.pbs import EncryptionKey
from vzsim.fakepbs import Fault, FaultKind

pytestmark = pytest.mark.slow


def test_second_backup_with_bitmaps_sends_only_what_changed() -> None:
    async def run() -> None:
        bench = PbsBench(chunk_counts=(4, 2))
        await bench.back_up(use_dirty_bitmap=True)
        assert await bench.ask("query-pbs-bitmap-info") == [
            {"drive": "drive-scsi0", "action": "new", "size": 4 * CHUNK, "dirty": 4 * CHUNK},
            {"drive": "drive-scsi1", "action": "new", "size": 2 * CHUNK, "dirty": 2 * CHUNK},
        ]
        bench.write(2 * CHUNK + 9, b"changed")
        bench.pbs.counters.reset()
        bench.said.clear()
        status = await bench.back_up(use_dirty_bitmap=True)
        assert await bench.ask("query-pbs-bitmap-info") == [
            {"drive": "drive-scsi0", "action": "used", "size": 4 * CHUNK, "dirty": CHUNK},
            {"drive": "drive-scsi1", "action": "used", "size": 2 * CHUNK, "dirty": 0},
        ]
        assert status["status"] == "done"
        assert (status["total"], status["dirty"]) == (6 * CHUNK, CHUNK)
        assert (status["transferred"], status["reused"]) == (CHUNK, 5 * CHUNK)
        counters = bench.pbs.counters
        # Each disk's chunk of zeroes is always sent, and there already.
        assert counters.received_chunk_count - counters.duplicate_chunk_count == 1
        assert counters.appended_chunk_count == 1
        ends = [said["data"] for said in bench.said if said.get("event") == "BLOCK_JOB_COMPLETED"]
        assert [(end["device"], end["len"], end["offset"]) for end in ends] == [
            ("drive-scsi1", 0, 0),
            ("drive-scsi0", CHUNK, CHUNK),
        ]
        for index, disk in enumerate(bench.disks):
            assert bench.disk(1, disk_index=index) == bytes(disk.content())

    in_simulation(run())


def test_writes_during_a_backup_are_the_next_ones_changes() -> None:
    async def run() -> None:
        bench = PbsBench(chunk_counts=(4,))
        await bench.begin(use_dirty_bitmap=True, speed=4 * CHUNK)
        shown = (await bench.ask("query-block"))[0]["inserted"]["dirty-bitmaps"][0]
        assert (shown["name"], shown["busy"]) == ("pbs-incremental-dirty-bitmap", True)
        bench.write(3 * CHUNK, b"not saved yet")
        bench.write(0, b"saved perhaps")
        await bench.end()
        shown = (await bench.ask("query-block"))[0]["inserted"]["dirty-bitmaps"][0]
        assert (shown["granularity"], shown["count"], shown["busy"]) == (CHUNK, 2 * CHUNK, False)
        status = await bench.back_up(use_dirty_bitmap=True)
        assert (await bench.bitmap_actions(), status["dirty"]) == (["used"], 2 * CHUNK)
        assert bench.disk(1) == bytes(bench.disks[0].content())

    in_simulation(run())


def test_backup_without_bitmap_removes_it() -> None:
    async def run() -> None:
        bench = PbsBench(chunk_counts=(1,))
        found = []
        for uses in (False, True, False, False, True):
            await bench.back_up(use_dirty_bitmap=uses)
            found += await bench.bitmap_actions()
        assert found == ["not-used", "new", "not-used-removed", "not-used", "new"]

    in_simulation(run())


async def _change_disk_size(bench: PbsBench) -> None:
    await bench.ask("block_resize", device="drive-scsi0", size=3 * CHUNK)


async def _let_another_process_back_up(bench: PbsBench) -> None:
    other = PbsBench(chunk_counts=(2,))
    other.pbs, other.library = bench.pbs, bench.library
    other.disks[0].write(0, b"another state of the disk")
    other.backup_count, bench.backup_count = bench.backup_count, bench.backup_count + 1
    assert (await other.back_up())["status"] == "done"


async def _fail_verification(bench: PbsBench) -> None:
    bench.pbs.faults.add(Fault(kind=FaultKind.PREVIOUS_FAILED))


async def _start_anew_at_the_server(bench: PbsBench) -> None:
    bench.backup_count = 40
    bench.given["backup_id"] = "101"


async def _do_nothing(_bench: PbsBench) -> None:
    pass


@pytest.mark.parametrize(
    ("between", "first", "second", "action"),
    [
        (_do_nothing, {}, {}, "used"),
        (_change_disk_size, {}, {}, "invalid"),
        (_let_another_process_back_up, {}, {}, "invalid"),
        (_fail_verification, {}, {}, "invalid"),
        (_start_anew_at_the_server, {}, {}, "invalid"),
        (_do_nothing, {}, {"keyfile": "/k"}, "invalid"),
        (_do_nothing, {"keyfile": "/k"}, {}, "invalid"),
        (_do_nothing, {"keyfile": "/k"}, {"keyfile": "/k"}, "used"),
        (_do_nothing, {"keyfile": "/k"}, {"keyfile": "/l"}, "invalid"),
        (_do_nothing, {"keyfile": "/k", "encrypt": False}, {"keyfile": "/k"}, "invalid"),
        (_do_nothing, {"keyfile": "/k", "encrypt": False}, {"keyfile": "/l"}, "invalid"),
    ],
    ids=[
        "nothing",
        "disk-resized",
        "another-backup",
        "verification-failed",
        "another-group",
        "key-added",
        "key-dropped",
        "key-kept",
        "key-changed",
        "signed-then-encrypted",
        "encrypted-with-another",
    ],
)
def test_bitmap_is_used_only_with_the_very_backup_it_counts_from(
    between: Any, first: dict[str, Any], second: dict[str, Any], action: str
) -> None:
    async def run() -> None:
        bench = PbsBench(chunk_counts=(2,))
        bench.host.files |= {"/k": key_file(), "/l": key_file(bytes(32))}
        await bench.back_up(use_dirty_bitmap=True, **first)
        await between(bench)
        status = await bench.back_up(use_dirty_bitmap=True, **second)
        assert (status["status"], await bench.bitmap_actions()) == ("done", [action])
        size_bytes = bench.disks[0].size_bytes
        assert status["dirty"] == (0 if action == "used" else size_bytes)
        if "backup_id" not in bench.given:
            raw = {"/k": RAW_KEY, "/l": bytes(32)}.get(second.get("keyfile", ""))
            key = None if raw is None else EncryptionKey(raw)
            number = bench.backup_count - 1
            assert bench.disk(number, key=key) == bytes(bench.disks[0].content())

    in_simulation(run())


@pytest.mark.parametrize(
    ("endpoint", "first", "text", "action"),
    [
        ("POST /fixed_chunk", 2, "backup write data failed: command error: internal error", "used"),
        ("PUT /fixed_index", 1, "backup close image failed: command error: internal error", ""),
        ("POST /fixed_close", 1, "backup close image failed: command error: internal error", ""),
        ("POST /blob", 2, "backup finish failed: command error: internal error", ""),
        ("POST /finish", 1, "backup finish failed: command error: internal error", ""),
    ],
)
def test_failed_backup_keeps_the_bitmap_and_the_next_one_loses_no_change(
    endpoint: str, first: int, text: str, action: str
) -> None:
    async def run() -> None:
        bench = PbsBench(chunk_counts=(3,))
        await bench.back_up(use_dirty_bitmap=True)
        bench.write(CHUNK, b"changed")
        bench.pbs.faults.add(Fault(kind=FaultKind.REPLY, endpoint=endpoint, first=first))
        status = await bench.back_up(use_dirty_bitmap=True)
        assert (status["status"], status["errmsg"]) == ("error", text)
        assert await bench.bitmap_actions() == ["used"]
        assert await bench.backup_times() == [0]
        bench.write(2 * CHUNK, b"changed too")
        status = await bench.back_up(use_dirty_bitmap=True)
        assert (status["status"], await bench.bitmap_actions()) == ("done", [action or "invalid"])
        assert status["dirty"] == (2 if action else 3) * CHUNK
        assert bench.disk(2) == bytes(bench.disks[0].content())

    in_simulation(run())


def test_cancelled_backup_keeps_the_bitmap() -> None:
    async def run() -> None:
        bench = PbsBench(chunk_counts=(3,))
        await bench.back_up(use_dirty_bitmap=True)
        bench.write(0, b"changed")
        await bench.begin(use_dirty_bitmap=True, speed=1)
        bench.write(CHUNK, b"changed")
        await bench.ask("backup-cancel")
        status = await bench.back_up(use_dirty_bitmap=True)
        assert (await bench.bitmap_actions(), status["dirty"]) == (["used"], 2 * CHUNK)
        assert bench.disk(2) == bytes(bench.disks[0].content())

    in_simulation(run())


def test_refused_start_with_a_new_bitmap_makes_the_next_one_full() -> None:
    async def run() -> None:
        fault = Fault(kind=FaultKind.REPLY, endpoint="POST /fixed_index")
        bench = PbsBench(fault, chunk_counts=(2,))
        await bench.refusal(use_dirty_bitmap=True)
        bench.write(0, b"changed")
        status = await bench.back_up(use_dirty_bitmap=True)
        assert (await bench.bitmap_actions(), status["dirty"]) == (["invalid"], 2 * CHUNK)
        assert (await bench.back_up(use_dirty_bitmap=True))["dirty"] == 0

    in_simulation(run())
