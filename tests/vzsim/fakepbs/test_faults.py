"""The fault script: each kind strikes where and as often as it says, and what it leaves."""

from __future__ import annotations

import asyncio

import pytest

from tests.vzsim.fakepbs.raw_client import (
    CHUNK_BYTES,
    TIME_S,
    TOKEN_HEADERS,
    api,
    ask,
    http1,
    make_backup,
    session,
    upload_chunk,
    upload_data_blob,
)
from vzdump_qemu.errors import ConfigError
from vzdump_qemu.formats.pbs import chunk_digest
from vzsim.fakepbs import (
    Account,
    FakePbs,
    Fault,
    FaultKind,
    Faults,
    PbsConfig,
    PbsSurroundings,
    read_faults,
)
from vzsim.fakepbs.verification import verify_backup
from vzsim.kernel import Chance
from vzsim.pytest_plugin import Simulation

CHUNK = b"".join(bytes([number % 251]) * 4096 for number in range(1024))


def fault(kind: FaultKind, endpoint: str = "", **values: object) -> Faults:
    return Faults([Fault(kind=kind, endpoint=endpoint, **values)])  # type: ignore[arg-type]


def test_script_is_read_from_toml() -> None:
    text = '[[fault]]\nkind = "cut"\nbytes = 1000\nfirst = 2\nendpoint = "GET /backup"\n'
    assert read_faults(text) == (
        Fault(kind=FaultKind.CUT, bytes=1000, first=2, endpoint="GET /backup"),
    )
    assert read_faults("") == ()


@pytest.mark.parametrize(
    "text", ["[[fault]]\n", '[[fault]]\nkind = "bang"\n', "[[fault]]\nkind='cut'\nx=1\n", "fault ="]
)
def test_script_with_anything_unknown_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        read_faults(text)


@pytest.mark.parametrize(
    ("first", "count", "struck"),
    [(1, 1, [1]), (2, 1, [2]), (2, 2, [2, 3]), (3, 0, [3, 4, 5])],
)
def test_fault_strikes_from_its_first_time_as_often_as_it_says(
    first: int, count: int, struck: list[int]
) -> None:
    faults = fault(FaultKind.CUT, "a", first=first, count=count)
    found = [number for number in range(1, 6) if faults.take("a", FaultKind.CUT)]
    assert found == struck
    assert faults.take("b", FaultKind.CUT) is None
    assert faults.take("a", FaultKind.SLOW) is None


async def test_connection_cut_at_a_byte_removes_the_backup(pbs: FakePbs) -> None:
    pbs.faults.add(Fault(kind=FaultKind.CUT, bytes=1000))
    async with session(pbs) as opened:
        await opened.call("POST", "fixed_index", archive_name="a.fidx", size=CHUNK_BYTES)
        assert (await upload_chunk(opened, 1, CHUNK)).status == 0
    assert pbs.counters.received_bytes == 1000
    assert pbs.datastores["tank"].files.names("vm/100") == ["owner"]
    await make_backup(pbs, CHUNK)


async def test_connection_cut_while_sending_ends_a_restore(pbs: FakePbs) -> None:
    await make_backup(pbs, CHUNK)
    pbs.faults.add(Fault(kind=FaultKind.CUT_SENDING, bytes=3000, endpoint="GET /reader"))
    async with session(pbs, "reader") as opened:
        assert (await opened.call("GET", "speedtest")).status == 0
    assert pbs.session_count == 0


def simulated() -> FakePbs:
    """A server for a simulation, with the real delays."""
    chance = Chance(1).stream().randbytes
    return FakePbs(PbsConfig(), PbsSurroundings(now_s=lambda: TIME_S + 100.0, chance=chance))


def test_slow_connection_takes_its_time(sim: Simulation) -> None:
    async def upload() -> None:
        pbs = simulated()
        pbs.faults.add(Fault(kind=FaultKind.SLOW, bytes=1 << 16))
        async with session(pbs) as opened:
            await opened.call("POST", "speedtest", body=bytes(10 << 16))

    sim.run(upload())
    assert 10.0 <= sim.time_s < 10.5


def test_refusal_takes_three_seconds_of_virtual_time(sim: Simulation) -> None:
    async def refused() -> int:
        pbs = simulated()
        return (await ask(pbs, "GET", api("version"), headers={})).status

    assert sim.run(refused()) == 401
    assert sim.time_s == 3.0


def test_missing_privilege_takes_half_a_second_of_virtual_time(sim: Simulation) -> None:
    async def refused() -> int:
        pbs = simulated()
        pbs.accounts.add(Account(auth_id="eve@pbs!t", secret="s", privileges={}))
        headers = {"Authorization": "PBSAPIToken eve@pbs!t:s"}
        return (await ask(pbs, "GET", api("admin/datastore/tank/status"), headers=headers)).status

    assert sim.run(refused()) == 403
    assert sim.time_s == 0.5


def test_whole_backup_in_virtual_time_is_the_same_twice() -> None:
    async def run() -> list[tuple[str, bytes]]:
        pbs = simulated()
        await make_backup(pbs, CHUNK + b"end")
        datastore = pbs.datastores["tank"]
        (place,) = datastore.places(next(iter(datastore.namespaces())))
        path = place.backup_path(place.backup(TIME_S))
        files = {
            name: datastore.files.read(f"{path}/{name}") for name in datastore.files.names(path)
        }
        return [(name, hash(content)) for name, content in files.items()]

    assert Simulation(seed=7).run(run()) == Simulation(seed=8).run(run())


async def test_scripted_reply_takes_the_place_of_the_work(pbs: FakePbs) -> None:
    pbs.faults.add(
        Fault(kind=FaultKind.REPLY, endpoint="POST /blob", first=2, status=503, text="later")
    )
    async with session(pbs) as opened:
        await upload_data_blob(opened, "a.blob", b"a")
        answer = await opened.call("POST", "blob", body=b"x", file_name="b.blob", encoded_size=1)
        assert (answer.status, answer.text) == (503, "later")
        await upload_data_blob(opened, "c.blob", b"c")
        path = "vm/100/2023-11-14T22:13:20Z"
        assert pbs.datastores["tank"].files.names(path) == ["a.blob", "c.blob"]
    assert pbs.counters.refusals[503] == 1


@pytest.mark.parametrize(
    ("kind", "is_done"), [(FaultKind.HANG, False), (FaultKind.HANG_AFTER, True)]
)
def test_finish_that_hangs_has_or_has_not_happened(
    sim: Simulation, kind: FaultKind, is_done: bool
) -> None:
    async def hang() -> None:
        pbs = simulated()
        pbs.faults.add(Fault(kind=kind, endpoint="POST /finish"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await make_backup(pbs, b"disk")
        datastore = pbs.datastores["tank"]
        (place,) = datastore.places(next(iter(datastore.namespaces())))
        assert datastore.is_finished(place, place.backup(TIME_S)) is is_done
        assert datastore.locks.held_paths() == []

    sim.run(hang())
    assert sim.time_s == 60


async def test_login_that_hangs_ends_with_its_connection(pbs: FakePbs) -> None:
    pbs.faults.add(Fault(kind=FaultKind.HANG, endpoint="GET /version"))
    streams, task = pbs.connect()
    waiting = asyncio.ensure_future(http1(streams, "GET", api("version"), headers=TOKEN_HEADERS))
    await asyncio.sleep(0)
    streams[1].close()
    await task
    assert (await waiting).status == 0


async def test_upgrade_whose_reply_hangs_leaves_nothing_behind(pbs: FakePbs) -> None:
    pbs.faults.add(Fault(kind=FaultKind.HANG_AFTER, endpoint="GET /backup"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), session(pbs):
            pass
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
        await asyncio.wait([task])
    assert pbs.session_count == 0
    assert pbs.datastores["tank"].locks.held_paths() == []


async def test_stream_that_is_reset_leaves_the_others_alone(pbs: FakePbs) -> None:
    pbs.faults.add(Fault(kind=FaultKind.RESET, endpoint="POST /blob"))
    async with session(pbs) as opened:
        answer = await opened.call("POST", "blob", body=b"x", file_name="a.blob", encoded_size=1)
        assert answer.status == 0
        await upload_data_blob(opened, "a.blob", b"a")


async def test_request_that_its_client_breaks_off_counts_for_the_script(pbs: FakePbs) -> None:
    pbs.faults.add(Fault(kind=FaultKind.HANG, endpoint="POST /speedtest"))
    async with session(pbs) as opened:
        await opened.break_off("POST", "speedtest")
        assert (await opened.call("POST", "speedtest", body=b"x")).value is None


async def test_connection_told_to_go_away_says_which_streams_were_seen(pbs: FakePbs) -> None:
    pbs.faults.add(Fault(kind=FaultKind.GOAWAY, endpoint="POST /speedtest", text="bye"))
    async with session(pbs) as opened:
        await upload_data_blob(opened, "a.blob", b"a")
        assert (await opened.call("POST", "speedtest", body=b"x")).status == 0
        assert opened.goaway is not None
        assert (opened.goaway.last_stream_id, opened.goaway.additional_data) == (1, b"bye")
    assert pbs.datastores["tank"].files.names("vm/100") == ["owner"]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (FaultKind.CHUNK_LOST, "reading file"),
        (FaultKind.CHUNK_DAMAGED, "Data blob has wrong CRC checksum."),
    ],
)
async def test_chunk_spoiled_on_disk_is_found_by_verification(
    pbs: FakePbs, kind: FaultKind, text: str
) -> None:
    pbs.faults.add(Fault(kind=kind, first=2))
    await make_backup(pbs, CHUNK + b"end")
    datastore = pbs.datastores["tank"]
    (place,) = datastore.places(next(iter(datastore.namespaces())))
    (wrong,) = verify_backup(datastore, place, place.backup(TIME_S))
    assert chunk_digest(b"end").hex() in wrong
    assert text in wrong


async def test_full_disk_refuses_chunks_and_files_in_the_words_of_the_system(
    pbs: FakePbs,
) -> None:
    pbs.faults.add(Fault(kind=FaultKind.DISK_FULL, endpoint="POST /fixed_chunk", bytes=10))
    async with session(pbs) as opened:
        await opened.call("POST", "fixed_index", archive_name="a.fidx", size=CHUNK_BYTES)
        answer = await upload_chunk(opened, 1, CHUNK)
        assert (answer.status, answer.text) == (
            400,
            f"inserting chunk on store 'tank' failed for {chunk_digest(CHUNK).hex()} - "
            "No space left on device (os error 28)",
        )
        answer = await opened.call(
            "POST", "blob", body=bytes.fromhex("42ab3807be8370a100000000"), file_name="a.blob",
            encoded_size=12,
        )  # fmt: skip
        assert answer.status == 400
        assert answer.text.endswith("- No space left on device (os error 28)")
    pbs.fill(None)
    await make_backup(pbs, CHUNK)


async def test_healed_server_makes_no_more_faults(pbs: FakePbs) -> None:
    pbs.faults.add(Fault(kind=FaultKind.REPLY, count=0))
    assert (await ask(pbs, "GET", api("version"))).status == 500
    pbs.faults.heal()
    assert (await ask(pbs, "GET", api("version"))).status == 200
