"""The indexes of a backup, and the chunks that have to arrive before an index may name them.

Owns, on the event loop, the order that the protocol asks for (a chunk is named only after the
server has it), batches of names, and the sums at the end. What the chunks are is prepared in
threads by `sink`. Source: PBS formats, section 4.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from vzdump_qemu.errors import PbsError
from vzdump_qemu.formats.pbs import (
    CryptMode,
    DataBlob,
    FileKind,
    FixedGeometry,
    FixedIndex,
    FixedIndexBuilder,
    ManifestEntry,
)
from vzdump_qemu.stores.pbs.backup_session import BackupSession
from vzdump_qemu.stores.pbs.known_chunks import KnownChunks

# 80 KB of JSON, of the 512 that a server takes.
BATCH_COUNT: Final = 1024

ChunkName: TypeAlias = tuple[int, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadStats:
    """What a backup sent.

    Attributes:
        chunk_count: chunks sent.
        content_bytes: their content.
        sent_bytes: their encoded length, what went over the line but for its own marks.
        known_count: chunks that were only named, zeroes among them.
        unchanged_bytes: neither read nor named, as the base has them.
    """

    chunk_count: int = 0
    content_bytes: int = 0
    sent_bytes: int = 0
    known_count: int = 0
    unchanged_bytes: int = 0


class ChunkArrivals:
    """Which chunks the server has, and which are on their way there."""

    def __init__(self, session: BackupSession, known: KnownChunks) -> None:
        self._session = session
        self._known = known
        self._claimed: set[bytes] = set()
        self._arrived: set[bytes] = set()
        self._awaited: dict[bytes, asyncio.Future[None]] = {}
        self._lock = threading.Lock()
        self._is_abandoned = False
        self._content_bytes = self._sent_bytes = 0

    @property
    def chunk_count(self) -> int:
        """Chunks that were sent and confirmed."""
        return len(self._arrived)

    @property
    def content_bytes(self) -> int:
        return self._content_bytes

    @property
    def sent_bytes(self) -> int:
        return self._sent_bytes

    def claim(self, digest: bytes) -> bool:
        """Whether the caller has to deliver this chunk, as nobody has; for any thread."""
        if digest in self._known:
            return False
        with self._lock:
            if digest in self._claimed:
                return False
            self._claimed.add(digest)
            return True

    async def deliver(
        self, writer_id: int, digest: bytes, chunk: DataBlob, *, size_bytes: int
    ) -> None:
        """Send a claimed chunk."""
        try:
            await self._session.upload_chunk(
                FileKind.FIXED_INDEX, writer_id, digest=digest, size_bytes=size_bytes, chunk=chunk
            )
        except PbsError as error:
            if (waiter := self._awaited.pop(digest, None)) is not None and not waiter.done():
                waiter.set_exception(error)
            raise
        self._arrived.add(digest)
        self._content_bytes += size_bytes
        self._sent_bytes += chunk.encoded_bytes
        if (waiter := self._awaited.pop(digest, None)) is not None and not waiter.done():
            waiter.set_result(None)

    async def wait(self, digest: bytes) -> None:
        """Return once the server has the chunk, which was claimed or is known."""
        if digest in self._arrived or digest in self._known:
            return
        if self._is_abandoned:
            raise PbsError("the upload was ended")
        waiter = self._awaited.get(digest)
        if waiter is None:
            waiter = self._awaited[digest] = asyncio.get_running_loop().create_future()
        await asyncio.shield(waiter)

    def abandon(self) -> None:
        """Nothing more arrives: whoever waits is cancelled. From the event loop only."""
        self._is_abandoned = True
        for waiter in self._awaited.values():
            waiter.cancel()
        self._awaited.clear()


class DiskUpload:
    """The index of one disk in the making.

    Args:
        writer_id: of the server's writer.
        base: the index that the server's writer began as a copy of; None for an empty one.
    """

    def __init__(
        self,
        session: BackupSession,
        *,
        index_name: str,
        geometry: FixedGeometry,
        writer_id: int,
        crypt_mode: CryptMode,
        base: FixedIndex | None = None,
    ) -> None:
        self.index_name = index_name
        self.geometry = geometry
        self.writer_id = writer_id
        self.has_base = base is not None
        self._session = session
        self._crypt_mode = crypt_mode
        self._builder = FixedIndexBuilder(geometry, base=base)
        self._batch: list[ChunkName] = []
        self._named_count = 0

    @property
    def named_count(self) -> int:
        """Chunks named so far."""
        return self._named_count

    async def name(self, chunks: Sequence[ChunkName]) -> None:
        """Name chunks that the server has: index in the disk, and digest."""
        for chunk_index, digest in chunks:
            self._builder.set_digest(chunk_index, digest)
            self._batch.append((chunk_index * self.geometry.chunk_bytes, digest))
        self._named_count += len(chunks)
        while len(self._batch) >= BATCH_COUNT:
            await self._append(BATCH_COUNT)

    async def close(self) -> ManifestEntry:
        """End the index; its entry for the manifest."""
        while self._batch:
            await self._append(BATCH_COUNT)
        index_csum = self._builder.index_csum()
        size_bytes = self.geometry.size_bytes
        await self._session.close_index(
            FileKind.FIXED_INDEX,
            self.writer_id,
            chunk_count=self._named_count,
            size_bytes=size_bytes,
            index_csum=index_csum,
        )
        return ManifestEntry(
            file_name=self.index_name,
            size_bytes=size_bytes,
            csum=index_csum,
            crypt_mode=self._crypt_mode,
        )

    async def _append(self, count: int) -> None:
        # Taken out before the wait: others may add to the batch meanwhile.
        part, self._batch = self._batch[:count], self._batch[count:]
        await self._session.append(FileKind.FIXED_INDEX, self.writer_id, part)
