"""Disks moved on the event loop alone: the server ends with what the pump would have sent."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from tests.stores.pbs.running_server import (
    CONFIGS,
    PatternDisk,
    SkippingClock,
    backup_at,
    running_server,
)
from vzdump_qemu.disk_ports import DiskOrigin, DiskReader
from vzdump_qemu.errors import DiskReadError, Interrupted, PbsError
from vzdump_qemu.formats.pbs import Namespace
from vzdump_qemu.stores.pbs import BackupReader, PbsDisk, PbsEndpoint, PbsUpload, PbsUploader
from vzdump_qemu.stores.pbs.inline_moving import inline_moving
from vzsim.fakepbs import Fault, FaultKind

CHUNK = 4 << 20
CHANCE = random.Random(3)
CONTENT = CHANCE.randbytes(CHUNK) + bytes(CHUNK) + CHANCE.randbytes(70_000)


@dataclass
class Disks:
    """What is opened, and whether it was let go of."""

    contents: Sequence[bytes]
    changed: Sequence[tuple[int, int]] | None = None
    fails_at: int | None = None
    opened: list[PatternDisk] = field(default_factory=list)
    closed_count: int = 0

    async def open(self, origin: DiskOrigin) -> DiskReader:
        number = int(origin.export_name)
        if number == self.fails_at:
            raise DiskReadError("there is no such export")
        disks = self

        class Disk(PatternDisk):
            def close(self) -> None:
                disks.closed_count += 1

        changed = self.changed if origin.bitmap_name else None
        self.opened.append(Disk(self.contents[number], changed=changed))
        return self.opened[-1]


async def _open(
    endpoint: PbsEndpoint, number: int, disks: Disks, *, base: bytes = b""
) -> tuple[PbsUpload, list[DiskOrigin]]:
    def refuse(origin: DiskOrigin) -> DiskReader:
        raise AssertionError("a thread would open this")

    uploader = PbsUploader(
        endpoint,
        clock=SkippingClock(),
        open_nbd=refuse,
        begin_moving=inline_moving(disks.open, bytes_per_s=1e6),
    )
    wanted = [
        PbsDisk(device_id=f"drive-scsi{index}", size_bytes=len(content), base_csum=base)
        for index, content in enumerate(disks.contents)
    ]
    upload = await uploader.open(backup_at(number), wanted, configs=CONFIGS)
    origins = [
        DiskOrigin(
            device_id=disk.device_id,
            size_bytes=disk.size_bytes,
            nbd_socket="memory",
            export_name=str(index),
            bitmap_name="changes" if base else "",
        )
        for index, disk in enumerate(wanted)
    ]
    return upload, origins


async def _restored(endpoint: PbsEndpoint, number: int) -> bytes:
    reader = await BackupReader.open(endpoint, Namespace(), backup_at(number))
    try:
        index = await reader.read_index("drive-scsi0.img.fidx")
        proof = await reader.verify_disk("drive-scsi0.img.fidx")
        assert proof.size_bytes == index.geometry.size_bytes
        return bytes(index.digests)
    finally:
        await reader.close()


async def test_disks_are_sent_whole_then_what_changed() -> None:
    async with running_server() as server:
        endpoint = server.endpoint()
        upload, origins = await _open(endpoint, 1, Disks([CONTENT, b"x" * 512]))
        transfer = await upload.begin(origins)
        await transfer.finish()
        progress = transfer.progress()
        assert progress.done_bytes == progress.total_bytes == len(CONTENT) + 512
        first = await upload.finish()
        await upload.abort()
        digests = await _restored(endpoint, 1)

        sums = {entry.file_name: entry.csum for entry in first.manifest.entries}
        base = sums["drive-scsi0.img.fidx"]
        changed = bytearray(CONTENT)
        changed[-512:] = bytes(512)
        disks = Disks([bytes(changed)], changed=[(len(CONTENT) - 512, len(CONTENT))])
        server.pbs.counters.reset()
        upload, origins = await _open(endpoint, 2, disks, base=base)
        transfer = await upload.begin(origins)
        await transfer.finish()
        assert transfer.progress().reused_bytes == 2 * CHUNK
        second = await upload.finish()
        await upload.abort()
        assert second.stats.chunk_count == server.pbs.counters.appended_chunk_count == 1
        assert disks.opened[0].read_bytes == 70_000 and disks.closed_count == 1
        assert (await _restored(endpoint, 2))[:64] == digests[:64]


async def test_disk_that_cannot_be_opened_lets_go_of_the_others() -> None:
    async with running_server() as server:
        disks = Disks([b"1" * 512, b"2" * 512], fails_at=1)
        upload, origins = await _open(server.endpoint(), 1, disks)
        with pytest.raises(DiskReadError, match="no such export"):
            await upload.begin(origins)
        assert disks.closed_count == 1
        await upload.abort()


async def test_server_that_refuses_a_chunk_is_the_failure() -> None:
    fault = Fault(kind=FaultKind.REPLY, endpoint="POST /fixed_chunk", text="no room")
    async with running_server(fault) as server:
        disks = Disks([CONTENT])
        upload, origins = await _open(server.endpoint(), 1, disks)
        transfer = await upload.begin(origins)
        with pytest.raises(PbsError, match="no room"):
            await transfer.finish()
        assert str(transfer.failure()) == "no room" and disks.closed_count == 1
        await upload.abort()


async def test_cancelled_transfer_ends_and_lets_go() -> None:
    fault = Fault(kind=FaultKind.HANG, endpoint="POST /fixed_chunk")
    async with running_server(fault) as server:
        disks = Disks([CONTENT])
        upload, origins = await _open(server.endpoint(), 1, disks)
        transfer = await upload.begin(origins)
        while not server.pbs.counters.requests["POST /fixed_chunk"]:
            await asyncio.sleep(0)
        await transfer.cancel()
        with pytest.raises(Interrupted):
            await transfer.finish()
        assert transfer.failure() is None and disks.closed_count == 1
        await upload.abort()
