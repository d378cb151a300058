"""Backups to a server that do not begin, or do not end well: replies, states, what is left."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.vzsim.pbs_bench import CHUNK, FIRST_S, REPOSITORY, PbsBench, in_simulation, key_file
from vzsim.fakepbs import Fault, FaultKind
from vzsim.fakeqmp.disks import MemoryDisk
from vzsim.fakeqmp.machine import Machine, MachineConfig
from vzsim.fakeqmp.memory import MemoryHost, VirtualTimebase
from vzsim.fakeqmp.schema import CommandError
from vzsim.fakeqmp.script import BackupRules, Script

pytestmark = pytest.mark.slow

_NEW = "proxmox_backup_new failed: "
_CONNECT = "backup connect failed: command error: "
_REGISTER = "backup register image failed: command error: "


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"password": None}, "missing parameter 'password'"),
        ({"backup_id": None, "backup_time": None}, "missing parameter 'backup-id'"),
        ({"backup_time": None}, "missing parameter 'backup-time'"),
        ({"password": None, "devlist": "drive-nope"}, "Device 'drive-nope' not found"),
        ({"devlist": ""}, "empty device list"),
        ({"backup_file": "a:b:c:d"}, f"{_NEW}not a repository: 'a:b:c:d'"),
        ({"backup_id": "10 0"}, f"{_NEW}not a backup id: '10 0'"),
        ({"backup_time": 0}, f"{_NEW}backup time 0 is out of range"),
        ({"backup_ns": "a//b"}, f"{_NEW}not a namespace: 'a//b'"),
        ({"fingerprint": "00:11"}, f"{_NEW}not a fingerprint: '00:11'"),
        ({"keyfile": "/nope"}, f"{_NEW}unable to read '/nope' - No such file or directory"),
        ({"keyfile": "/conf"}, f"{_NEW}unable to read key file: "),
        ({"keyfile": "/key", "master_keyfile": "/conf"}, f"{_NEW}master key is no public key"),
        ({"master_keyfile": "/conf"}, f"{_NEW}can't use master keyfile without keyfile"),
        ({"backup_ns": "a"}, f"{_CONNECT}namespace not found"),
        ({"password": "wrong"}, f"{_CONNECT}authentication failed"),
        ({"backup_file": REPOSITORY.replace("tank", "elsewhere")}, _CONNECT),
        ({"backup_time": FIRST_S}, f"{_CONNECT}backup timestamp is older than last backup."),
        ({"config_file": "/nope"}, "unable to read file '/nope'"),
        ({"max_workers": 0}, "backup_job_create failed: max-workers must be between 1 and"),
    ],
)
def test_refused_backup_leaves_no_job_and_nothing_at_the_server(
    given: dict[str, Any], text: str
) -> None:
    async def run() -> None:
        bench = PbsBench(chunk_counts=(1,))
        bench.host.files["/key"] = key_file()
        before = await bench.back_up()
        assert (await bench.refusal(**given)).startswith(text)
        assert await bench.ask("query-jobs") == []
        assert await bench.backup_times() == [0]
        if "max_workers" not in given:
            assert await bench.ask("query-backup") == before
        assert bench.write(0, b"not held") == [0]
        assert (await bench.back_up())["status"] == "done"
        assert await bench.backup_times() == [0, 2]

    in_simulation(run())


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault(kind=FaultKind.REPLY, endpoint="POST /fixed_index"), f"{_REGISTER}internal error"),
        (Fault(kind=FaultKind.REPLY, endpoint="POST /fixed_chunk"), f"{_REGISTER}internal error"),
        (
            Fault(kind=FaultKind.REPLY, endpoint="POST /blob"),
            "backup add_config qemu-server.conf failed: command error: internal error",
        ),
        (Fault(kind=FaultKind.CUT, bytes=100), f"{_CONNECT}the connection to the server was lost"),
        (Fault(kind=FaultKind.HANG, endpoint="POST /blob"), "backup add_config qemu-server.conf"),
    ],
    ids=["index", "zero-chunk", "config", "cut", "hang"],
)
def test_server_that_fails_before_the_jobs_fails_the_command(fault: Fault, text: str) -> None:
    async def run() -> None:
        bench = PbsBench(fault, chunk_counts=(1,))
        assert (await bench.refusal()).startswith(text)
        assert await bench.ask("query-backup") == {"finishing": False}
        assert await bench.ask("query-jobs") == []
        assert await bench.backup_times() == []
        assert bench.events == []
        assert (await bench.back_up())["status"] == "done"

    in_simulation(run())


def test_disk_without_content_is_refused_by_the_library() -> None:
    async def run() -> None:
        bench = PbsBench(chunk_counts=(1,))
        bench.machine.block.add_disk("drive-scsi9", MemoryDisk())
        assert await bench.refusal() == f"{_REGISTER}a disk of 0 bytes has no index"
        assert await bench.backup_times() == []

    in_simulation(run())


def test_device_named_twice_kills_the_process_and_the_server_forgets_the_backup() -> None:
    async def run() -> None:
        bench = PbsBench(chunk_counts=(1,))
        task = asyncio.create_task(bench.begin(devlist="drive-scsi0,drive-scsi0"))
        while not bench.ends:
            await asyncio.sleep(0.01)
        assert [end.signal_name for end in bench.ends] == ["SIGSEGV"]
        assert await bench.backup_times() == []
        task.cancel()

    in_simulation(run())


def test_build_with_a_stub_library_says_so_as_recorded() -> None:
    host = MemoryHost()
    machine = Machine(
        MachineConfig(),
        script=Script(),
        timebase=VirtualTimebase(),
        host=host,
        on_end=lambda _end: None,
    )
    machine.block.add_disk("drive-scsi0", host.add_disk("/d", CHUNK))
    given = {"format": "pbs", "backup-file": REPOSITORY, "password": "x", "backup-id": "100"}
    for arguments, text in (
        (given, "missing parameter 'backup-time'"),
        ({**given, "backup-time": 1}, "proxmox_backup_new failed: (null)"),
    ):
        with pytest.raises(CommandError) as caught:
            machine.backup.start(None, arguments)
        assert caught.value.description == text
    assert machine.backup.query_support()["pbs-library-version"] == ""


def test_library_that_is_no_stub_tells_its_version() -> None:
    async def run() -> None:
        support = await PbsBench().ask("query-proxmox-support")
        assert support.pop("pbs-library-version").startswith("2.")
        assert set(support.values()) == {True} and len(support) == 8

    in_simulation(run())


# -- while it runs ---------------------------------------------------------------------------------


def test_second_backup_while_one_runs_is_refused() -> None:
    async def run() -> None:
        bench = PbsBench(chunk_counts=(2,))
        await bench.begin(speed=CHUNK)
        text = "previous backup for target 'Proxmox' not finished"
        assert await bench.refusal() == text
        assert (await bench.end())["status"] == "done"
        assert await bench.backup_times() == [0]

    in_simulation(run())


def test_second_backup_while_one_is_being_begun_is_refused() -> None:
    async def run() -> None:
        bench = PbsBench(Fault(kind=FaultKind.SLOW, bytes=1000), chunk_counts=(1,))
        task = asyncio.create_task(bench.begin())
        await asyncio.sleep(0.5)
        assert not task.done()
        # From within the process, as the human monitor of another connection would.
        with pytest.raises(CommandError, match="previous backup for target 'Proxmox'"):
            bench.machine.backup.start(None, {"backup-file": "/x"})
        await task
        assert (await bench.end())["status"] == "done"

    in_simulation(run())


def test_cancel_makes_the_server_forget_the_backup() -> None:
    async def run() -> None:
        bench = PbsBench(chunk_counts=(3, 2))
        await bench.begin(speed=CHUNK)
        await bench.until(lambda status: status["transferred"] == 2 * CHUNK)
        assert await bench.ask("backup-cancel") == {}
        status = await bench.ask("query-backup")
        assert (status["status"], status["errmsg"]) == ("error", "backup canceled")
        assert (await bench.ask("query-jobs"), await bench.backup_times()) == ([], [])
        assert "BLOCK_JOB_CANCELLED" in bench.events
        assert "BLOCK_JOB_COMPLETED" not in bench.events
        assert (await bench.back_up())["status"] == "done"
        assert await bench.backup_times() == [1]

    in_simulation(run())


@pytest.mark.parametrize("endpoint", ["POST /fixed_chunk", "POST /fixed_close", "POST /finish"])
def test_cancel_waits_for_no_server(endpoint: str) -> None:
    async def run() -> None:
        first = 2 if endpoint == "POST /fixed_chunk" else 1
        fault = Fault(kind=FaultKind.HANG, endpoint=endpoint, first=first)
        bench = PbsBench(fault, chunk_counts=(3,))
        await bench.begin(max_workers=1)
        await asyncio.sleep(2.0)
        status = await bench.ask("query-backup")
        assert status["status"] == "active"
        assert status["finishing"] is (endpoint == "POST /finish")
        began_s = asyncio.get_running_loop().time()
        await bench.ask("backup-cancel")
        assert asyncio.get_running_loop().time() - began_s < 0.01
        status = await bench.ask("query-backup")
        assert (status["status"], status["errmsg"]) == ("error", "backup canceled")
        assert status["finishing"] is False
        assert await bench.backup_times() == []

    in_simulation(run())


def test_job_cancelled_alone_ends_the_backup() -> None:
    async def run() -> None:
        bench = PbsBench(chunk_counts=(2, 2))
        await bench.begin(speed=CHUNK)
        await bench.ask("block-job-cancel", device="drive-scsi1")
        status = await bench.end()
        assert status["errmsg"] == "job failed with err -125 - Operation canceled"
        assert await bench.backup_times() == []

    in_simulation(run())


def test_death_of_the_process_makes_the_server_forget_the_backup() -> None:
    async def run() -> None:
        bench = PbsBench(chunk_counts=(3,), rules=Script(backup=BackupRules(bytes_per_s=CHUNK)))
        await bench.begin()
        await asyncio.sleep(1.5)
        bench.machine.die("SIGKILL")
        assert await bench.backup_times() == []
        assert len(bench.ends) == 1

    in_simulation(run())


def test_death_while_the_server_is_asked_leaves_nothing_there() -> None:
    async def run() -> None:
        bench = PbsBench(Fault(kind=FaultKind.SLOW, bytes=1000), chunk_counts=(1,))
        task = asyncio.create_task(bench.begin())
        await asyncio.sleep(0.5)
        assert bench.pbs.session_count == 1 and not task.done()
        bench.machine.die("SIGKILL")
        assert await bench.backup_times() == []
        assert bench.machine.backup.run is None
        task.cancel()

    in_simulation(run())


def test_quit_and_termination_end_the_backup() -> None:
    async def run() -> None:
        for end in ("quit", "terminate"):
            bench = PbsBench(chunk_counts=(2,))
            await bench.begin(speed=CHUNK)
            if end == "quit":
                await bench.ask("quit")
            else:
                bench.machine.terminate()
            assert await bench.backup_times() == []
            assert [each.signal_name for each in bench.ends] == [""]

    in_simulation(run())


def test_server_that_refuses_a_chunk_fails_the_jobs() -> None:
    async def run() -> None:
        fault = Fault(
            kind=FaultKind.REPLY, endpoint="POST /fixed_chunk", first=4, text="no space left"
        )
        bench = PbsBench(fault, chunk_counts=(2, 4))
        bench.said.clear()
        status = await bench.back_up(max_workers=1)
        assert status["errmsg"] == "backup write data failed: command error: no space left"
        error = next(said for said in bench.said if said.get("event") == "BLOCK_JOB_ERROR")
        assert error["data"] == {
            "device": "drive-scsi1",
            "operation": "write",
            "action": "report",
        }
        completed = [said for said in bench.said if said.get("event") == "BLOCK_JOB_COMPLETED"]
        assert [each["data"]["error"] for each in completed] == ["Operation not permitted"]
        assert await bench.backup_times() == []
        assert bench.write(0, b"not held") == [0]

    in_simulation(run())


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind=FaultKind.CUT, bytes=2000),
        Fault(kind=FaultKind.CUT_SENDING, bytes=700),
        Fault(kind=FaultKind.GOAWAY, endpoint="POST /fixed_chunk", first=3),
        Fault(kind=FaultKind.RESET, endpoint="POST /fixed_chunk", first=3),
        Fault(kind=FaultKind.HANG, endpoint="POST /fixed_chunk", first=3),
        Fault(kind=FaultKind.HANG_AFTER, endpoint="PUT /fixed_index"),
        Fault(kind=FaultKind.DISK_FULL, endpoint="POST /fixed_chunk", first=3),
    ],
    ids=lambda fault: fault.kind.value,
)
def test_server_lost_midway_ends_the_backup_by_itself(fault: Fault) -> None:
    async def run() -> None:
        bench = PbsBench(fault, chunk_counts=(8,))
        await bench.begin(max_workers=2, use_dirty_bitmap=True)
        done = bench.write(7 * CHUNK, b"held perhaps")
        status = await bench.until(lambda status: status["status"] != "active", poll_s=10.0)
        assert status["status"] == "error"
        assert status["errmsg"].startswith("backup ")
        assert (status["finishing"], done in ([0], [1])) == (False, True)
        assert (await bench.ask("query-jobs"), await bench.backup_times()) == ([], [])
        bench.pbs.faults.heal()
        bench.pbs.fill(None)
        assert (await bench.back_up(use_dirty_bitmap=True))["status"] == "done"
        assert bench.disk(1) == bytes(bench.disks[0].content())

    in_simulation(run())


def test_write_of_the_guest_fails_while_the_target_is_broken() -> None:
    async def run() -> None:
        fault = Fault(kind=FaultKind.REPLY, endpoint="POST /fixed_chunk", first=2)
        bench = PbsBench(fault, chunk_counts=(4,))
        await bench.begin(speed=CHUNK // 4)
        await bench.until(lambda status: status["transferred"] > 0)
        # The first chunk was refused, which the job notices at its next one.
        await asyncio.sleep(1.0)
        assert bench.write(3 * CHUNK, b"refused") == [1]
        assert (await bench.end())["status"] == "error"
        assert bench.write(3 * CHUNK, b"goes through") == [0]

    in_simulation(run())


# -- scripts ---------------------------------------------------------------------------------------


def test_scripted_failure_death_and_lie_work_with_a_server_too() -> None:
    async def run() -> None:
        rules = BackupRules(bytes_per_s=CHUNK, fail_at_bytes=CHUNK, fail_text="odd")
        bench = PbsBench(chunk_counts=(3,), rules=Script(backup=rules))
        assert (await bench.back_up())["errmsg"] == "odd"
        assert await bench.backup_times() == []
        rules = BackupRules(bytes_per_s=CHUNK, die_at_bytes=CHUNK)
        bench = PbsBench(chunk_counts=(3,), rules=Script(backup=rules))
        await bench.begin()
        await asyncio.sleep(5.0)
        assert await bench.backup_times() == []
        assert [end.signal_name for end in bench.ends] == ["SIGKILL"]
        rules = BackupRules(stall_at_bytes=CHUNK, stall_s=50.0, uuid="other")
        bench = PbsBench(chunk_counts=(3,), rules=Script(backup=rules))
        began_s = asyncio.get_running_loop().time()
        status = await bench.back_up()
        assert (status["status"], status["uuid"]) == ("done", "other")
        assert asyncio.get_running_loop().time() - began_s > 50.0

    in_simulation(run())
