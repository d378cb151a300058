"""Disks into a backup of a server: the pump's sink.

Owns the border between the pump's threads, which hash, compress and encrypt, and the event loop,
which sends. What is under way is bounded by slots: one is taken before a piece is looked at and
given back when the server has confirmed all of it, so a thread that has claimed a chunk never
waits for those that wait for the chunk. Source: PBS formats, sections 4 and 6.
"""

from __future__ import annotations

import asyncio
import mmap
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError as FutureCancelled
from contextlib import suppress
from typing import Any, Final, TypeAlias

from vzdump_qemu.disk_ports import PIECE_BYTES
from vzdump_qemu.errors import BackupError, InternalError, PbsError
from vzdump_qemu.formats.pbs import ManifestEntry, layout
from vzdump_qemu.stores.pbs.backup_session import BackupSession
from vzdump_qemu.stores.pbs.chunk_workers import ChunkEncoder, is_zero
from vzdump_qemu.stores.pbs.disk_upload import (
    BATCH_COUNT,
    ChunkArrivals,
    ChunkName,
    DiskUpload,
    UploadStats,
)

assert PIECE_BYTES == layout.CHUNK_BYTES

# With a chunk each: what is under way on a line while the next are prepared.
SLOT_COUNT: Final = 16

_Work: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


class PbsSink:
    """`vzdump_qemu.disk_ports.DiskSink` that sends chunks over a session.

    Made on the event loop that the session lives on, which has to run until `close`.

    Args:
        disks: by disk index.
        zero_digest: of a whole chunk of zeroes.
    """

    def __init__(
        self,
        session: BackupSession,
        disks: Sequence[DiskUpload],
        *,
        arrivals: ChunkArrivals,
        encoder: ChunkEncoder,
        zero_digest: bytes,
        slot_count: int = SLOT_COUNT,
    ) -> None:
        self._session = session
        self._disks = tuple(disks)
        self._arrivals = arrivals
        self._encoder = encoder
        self._zero_digest = zero_digest
        self._slot_count = self._free_count = slot_count
        self._changed = threading.Condition()
        self._failure: BackupError | None = None
        self._is_interrupted = False
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._entries: tuple[ManifestEntry, ...] | None = None
        self._unchanged_bytes = 0
        # Of chunks that the server has confirmed; taken and given back by several threads.
        self._buffers: deque[memoryview] = deque()

    @property
    def entries(self) -> tuple[ManifestEntry, ...] | None:
        """What the manifest says of the disks; None before `finish` has returned."""
        return self._entries

    def stats(self) -> UploadStats:
        """What was sent so far."""
        named_count = sum(disk.named_count for disk in self._disks)
        return UploadStats(
            chunk_count=self._arrivals.chunk_count,
            content_bytes=self._arrivals.content_bytes,
            sent_bytes=self._arrivals.sent_bytes,
            known_count=max(0, named_count - self._arrivals.chunk_count),
            unchanged_bytes=self._unchanged_bytes,
        )

    def put(self, disk_index: int, offset_bytes: int, data: memoryview) -> int:
        """As the port says. Raises PbsError."""
        is_all_zero = is_zero(data)
        self._take_slot()
        self._put_slotted(self._disks[disk_index], offset_bytes, data, is_all_zero=is_all_zero)
        return len(data) if is_all_zero else 0

    def put_zeroes(self, disk_index: int, offset_bytes: int, length_bytes: int) -> None:
        """As the port says; nothing is read, hashed or sent but the first chunk of zeroes."""
        disk = self._disks[disk_index]
        whole_end = offset_bytes + length_bytes - length_bytes % layout.CHUNK_BYTES
        step_bytes = BATCH_COUNT * layout.CHUNK_BYTES
        for begin in range(offset_bytes, whole_end, step_bytes):
            end = min(begin + step_bytes, whole_end)
            first = begin // layout.CHUNK_BYTES
            self._take_slot()
            self._put_whole_zeroes(disk, range(first, first + (end - begin) // layout.CHUNK_BYTES))
        if rest_bytes := length_bytes % layout.CHUNK_BYTES:
            self._take_slot()
            rest = memoryview(bytes(rest_bytes))
            self._put_slotted(disk, whole_end, rest, is_all_zero=True)

    def put_unchanged(self, disk_index: int, offset_bytes: int, length_bytes: int) -> None:
        """As the port says; the server's copy of the base has it already."""
        self._check()
        if not self._disks[disk_index].has_base:
            raise InternalError("a disk without a base has nothing that is unchanged")
        with self._changed:
            self._unchanged_bytes += length_bytes

    def finish(self) -> None:
        """As the port says: every chunk is confirmed and every index closed. Raises PbsError."""
        with self._changed:
            while self._free_count < self._slot_count and self._failure is None:
                if self._is_interrupted:
                    break
                self._changed.wait()
        self._check()
        work = self._close_disks()
        try:
            closing = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError as error:
            work.close()
            raise PbsError("the upload was ended") from error
        try:
            # Bounded by the times of the requests; an interrupt ends the session and so this too.
            self._entries = closing.result()
        except FutureCancelled as error:
            raise PbsError("the upload was ended") from error

    def interrupt(self) -> None:
        """As the port says; the connection ends, and the server forgets the backup."""
        with self._changed:
            self._is_interrupted = True
            self._changed.notify_all()
        self._abort()

    def close(self) -> None:
        """As the port says."""
        if self._entries is None:
            self.interrupt()

    def _put_slotted(
        self, disk: DiskUpload, offset_bytes: int, data: memoryview, *, is_all_zero: bool
    ) -> None:
        """Prepare one chunk and hand it over, with the slot that was taken for it."""
        chunk_index = offset_bytes // layout.CHUNK_BYTES
        if is_all_zero and len(data) == layout.CHUNK_BYTES:
            self._put_whole_zeroes(disk, range(chunk_index, chunk_index + 1))
            return
        is_handed = False
        try:
            digest = self._encoder.digest(data)
            self._send(disk, [(chunk_index, digest)], data)
            is_handed = True
        finally:
            if not is_handed:
                self._give_slot()

    def _put_whole_zeroes(self, disk: DiskUpload, chunk_indexes: range) -> None:
        is_handed = False
        try:
            chunks = [(chunk_index, self._zero_digest) for chunk_index in chunk_indexes]
            self._send(disk, chunks, None)
            is_handed = True
        finally:
            if not is_handed:
                self._give_slot()

    def _send(self, disk: DiskUpload, chunks: Sequence[ChunkName], data: memoryview | None) -> None:
        """Name chunks of one digest, and send the content (zeroes if None) if nobody has."""
        digest = chunks[0][1]
        if not self._arrivals.claim(digest):
            self._hand_over(lambda: self._name(disk, chunks))
            return
        content = memoryview(bytes(layout.CHUNK_BYTES)) if data is None else data
        size_bytes = len(content)
        buffer = self._take_buffer()
        encoded = self._encoder.encode(content, buffer)

        async def deliver() -> None:
            await self._arrivals.deliver(disk.writer_id, digest, encoded, size_bytes=size_bytes)
            # Only where all was well: otherwise somebody may still be sending from it.
            self._buffers.append(buffer)
            await disk.name(chunks)

        self._hand_over(deliver)

    def _take_buffer(self) -> memoryview:
        try:
            return self._buffers.pop()
        except IndexError:
            # Never more than slots, as each holds one at most.
            return memoryview(mmap.mmap(-1, layout.CHUNK_BYTES))

    async def _name(self, disk: DiskUpload, chunks: Sequence[ChunkName]) -> None:
        await self._arrivals.wait(chunks[0][1])
        await disk.name(chunks)

    async def _close_disks(self) -> tuple[ManifestEntry, ...]:
        return tuple([await disk.close() for disk in self._disks])

    def _hand_over(self, work: _Work) -> None:
        self._check()
        try:
            self._loop.call_soon_threadsafe(self._start, work)
        except RuntimeError as error:
            raise PbsError("the upload was ended") from error

    def _start(self, work: _Work) -> None:
        task = asyncio.ensure_future(work())
        self._tasks.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        failure: BackupError | None = None
        if task.cancelled():
            failure = PbsError("the upload was ended")
        elif (error := task.exception()) is not None:
            failure = (
                error
                if isinstance(error, BackupError)
                else InternalError(f"uploading ended by {error!r}")
            )
        with self._changed:
            self._free_count += 1
            if failure is not None and self._failure is None:
                self._failure = failure
            self._changed.notify_all()
        if failure is not None:
            self._arrivals.abandon()

    def _take_slot(self) -> None:
        with self._changed:
            while not self._free_count and self._failure is None and not self._is_interrupted:
                self._changed.wait()
            self._raise_failure()
            self._free_count -= 1

    def _give_slot(self) -> None:
        with self._changed:
            self._free_count += 1
            self._changed.notify_all()

    def _check(self) -> None:
        with self._changed:
            self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._is_interrupted:
            raise PbsError("the upload was ended")

    def _abort(self) -> None:
        # A loop that is gone has taken the connection with it.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        self._session.abort()
        self._arrivals.abandon()
