"""The port to backup servers: which cause comes first, and that every end is an end."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.stores.pbs.running_server import (
    GROUP,
    PatternDisk,
    RunningServer,
    SkippingClock,
    backup_at,
    running_server,
)
from vzdump_qemu.disk_ports import DiskOrigin, DiskReader
from vzdump_qemu.errors import BackupError, DiskReadError, PbsError, PbsKeyError
from vzdump_qemu.formats.pbs import Repository
from vzdump_qemu.formats.pbs.repository import AuthId
from vzdump_qemu.pbs_ports import DiskSize
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.ports import DiskTransfer
from vzdump_qemu.secret import Secret
from vzdump_qemu.stores.pbs.uploads import ClientUpload, ClientUploads
from vzsim.fakepbs import DEFAULT_TOKEN, Fault, FaultKind

CONTENT = b"".join(bytes([number]) * (4 << 20) for number in range(1, 9))


class BrokenDisk(PatternDisk):
    """Cannot be read behind its first chunk."""

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        if offset_bytes:
            raise DiskReadError("unable to read disk 'drive-scsi0' - Input/output error")
        super().read_into(offset_bytes, buffer)


def _target(server: RunningServer, *, key_path: str = "") -> PbsTarget:
    return PbsTarget(
        repository=Repository(
            datastore="tank",
            host="127.0.0.1",
            port=server.port,
            auth_id=AuthId.parse(DEFAULT_TOKEN.auth_id),
        ),
        password=Secret(DEFAULT_TOKEN.secret),
        fingerprint=server.listener.fingerprint,
        key_path=key_path,
    )


def _uploads(disk: type[PatternDisk] = PatternDisk) -> ClientUploads:
    def open_nbd(origin: DiskOrigin) -> DiskReader:
        return disk(CONTENT)

    return ClientUploads(clock=SkippingClock(), open_nbd=open_nbd)


async def _begin(
    server: RunningServer, uploads: ClientUploads, *, rate_limit_bytes_per_s: int = 0
) -> tuple[ClientUpload, DiskTransfer]:
    upload = await uploads.connect(_target(server), backup_at(1))
    size = DiskSize(device_id="drive-scsi0", size_bytes=len(CONTENT))
    await upload.begin_indexes([size], [("qemu-server.conf", b"scsi0: x\n")])
    origin = DiskOrigin(
        device_id="drive-scsi0", size_bytes=len(CONTENT), nbd_socket="memory", export_name="0"
    )
    transfer = await upload.begin([origin], rate_limit_bytes_per_s=rate_limit_bytes_per_s)
    return upload, transfer


async def _failure_of(transfer: DiskTransfer) -> BackupError:
    with pytest.raises(BackupError) as caught:
        await asyncio.wait_for(transfer.finish(), 30)
    return caught.value


async def test_disk_that_cannot_be_read_is_no_failure_of_the_server() -> None:
    async with running_server() as server:
        upload, transfer = await _begin(server, _uploads(BrokenDisk))
        assert isinstance(await _failure_of(transfer), DiskReadError)
        # The connection has ended with it, which is what follows and no cause.
        assert upload.failure() is None
        await upload.abort()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind=FaultKind.CUT, endpoint="GET /backup", bytes=3000),
        Fault(kind=FaultKind.REPLY, endpoint="POST /fixed_chunk", text="No space left on device"),
        Fault(kind=FaultKind.RESET, endpoint="POST /fixed_chunk"),
    ],
    ids=lambda fault: fault.kind.value,
)
async def test_server_that_fails_is_the_first_cause(fault: Fault) -> None:
    async with running_server(fault) as server:
        upload, transfer = await _begin(server, _uploads())
        error = await _failure_of(transfer)
        assert isinstance(error, PbsError) and "by us" not in str(error)
        assert str(upload.failure()) == str(error)
        await upload.abort()
        # The server learns of the end of a connection from the connection.
        async with asyncio.timeout(10):
            while server.pbs.session_count:
                await asyncio.sleep(0)
        assert server.pbs.datastores["tank"].files.names(GROUP.path) in ([], ["owner"])


async def test_connection_that_ends_between_two_chunks_is_seen_without_sending() -> None:
    async with running_server() as server:
        upload = await _uploads().connect(_target(server), backup_at(1))
        assert upload.failure() is None
        await server.listener.close()
        while upload.failure() is None:
            await asyncio.sleep(0.01)
        assert "by us" not in str(upload.failure())
        await upload.abort()


async def test_cancel_and_abort_end_soon_while_the_server_is_silent() -> None:
    fault = Fault(kind=FaultKind.HANG, endpoint="POST /fixed_chunk", count=0)
    async with running_server(fault) as server:
        upload, transfer = await _begin(server, _uploads())
        while not server.pbs.counters.requests["POST /fixed_chunk"]:
            await asyncio.sleep(0.01)
        began_s = time.monotonic()
        await transfer.cancel()
        for _ in range(3):
            await upload.abort()
        assert time.monotonic() - began_s < 5
        assert transfer.failure() is None


async def test_abort_raises_nothing_whatever_came_before() -> None:
    async with running_server() as server:
        upload, transfer = await _begin(server, _uploads())
        await transfer.finish()
        await upload.finish()
        await upload.abort()
        await server.listener.close()
        await upload.abort()


async def test_vm_without_disks_is_a_backup_of_its_configuration() -> None:
    async with running_server() as server:
        upload = await _uploads().connect(_target(server), backup_at(1))
        assert await upload.begin_indexes([], [("qemu-server.conf", b"memory: 1\n")]) == ()
        transfer = await upload.begin([], rate_limit_bytes_per_s=0)
        await transfer.finish()
        finished = await upload.finish()
        assert finished.backup_id and finished.sent_bytes == 0
        await upload.abort()


async def test_rate_limit_holds_back_reading() -> None:
    async with running_server() as server:
        clock = SkippingClock()

        def open_nbd(origin: DiskOrigin) -> DiskReader:
            return PatternDisk(CONTENT)

        uploads = ClientUploads(clock=clock, open_nbd=open_nbd)
        began_s = time.monotonic()
        upload, transfer = await _begin(server, uploads, rate_limit_bytes_per_s=len(CONTENT) * 2)
        await transfer.finish()
        assert time.monotonic() - began_s > 0.3
        await upload.abort()


async def test_backup_id_names_the_content_that_the_next_run_finds() -> None:
    async with running_server() as server:
        upload, transfer = await _begin(server, _uploads())
        assert upload.previous.backup_id == "" and upload.previous.refusal
        await transfer.finish()
        finished = await upload.finish()
        await upload.abort()
        later = await _uploads().connect(_target(server), backup_at(2))
        assert later.previous.backup_id == finished.backup_id
        await later.abort()


async def test_missing_key_is_refused_before_the_server_is_asked(tmp_path: Path) -> None:
    async with running_server() as server:
        with pytest.raises(PbsKeyError, match="unable to read encryption key"):
            await _uploads().check(_target(server, key_path=str(tmp_path / "absent")))
        assert server.pbs.counters.connection_count == 0


async def test_index_that_may_have_been_begun_is_not_begun_again() -> None:
    """Only a failed check of the server is sure to have begun nothing; two would never finish."""
    async with running_server() as server:
        upload, transfer = await _begin(server, _uploads())
        await transfer.finish()
        await upload.finish()
        await upload.abort()
        server.pbs.faults.add(
            Fault(kind=FaultKind.REPLY, endpoint="POST /fixed_index", status=500, text="odd")
        )
        later = await _uploads().connect(_target(server), backup_at(2))
        with pytest.raises(PbsError, match="odd"):
            await later.begin_indexes(
                [DiskSize(device_id="drive-scsi0", size_bytes=len(CONTENT))], []
            )
        await later.abort()
