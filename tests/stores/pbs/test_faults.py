"""Servers that fail on the way: nothing counts as a backup that is none, and nobody hangs."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from tests.stores.pbs.running_server import TIMEOUTS, back_up, backup_at, running_server
from vzdump_qemu.errors import PbsCorrupt, PbsError, PbsRefused, PbsUnreachable
from vzdump_qemu.formats.pbs import Namespace
from vzdump_qemu.stores.pbs import BackupReader, BackupSession, PbsEndpoint
from vzdump_qemu.stores.pbs.h2_stream import H2Request
from vzsim.fakepbs import Fault, FaultKind

pytestmark = pytest.mark.slow

MIB = 1 << 20
DISK = random.Random(1).randbytes(13 * MIB)
INDEX = "drive-scsi0.img.fidx"
# For servers that never answer; long for what they do answer.
SHORT = replace(TIMEOUTS, stall_s=1.0, request_s=2.0, finish_s=1.0)

UPLOAD_FAULTS = {
    "cut": (Fault(kind=FaultKind.CUT, bytes=5 * MIB), PbsUnreachable),
    "cut-at-once": (Fault(kind=FaultKind.CUT, bytes=40), PbsUnreachable),
    "cut-sending": (Fault(kind=FaultKind.CUT_SENDING, bytes=100), PbsUnreachable),
    "chunk-refused": (
        Fault(kind=FaultKind.REPLY, endpoint="POST /fixed_chunk", first=2, text="no room"),
        PbsRefused,
    ),
    "append-refused": (Fault(kind=FaultKind.REPLY, endpoint="PUT /fixed_index"), PbsRefused),
    "close-refused": (Fault(kind=FaultKind.REPLY, endpoint="POST /fixed_close"), PbsRefused),
    "manifest-refused": (
        Fault(kind=FaultKind.REPLY, endpoint="POST /blob", first=3, text="no"),
        PbsRefused,
    ),
    "finish-refused": (Fault(kind=FaultKind.REPLY, endpoint="POST /finish"), PbsRefused),
    "odd-answer": (
        Fault(kind=FaultKind.REPLY, endpoint="POST /fixed_chunk", status=200, text="{}"),
        PbsError,
    ),
    "reset": (Fault(kind=FaultKind.RESET, endpoint="POST /fixed_chunk"), PbsError),
    "goaway": (Fault(kind=FaultKind.GOAWAY, endpoint="POST /fixed_chunk"), PbsUnreachable),
    "hang": (Fault(kind=FaultKind.HANG, endpoint="POST /fixed_chunk"), PbsUnreachable),
    "finish-hangs": (Fault(kind=FaultKind.HANG, endpoint="POST /finish"), PbsUnreachable),
    "disk-full": (
        Fault(kind=FaultKind.DISK_FULL, endpoint="POST /fixed_chunk", bytes=MIB),
        PbsRefused,
    ),
}


@pytest.mark.parametrize(("fault", "error_class"), UPLOAD_FAULTS.values(), ids=UPLOAD_FAULTS)
async def test_upload_that_fails_leaves_no_backup(
    fault: Fault, error_class: type[PbsError]
) -> None:
    async with running_server(fault) as server:
        async with asyncio.timeout(60):
            with pytest.raises(error_class) as caught:
                await back_up(server.endpoint(timeouts=SHORT), 0, [DISK])
        assert "\n" not in str(caught.value)
        if fault.kind is FaultKind.REPLY and fault.status != 200:
            assert caught.value.message == fault.text
        server.pbs.faults.heal()
        while server.pbs.session_count:
            await asyncio.sleep(0)
        server.pbs.fill(None)
        assert server.pbs.counters.finished_count == 0
        # The group is free again, and chunks that arrived do no harm.
        await back_up(server.endpoint(), 1, [DISK])
        with pytest.raises(PbsRefused):
            await BackupReader.open(server.endpoint(), Namespace(), backup_at(0))


async def test_finish_whose_answer_is_lost_counts_if_the_server_did_it() -> None:
    fault = Fault(kind=FaultKind.HANG_AFTER, endpoint="POST /finish")
    async with running_server(fault) as server:
        done, _, _ = await back_up(server.endpoint(timeouts=SHORT), 0, [DISK])
        assert len(done.warnings) == 1
        assert "answer was lost" in done.warnings[0]
        assert server.pbs.counters.finished_count == 1


async def verify(endpoint: PbsEndpoint) -> None:
    reader = await BackupReader.open(endpoint, Namespace(), backup_at(0))
    try:
        await reader.verify_disk(INDEX)
    finally:
        await reader.close()


@pytest.mark.parametrize(
    ("kind", "error_class"),
    [(FaultKind.CHUNK_LOST, PbsRefused), (FaultKind.CHUNK_DAMAGED, PbsCorrupt)],
)
async def test_chunk_that_the_server_spoiled_is_found_by_verify(
    kind: FaultKind, error_class: type[PbsError]
) -> None:
    async with running_server(Fault(kind=kind, endpoint="POST /fixed_chunk", first=2)) as server:
        endpoint = server.endpoint()
        await back_up(endpoint, 0, [DISK])
        with pytest.raises(error_class):
            await verify(endpoint)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind=FaultKind.CUT_SENDING, endpoint="GET /reader", bytes=5 * MIB),
        Fault(kind=FaultKind.HANG, endpoint="GET /chunk", first=2),
        Fault(kind=FaultKind.GOAWAY, endpoint="GET /chunk", first=2),
        Fault(kind=FaultKind.HANG, endpoint="GET /download"),
    ],
    ids=lambda fault: fault.kind.value,
)
async def test_restore_over_a_connection_that_fails_ends_with_an_error(fault: Fault) -> None:
    async with running_server() as server:
        await back_up(server.endpoint(), 0, [DISK])
        server.pbs.faults.add(fault)
        async with asyncio.timeout(60):
            with pytest.raises(PbsUnreachable):
                await verify(server.endpoint(timeouts=SHORT))


async def test_slow_server_is_waited_for() -> None:
    async with running_server(Fault(kind=FaultKind.SLOW, bytes=20 * MIB)) as server:
        done, _, _ = await back_up(server.endpoint(timeouts=SHORT), 0, [DISK[: 6 * MIB]])
        assert done.stats.content_bytes == 6 * MIB


async def test_request_that_is_cancelled_leaves_the_connection_to_others() -> None:
    fault = Fault(kind=FaultKind.HANG, endpoint="GET /previous_backup_time")
    async with running_server(fault) as server:
        session = await BackupSession.open(server.endpoint(), Namespace(), backup_at(0))
        stuck = asyncio.create_task(session.previous_backup_time_s())
        await session.speed_test(bytes(MIB))
        stuck.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stuck
        await session.speed_test(bytes(40 * MIB))
        assert await session.previous_backup_time_s() is None
        await session.close()
        with pytest.raises(PbsUnreachable):
            await session.previous_backup_time_s()


async def test_reply_over_its_bound_is_an_error_of_that_request_alone() -> None:
    async with running_server() as server:
        await back_up(server.endpoint(), 0, [DISK])
        reader = await BackupReader.open(server.endpoint(), Namespace(), backup_at(0))
        client = reader._session._client
        request = H2Request(method="GET", path="/speedtest", reply_bytes_max=1000)
        with pytest.raises(PbsError, match="longer than 1000 bytes"):
            await client.request(request)
        reply = await client.request(replace(request, reply_bytes_max=MIB))
        assert reply.body == b"A" * MIB
        await reader.close()
