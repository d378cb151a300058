"""Moves disks from their readers into a sink, with a few threads and a few buffers.

Owns: which thread does what, the rate limit over all disks, the figures of progress, the first
failure, and a bounded end. Memory is one piece per thread, whatever the disks hold. Leaves to
`stores.disk_pieces` what is read, to the `DiskReader` how, and to the `DiskSink` what becomes of
it. Threads, as all the time goes into copying inside the kernel, where they run side by side.
"""

from __future__ import annotations

import asyncio
import mmap
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import suppress
from typing import Final

import numpy as np

from vzdump_qemu.disk_ports import PIECE_BYTES, DiskReader, DiskSink, ExtentKind, TransferProgress
from vzdump_qemu.errors import BackupError, InternalError, Interrupted
from vzdump_qemu.ports import Clock
from vzdump_qemu.stores.disk_pieces import KnownPieces, Piece, ReadPiece, cut_pieces
from vzdump_qemu.stores.rate_limit import RateLimit
from vzdump_qemu.stores.system import start_thread, wait_done

# One writes, the others receive; measured, more of them only take memory.
WORKER_COUNT: Final = 3
# All that waits is woken; only a read that the kernel holds on to takes longer.
_CANCEL_GRACE_S: Final = 10.0


class DiskPump:
    """`vzdump_qemu.ports.DiskTransfer`: disks on their way, from construction on.

    Args:
        readers: by disk index; owned from now on, closed at the end.
        sink: owned from now on; finished if all went well, and closed in any case.
        rate_limit_bytes_per_s: of reading, over all disks; 0 means unlimited.
        worker_count: threads, each with a buffer of `PIECE_BYTES`.

    Attributes:
        ended: done when every thread has ended and everything is closed. Holds an exception only
            for a bug of ours.
    """

    def __init__(
        self,
        readers: Sequence[DiskReader],
        sink: DiskSink,
        *,
        clock: Clock,
        rate_limit_bytes_per_s: int = 0,
        worker_count: int = WORKER_COUNT,
    ) -> None:
        self._readers = tuple(readers)
        self._sink = sink
        self._rate_limit = RateLimit(rate_limit_bytes_per_s, clock)
        self._total_bytes = sum(reader.size_bytes for reader in readers)
        self._done_bytes = self._read_bytes = self._zero_bytes = self._reused_bytes = 0
        self._failure: BackupError | None = None
        self._halted = threading.Event()
        self._lock = threading.Lock()
        self._plan_lock = threading.Lock()
        self._plan = self._all_pieces()
        self._worker_count = worker_count
        self.ended: Future[None] = start_thread(self._run, name="disk-pump")

    def progress(self) -> TransferProgress:
        """As the port says."""
        with self._lock:
            return TransferProgress(
                total_bytes=self._total_bytes,
                done_bytes=self._done_bytes,
                read_bytes=self._read_bytes,
                zero_bytes=self._zero_bytes,
                reused_bytes=self._reused_bytes,
            )

    def failure(self) -> BackupError | None:
        """As the port says."""
        return self._failure

    async def finish(self) -> None:
        """As the port says; raises Interrupted if it was cancelled meanwhile.

        Cancelled: the transfer goes on.
        """
        await wait_done(self.ended)
        self.ended.result()
        if self._failure is not None:
            raise self._failure
        if self._halted.is_set():
            raise Interrupted

    async def cancel(self) -> None:
        """As the port says. A transfer that has ended stays what it is."""
        if self.ended.done():
            return
        self._halt(None)
        with suppress(TimeoutError):
            await asyncio.wait_for(wait_done(self.ended), _CANCEL_GRACE_S)

    def _all_pieces(self) -> Iterator[tuple[int, Piece]]:
        for disk_index, reader in enumerate(self._readers):
            for piece in cut_pieces(reader):
                yield disk_index, piece

    def _next_piece(self) -> tuple[int, Piece] | None:
        with self._plan_lock:
            return next(self._plan, None)

    def _run(self) -> None:
        works = [start_thread(self._work, name="disk-mover") for _ in range(self._worker_count)]
        wait(works, return_when=FIRST_EXCEPTION)
        for work in works:
            if work.done() and (bug := work.exception()) is not None:
                self._halt(InternalError(f"moving the disks ended by {bug!r}"))
        wait(works)
        try:
            if not self._halted.is_set():
                self._sink.finish()
        except BackupError as error:
            self._halt(error)
        finally:
            self._sink.close()
            for reader in self._readers:
                reader.close()

    def _work(self) -> None:
        # Anonymous memory: aligned to pages, and given back with the last view of it.
        buffer = memoryview(mmap.mmap(-1, PIECE_BYTES))
        try:
            while not self._halted.is_set() and (item := self._next_piece()) is not None:
                match item:
                    case disk_index, KnownPieces() as known:
                        self._put_known(disk_index, known)
                    case disk_index, ReadPiece() as piece:
                        self._move(disk_index, piece, buffer)
        except BackupError as error:
            self._halt(error)

    def _move(self, disk_index: int, piece: ReadPiece, buffer: memoryview) -> None:
        reader = self._readers[disk_index]
        wanted_bytes = sum(end - begin for begin, end in piece.reads)
        if self._halted.wait(self._rate_limit.reserve(wanted_bytes)):
            return
        data = buffer[: piece.length_bytes]
        at = 0
        for begin, end in piece.reads:
            _clear(data, at, begin)
            reader.read_into(piece.offset_bytes + begin, data[begin:end])
            at = end
        _clear(data, at, piece.length_bytes)
        zero_bytes = self._sink.put(disk_index, piece.offset_bytes, data)
        with self._lock:
            self._done_bytes += piece.length_bytes
            self._read_bytes += wanted_bytes
            self._zero_bytes += zero_bytes

    def _put_known(self, disk_index: int, known: KnownPieces) -> None:
        if known.kind is ExtentKind.ZERO:
            self._sink.put_zeroes(disk_index, known.offset_bytes, known.length_bytes)
        else:
            self._sink.put_unchanged(disk_index, known.offset_bytes, known.length_bytes)
        with self._lock:
            self._done_bytes += known.length_bytes
            if known.kind is ExtentKind.ZERO:
                self._zero_bytes += known.length_bytes
            else:
                self._reused_bytes += known.length_bytes

    def _halt(self, error: BackupError | None) -> None:
        """Stop everybody; the first error is the failure, and none counts after that."""
        with self._lock:
            if self._halted.is_set():
                return
            self._failure = error
            self._halted.set()
        for reader in self._readers:
            reader.interrupt()
        self._sink.interrupt()


def _clear(data: memoryview, begin: int, end: int) -> None:
    if begin < end:
        np.frombuffer(data, dtype=np.uint8)[begin:end] = 0
