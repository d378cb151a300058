"""The border between the pump's threads and the event loop, with a session in memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest

from vzdump_qemu.errors import BackupError, InternalError, PbsError, PbsRefused
from vzdump_qemu.formats.pbs import (
    BlobDecoder,
    CryptMode,
    DataBlob,
    EncryptionKey,
    FileKind,
    FixedGeometry,
    chunk_digest,
    zero_chunk_digest,
)
from vzdump_qemu.stores.pbs.chunk_workers import ChunkEncoder
from vzdump_qemu.stores.pbs.disk_upload import ChunkArrivals, DiskUpload
from vzdump_qemu.stores.pbs.known_chunks import KnownChunks
from vzdump_qemu.stores.pbs.sink import PbsSink
from vzdump_qemu.stores.system import start_thread

CHUNK = 4 << 20
CHANCE = random.Random(1)
PIECES = [CHANCE.randbytes(4096) * (CHUNK // 4096) for _ in range(3)]


class MemorySession:
    """As much of a session as the sink uses; names are refused before their chunk is here."""

    def __init__(self) -> None:
        self.chunks: dict[bytes, bytes] = {}
        self.named: dict[int, list[tuple[int, bytes]]] = {}
        self.closed: dict[int, dict[str, Any]] = {}
        self.refused_digest: bytes | None = None
        self.held = asyncio.Event()
        self.held.set()
        self.is_aborted = False
        self.under_way = self.under_way_most = 0

    async def upload_chunk(
        self, kind: FileKind, writer_id: int, *, digest: bytes, size_bytes: int, chunk: DataBlob
    ) -> None:
        self.under_way += 1
        self.under_way_most = max(self.under_way, self.under_way_most)
        try:
            await self.held.wait()
            await asyncio.sleep(0)
        finally:
            self.under_way -= 1
        if self.is_aborted:
            raise PbsError("ended")
        if digest == self.refused_digest:
            raise PbsRefused("no room", status=400)
        assert digest not in self.chunks
        self.chunks[digest] = chunk.to_bytes()
        assert size_bytes <= CHUNK

    async def append(
        self, kind: FileKind, writer_id: int, entries: Sequence[tuple[int, bytes]]
    ) -> None:
        assert all(digest in self.chunks for _, digest in entries)
        self.named.setdefault(writer_id, []).extend(entries)

    async def close_index(self, kind: FileKind, writer_id: int, **values: Any) -> None:
        self.closed[writer_id] = values

    def abort(self) -> None:
        self.is_aborted = True
        self.held.set()


def make_sink(
    session: MemorySession,
    *sizes: int,
    slot_count: int = 4,
    key: EncryptionKey | None = None,
) -> PbsSink:
    mode = CryptMode.NONE if key is None else CryptMode.ENCRYPT
    disks = [
        DiskUpload(
            session,  # type: ignore[arg-type]
            index_name=f"disk{number}.img.fidx",
            geometry=FixedGeometry(size_bytes=size_bytes),
            writer_id=number,
            crypt_mode=mode,
        )
        for number, size_bytes in enumerate(sizes, start=1)
    ]
    return PbsSink(
        session,  # type: ignore[arg-type]
        disks,
        arrivals=ChunkArrivals(session, KnownChunks()),  # type: ignore[arg-type]
        encoder=ChunkEncoder(key=key),
        zero_digest=zero_chunk_digest(key),
        slot_count=slot_count,
    )


async def in_threads(*functions: Any) -> list[BackupError | None]:
    async def outcome(function: Any) -> BackupError | None:
        try:
            await asyncio.wrap_future(start_thread(function, name="test"))
        except BackupError as error:
            return error
        return None

    async with asyncio.timeout(20):
        return list(await asyncio.gather(*(outcome(function) for function in functions)))


async def test_equal_chunks_of_many_threads_are_sent_once_with_few_slots() -> None:
    session = MemorySession()
    count = 12
    sink = make_sink(session, count * CHUNK, count * CHUNK, slot_count=2)

    def put(disk_index: int, first: int) -> None:
        for chunk_index in range(first, count, 2):
            piece = bytearray(PIECES[chunk_index % 3])
            assert not sink.put(disk_index, chunk_index * CHUNK, memoryview(piece))
            # The buffer is ours again.
            piece[:] = bytes(CHUNK)

    jobs = [lambda d=d, f=f: put(d, f) for d in range(2) for f in range(2)]
    assert await in_threads(*jobs) == [None] * 4
    assert await in_threads(sink.finish) == [None]
    assert sink.entries is not None
    assert [entry.size_bytes for entry in sink.entries] == [count * CHUNK] * 2
    assert len(session.chunks) == 3
    assert session.under_way_most <= 2
    for digest, encoded in session.chunks.items():
        assert chunk_digest(BlobDecoder().decode(encoded)) == digest
    assert [len(named) for named in session.named.values()] == [count] * 2
    stats = sink.stats()
    assert (stats.chunk_count, stats.known_count) == (3, 2 * count - 3)
    sink.close()
    assert not session.is_aborted


@pytest.mark.parametrize("key", [None, EncryptionKey(bytes(32))], ids=["plain", "encrypted"])
async def test_zeroes_cost_one_chunk_and_a_short_end_its_own(key: EncryptionKey | None) -> None:
    session = MemorySession()
    size_bytes = 3000 * CHUNK + 512
    sink = make_sink(session, size_bytes, key=key)

    def put() -> None:
        assert sink.put(0, 0, memoryview(bytes(CHUNK))) == CHUNK
        sink.put_zeroes(0, CHUNK, size_bytes - CHUNK)
        sink.finish()

    assert await in_threads(put) == [None]
    assert set(session.chunks) == {zero_chunk_digest(key), chunk_digest(bytes(512), key)}
    assert session.closed[1]["chunk_count"] == 3001
    assert sorted(offset for offset, _ in session.named[1]) == [n * CHUNK for n in range(3001)]


async def test_refused_chunk_fails_the_next_piece_and_the_end() -> None:
    session = MemorySession()
    session.refused_digest = chunk_digest(PIECES[0])
    sink = make_sink(session, 40 * CHUNK)

    def put() -> None:
        for chunk_index in range(40):
            sink.put(0, chunk_index * CHUNK, memoryview(PIECES[0]))

    for job in (put, sink.finish):
        [error] = await in_threads(job)
        assert isinstance(error, PbsRefused)
    sink.close()
    await asyncio.sleep(0)
    assert session.is_aborted
    assert sink.entries is None


@pytest.mark.parametrize("what", ["put", "finish"])
async def test_interrupt_wakes_threads_that_wait(what: str) -> None:
    session = MemorySession()
    session.held.clear()
    sink = make_sink(session, 40 * CHUNK, slot_count=2)

    def put() -> None:
        for chunk_index in range(1 if what == "finish" else 9):
            sink.put(0, chunk_index * CHUNK, memoryview(PIECES[chunk_index % 3]))
        sink.finish()

    waiting = asyncio.create_task(in_threads(put))
    while not session.under_way:
        await asyncio.sleep(0)
    sink.interrupt()
    sink.interrupt()
    [error] = await waiting
    assert isinstance(error, PbsError)
    sink.close()


async def test_end_of_the_loop_ends_a_thread_that_finishes() -> None:
    sinks: list[PbsSink] = []

    async def begin_and_leave() -> None:
        session = MemorySession()
        sinks.append(make_sink(session, CHUNK))

    def run_loop() -> None:
        asyncio.run(begin_and_leave())

    assert await in_threads(run_loop) == [None]
    [error] = await in_threads(sinks[0].finish)
    assert isinstance(error, PbsError)
    [error] = await in_threads(lambda: sinks[0].put(0, 0, memoryview(PIECES[0])))
    assert isinstance(error, PbsError)
    sinks[0].close()


async def test_unchanged_part_without_a_base_is_a_bug_of_ours() -> None:
    sink = make_sink(MemorySession(), CHUNK)
    [error] = await in_threads(lambda: sink.put_unchanged(0, 0, CHUNK))
    assert isinstance(error, InternalError)
    sink.close()


async def test_buffers_that_are_used_again_keep_what_is_under_way() -> None:
    session = MemorySession()
    count = 12
    sink = make_sink(session, count * CHUNK, slot_count=3)
    pieces = [bytes([number]) + PIECES[number % 3][1:] for number in range(1, count + 1)]

    def put(first: int) -> None:
        for chunk_index in range(first, count, 2):
            sink.put(0, chunk_index * CHUNK, memoryview(pieces[chunk_index]))

    assert await in_threads(lambda: put(0), lambda: put(1)) == [None, None]
    assert await in_threads(sink.finish) == [None]
    decoder = BlobDecoder()
    found = [bytes(decoder.decode(session.chunks[digest])) for _, digest in session.named[1]]
    places = [offset_bytes // CHUNK for offset_bytes, _ in session.named[1]]
    assert sorted(places) == list(range(count))
    assert all(content == pieces[place] for place, content in zip(places, found, strict=True))
