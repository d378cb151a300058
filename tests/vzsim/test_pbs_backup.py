"""``backup`` with ``format=pbs`` in memory and virtual time: what reaches the server, and how."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.vzsim.pbs_bench import (
    CHUNK,
    CONFIG,
    RAW_KEY,
    REPOSITORY,
    PbsBench,
    in_simulation,
    key_file,
)
from vzdump_qemu.errors import PbsKeyError
from vzdump_qemu.formats.pbs import CryptMode, EncryptionKey, Namespace
from vzsim.fakepbs import DEFAULT_TOKEN, Fault, FaultKind
from vzsim.fakeqmp.disks import FaultyDisk, MemoryDisk
from vzsim.fakeqmp.guest import Guest
from vzsim.fakeqmp.script import GuestRules, Script

# Every chunk is hashed twice, and encoded.
pytestmark = pytest.mark.slow


def test_backup_to_a_server_holds_the_disk_as_it_was_when_the_jobs_began() -> None:
    async def run() -> None:
        bench = PbsBench(chunk_counts=(4, 2))
        reply = await bench.begin(firewall_file="/fw")
        before = [disk.content() for disk in bench.disks]
        assert bench.write(3 * CHUNK + 5, b"changed") == [0]
        status = await bench.end()
        assert (status["status"], status["uuid"]) == ("done", reply["UUID"])
        assert status["backup-file"] == REPOSITORY
        assert status["total"] == status["dirty"] == status["transferred"] == 6 * CHUNK
        assert (status["reused"], status["zero-bytes"], status["finishing"]) == (0, 0, False)
        for index, content in enumerate(before):
            assert bench.disk(0, disk_index=index) == bytes(content)
        assert bench.file(0, "qemu-server.conf.blob") == CONFIG
        assert bench.file(0, "fw.conf.blob") == bench.host.files["/fw"]
        names = [entry.file_name for entry in bench.manifest(0).entries]
        assert names == [
            "qemu-server.conf.blob",
            "fw.conf.blob",
            "drive-scsi1.img.fidx",
            "drive-scsi0.img.fidx",
        ]
        assert await bench.bitmap_actions() == ["not-used", "not-used"]

    in_simulation(run())


def test_events_of_a_backup_to_a_server_are_those_of_one_to_an_archive() -> None:
    async def run() -> None:
        bench = PbsBench(chunk_counts=(1, 1))
        await bench.back_up()
        assert bench.events == [
            *("created", "created", "running", "waiting", "running", "waiting"),
            *("pending", "pending"),
            *("BLOCK_JOB_COMPLETED", "concluded", "null") * 2,
        ]

    in_simulation(run())


def test_write_while_the_server_is_asked_is_in_the_backup() -> None:
    async def run() -> None:
        bench = PbsBench(Fault(kind=FaultKind.SLOW, bytes=1000), chunk_counts=(1,))
        task = asyncio.create_task(bench.begin())
        await asyncio.sleep(0.5)
        assert bench.machine.backup.run is None and not task.done()
        assert bench.write(0, b"while the server is asked") == [0]
        await task
        await bench.end()
        assert bench.disk(0).startswith(b"while the server is asked")

    in_simulation(run())


def test_zeroes_and_chunks_met_before_are_not_sent() -> None:
    async def run() -> None:
        bench = PbsBench(chunk_counts=(5,))
        disk = bench.disks[0]
        disk.resize(4 * CHUNK + 512)
        disk.write(0, bytes(CHUNK))
        disk.write(2 * CHUNK, disk.read(CHUNK, CHUNK))
        disk.write(4 * CHUNK, bytes(512))
        status = await bench.back_up()
        # The short end is zeroes, but no chunk that the server knows; one chunk came twice.
        assert (status["zero-bytes"], status["reused"]) == (CHUNK + 512, 2 * CHUNK)
        counters = bench.pbs.counters
        assert (counters.received_chunk_count, counters.appended_chunk_count) == (4, 5)
        assert bench.disk(0) == bytes(disk.content())
        bench.pbs.counters.reset()
        status = await bench.back_up()
        assert status["reused"] == status["transferred"] == 4 * CHUNK + 512
        assert counters.received_chunk_count == counters.duplicate_chunk_count == 1

    in_simulation(run())


def test_backup_to_a_namespace_without_compression_arrives_there() -> None:
    async def run() -> None:
        bench = PbsBench(chunk_counts=(1,))
        namespace = Namespace.parse("a/b")
        bench.pbs.datastores["tank"].make_namespace(namespace)
        status = await bench.back_up(backup_ns="a/b", compress=False)
        assert status["status"] == "done"
        assert await bench.backup_times() == []
        assert await bench.backup_times(namespace) == [0]
        assert bench.pbs.counters.received_chunk_bytes > 2 * CHUNK

    in_simulation(run())


def test_signed_backup_has_plain_data_under_a_signature() -> None:
    async def run() -> None:
        bench = PbsBench(chunk_counts=(1,))
        bench.host.files["/key"] = key_file()
        await bench.back_up(keyfile="/key", encrypt=False)
        manifest = bench.manifest(0, key=EncryptionKey(RAW_KEY))
        assert {entry.crypt_mode for entry in manifest.entries} == {CryptMode.SIGN_ONLY}
        assert bench.disk(0) == bytes(bench.disks[0].content())

    in_simulation(run())


def test_encrypted_backup_shows_nothing_of_the_disk_without_the_key() -> None:
    async def run() -> None:
        bench = PbsBench(chunk_counts=(2,))
        bench.host.files["/key"] = key_file()
        bench.disks[0].write(100, b"a secret of the guest" * 50)
        status = await bench.back_up(keyfile="/key", compress=False)
        assert status["status"] == "done"
        key = EncryptionKey(RAW_KEY)
        assert bench.disk(0, key=key) == bytes(bench.disks[0].content())
        assert bench.file(0, "qemu-server.conf.blob", key=key) == CONFIG
        with pytest.raises(PbsKeyError):
            bench.disk(0)

    in_simulation(run())


def test_same_backup_twice_says_and_sends_the_same() -> None:
    async def run() -> tuple[object, ...]:
        rules = Script(guest=GuestRules(writes_per_s=50.0, seed=3))
        bench = PbsBench(chunk_counts=(3, 2), rules=rules)
        bench.host.files["/key"] = key_file()
        Guest(bench.machine).start()
        await bench.back_up(keyfile="/key", use_dirty_bitmap=True, speed=CHUNK)
        status = await bench.back_up(keyfile="/key", use_dirty_bitmap=True)
        return bench.said, status, bench.pbs.counters, bench.manifest(0), bench.manifest(1)

    assert in_simulation(run()) == in_simulation(run())


def test_encrypt_without_a_key_changes_nothing() -> None:
    async def run() -> None:
        bench = PbsBench(chunk_counts=(1,))
        await bench.back_up(encrypt=True)
        assert {entry.crypt_mode for entry in bench.manifest(0).entries} == {CryptMode.NONE}

    in_simulation(run())


def test_speed_limits_the_copying() -> None:
    async def run() -> float:
        bench = PbsBench(chunk_counts=(4,))
        await bench.begin(speed=CHUNK)
        began_s = asyncio.get_running_loop().time()
        await bench.until(lambda status: status["transferred"] == 2 * CHUNK)
        await bench.ask("block-job-set-speed", device="drive-scsi0", speed=2 * CHUNK)
        await bench.end()
        return asyncio.get_running_loop().time() - began_s

    assert 1.9 < in_simulation(run()) < 3.1


# -- the guest -------------------------------------------------------------------------------------


def test_write_to_a_chunk_not_saved_waits_for_a_server_that_takes_none() -> None:
    async def run() -> None:
        hang = Fault(kind=FaultKind.HANG, endpoint="POST /fixed_chunk", first=2)
        bench = PbsBench(hang, chunk_counts=(4,))
        await bench.begin(max_workers=1)
        await asyncio.sleep(1.0)
        done = bench.write(3 * CHUNK, b"held")
        await asyncio.sleep(1.0)
        assert done == []
        await bench.ask("backup-cancel")
        assert done == [0]
        assert bench.disks[0].read(3 * CHUNK, 4) == b"held"

    in_simulation(run())


def test_write_to_a_chunk_not_saved_sends_the_old_bytes_first() -> None:
    async def run() -> None:
        bench = PbsBench(chunk_counts=(4,))
        before = bytes(bench.disks[0].content())
        await bench.begin(speed=CHUNK)
        assert bench.write(3 * CHUNK - 2, b"changed") == [0]
        status = await bench.until(lambda status: status["transferred"] >= 3 * CHUNK)
        assert status["status"] == "active"
        await bench.end()
        assert bench.disk(0) == before
        assert bench.pbs.counters.appended_chunk_count == 4

    in_simulation(run())


def test_write_with_fleecing_waits_for_no_server() -> None:
    async def run() -> None:
        hang = Fault(kind=FaultKind.HANG, endpoint="POST /fixed_chunk", first=2)
        bench = PbsBench(hang, chunk_counts=(4,))
        bench.host.disks["/fleece"] = MemoryDisk(size_bytes=4 * CHUNK)
        bench.machine.block.add_drive(
            {"id": "drive-scsi0-fleecing", "file": "/fleece", "format": "raw", "if": "none"}
        )
        before = bytes(bench.disks[0].content())
        await bench.begin(max_workers=1, fleecing=True, devlist="drive-scsi0")
        await asyncio.sleep(1.0)
        assert bench.write(3 * CHUNK, b"not held") == [0]
        await bench.ask("backup-cancel")
        bench.pbs.faults.heal()
        bench.disks[0].write(0, before)
        await bench.begin(fleecing=True, devlist="drive-scsi0")
        assert bench.write(3 * CHUNK, b"not held") == [0]
        await bench.end()
        assert bench.disk(1) == before

    in_simulation(run())


def test_disk_that_cannot_be_read_fails_the_backup_and_the_server_forgets_it() -> None:
    async def run() -> None:
        bench = PbsBench(chunk_counts=(1,))
        bad = FaultyDisk(MemoryDisk(size_bytes=2 * CHUNK), bad_sector=9000, errno_code=5)
        bench.machine.block.add_disk("drive-scsi9", bad)
        status = await bench.back_up()
        assert (status["status"], status["errmsg"]) == (
            "error",
            "job failed with err -5 - Input/output error",
        )
        assert await bench.backup_times() == []

    in_simulation(run())


# -- bitmaps of throttled disks --------------------------------------------------------------------


def test_disk_behind_a_throttle_filter_keeps_its_changes() -> None:
    async def run() -> None:
        bench = PbsBench(chunk_counts=(1,))
        stream = random.Random(3)
        disk = bench.host.disks["/t"] = MemoryDisk(stream.randbytes(2 * CHUNK))
        await bench.ask("object-add", qom_type="throttle-group", id="group")
        file = {"driver": "file", "filename": "/t", "node-name": "file-t"}
        below = {"driver": "raw", "file": file, "node-name": "below"}
        await bench.ask(
            "blockdev-add",
            driver="throttle",
            node_name="drive-scsi7",
            throttle_group="group",
            file=below,
        )
        given = {"devlist": "drive-scsi7", "use_dirty_bitmap": True}
        await bench.back_up(**given)
        node = bench.machine.block.find("drive-scsi7")
        node.write(CHUNK, b"changed")
        status = await bench.back_up(**given)
        assert (await bench.bitmap_actions(), status["dirty"]) == (["used"], CHUNK)
        assert disk.read(CHUNK, 7) == b"changed"
        assert bench.disk(1, disk_index=7) == bytes(disk.content())

    in_simulation(run())


def test_password_in_the_arguments_is_shown_nowhere() -> None:
    async def run() -> None:
        bench = PbsBench(chunk_counts=(1,))
        await bench.back_up()
        await bench.refusal(backup_time=1)
        assert DEFAULT_TOKEN.secret not in repr(bench.said)

    in_simulation(run())
