"""The reader's endpoints with their checks."""

from __future__ import annotations

from tests.vzsim.fakepbs.raw_client import CHUNK_BYTES, make_backup, session
from vzdump_qemu.formats.pbs import chunk_digest
from vzsim.fakepbs import FakePbs

DISK = b"\1" * CHUNK_BYTES + b"end"
DISK_NAME = "drive-scsi0.img.fidx"


async def test_chunk_is_given_only_behind_an_index_that_names_it(pbs: FakePbs) -> None:
    await make_backup(pbs, DISK)
    text = chunk_digest(b"end").hex()
    async with session(pbs, "reader") as opened:
        answer = await opened.call("GET", "chunk", digest=text)
        assert (answer.status, answer.text) == (401, f"download chunk {text} not allowed")
        await opened.call("GET", "download", file_name=DISK_NAME)
        answer = await opened.call("GET", "chunk", digest=text)
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/octet-stream"
    assert pbs.counters.sent_chunk_count == 1
    assert pbs.counters.sent_chunk_bytes == len(answer.body)


async def test_file_and_chunk_that_are_missing_are_told(pbs: FakePbs) -> None:
    await make_backup(pbs, DISK)
    digest = chunk_digest(b"end")
    pbs.datastores["tank"].chunks.remove(digest)
    async with session(pbs, "reader") as opened:
        answer = await opened.call("GET", "download", file_name="no.fidx")
        path = "/datastore/tank/vm/100/2023-11-14T22:13:20Z/no.fidx"
        assert (answer.status, answer.text) == (404, f'open file "{path}" failed - not found')
        await opened.call("GET", "download", file_name=DISK_NAME)
        answer = await opened.call("GET", "chunk", digest=digest.hex())
        assert answer.status == 400
        path = f"/datastore/tank/.chunks/{digest.hex()[:4]}/{digest.hex()}"
        assert answer.text.startswith(f'reading file "{path}" failed: ')


async def test_speed_test_sends_a_mebibyte_of_letters(pbs: FakePbs) -> None:
    await make_backup(pbs, DISK)
    async with session(pbs, "reader") as opened:
        assert (await opened.call("GET", "speedtest")).body == b"A" * (1 << 20)
        names = [each["subdir"] for each in (await opened.call("GET", "")).value]
        assert names == ["chunk", "download", "speedtest"]
