"""Whole backups against the server, from the first byte to a restored disk."""

from __future__ import annotations

from tests.vzsim.fakepbs.raw_client import (
    CHUNK_BYTES,
    TIME_S,
    make_backup,
    session,
)
from vzdump_qemu.formats.pbs import (
    BlobDecoder,
    FixedIndex,
)
from vzsim.fakepbs import FakePbs

DISK = bytes(CHUNK_BYTES) + b"\1" * CHUNK_BYTES + b"end" * 1000


async def read_disk(pbs: FakePbs, backup_time_s: int = TIME_S) -> bytes:
    """What a restore finds."""
    async with session(pbs, "reader", backup_time=backup_time_s) as opened:
        raw = (await opened.call("GET", "download", file_name="drive-scsi0.img.fidx")).body
        index = FixedIndex.decode(raw)
        found = []
        for digest in index:
            answer = await opened.call("GET", "chunk", digest=digest.hex())
            assert answer.status == 200, answer.text
            found.append(bytes(BlobDecoder().decode(answer.body)))
        return b"".join(found)


async def test_backup_finished_is_read_back_byte_by_byte(pbs: FakePbs) -> None:
    await make_backup(pbs, DISK)
    assert await read_disk(pbs) == DISK
    assert pbs.session_count == 0
    assert pbs.datastores["tank"].locks.held_paths() == []
