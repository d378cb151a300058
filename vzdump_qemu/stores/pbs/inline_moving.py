"""Disks into a backup on the event loop alone, where there are no threads: in virtual time.

Does what the pump and its sink do, one piece after the other: the same pieces, the same chunks and
the same indexes, so that what a simulation shows of a backup holds for the real one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from vzdump_qemu.disk_ports import DiskOrigin, DiskReader, ExtentKind, TransferProgress
from vzdump_qemu.errors import BackupError, DiskReadError, Interrupted
from vzdump_qemu.formats.pbs import ManifestEntry, layout, zero_chunk_digest
from vzdump_qemu.stores.disk_pieces import KnownPieces, ReadPiece, cut_pieces
from vzdump_qemu.stores.pbs.chunk_workers import is_zero
from vzdump_qemu.stores.pbs.disk_upload import DiskUpload, UploadStats
from vzdump_qemu.stores.pbs.moving import BeginMoving, Delivery, Moving

# A reader that goes away amid a piece is to be noticed there.
_READ_BYTES: Final = 256 * 1024

OpenDisk = Callable[[DiskOrigin], Awaitable[DiskReader]]


def inline_moving(open_disk: OpenDisk, *, bytes_per_s: float) -> BeginMoving:
    """Moves disks without threads.

    Args:
        open_disk: raises DiskReadError; what it opens does not block.
        bytes_per_s: how fast disks are read at the most.
    """

    async def begin(delivery: Delivery, origins: Sequence[DiskOrigin]) -> Moving:
        readers: list[DiskReader] = []
        try:
            for origin in origins:
                readers.append(await open_disk(origin))
        except BaseException:
            for reader in readers:
                reader.close()
            raise
        limit = delivery.rate_limit_bytes_per_s
        pace = min(bytes_per_s, limit) if limit else bytes_per_s
        transfer = InlineTransfer(delivery, readers, bytes_per_s=pace)
        return Moving(transfer=transfer, moved=transfer)

    return begin


class InlineTransfer:
    """`vzdump_qemu.ports.DiskTransfer` and `moving.Moved` in one, from construction on."""

    def __init__(
        self, delivery: Delivery, readers: Sequence[DiskReader], *, bytes_per_s: float
    ) -> None:
        self._delivery = delivery
        self._readers = tuple(readers)
        self._bytes_per_s = bytes_per_s
        self._zero_digest = zero_chunk_digest(delivery.data_key)
        self._done_bytes = self._read_bytes = self._zero_bytes = self._reused_bytes = 0
        self._failure: BackupError | None = None
        self._entries: tuple[ManifestEntry, ...] | None = None
        self._task = asyncio.ensure_future(self._run())

    @property
    def entries(self) -> tuple[ManifestEntry, ...] | None:
        """As `Moved` says."""
        return self._entries

    def stats(self) -> UploadStats:
        """As `Moved` says."""
        arrivals = self._delivery.arrivals
        named_count = sum(disk.named_count for disk in self._delivery.disks)
        return UploadStats(
            chunk_count=arrivals.chunk_count,
            content_bytes=arrivals.content_bytes,
            sent_bytes=arrivals.sent_bytes,
            known_count=max(0, named_count - arrivals.chunk_count),
            unchanged_bytes=self._reused_bytes,
        )

    def progress(self) -> TransferProgress:
        """As the port says."""
        return TransferProgress(
            total_bytes=sum(reader.size_bytes for reader in self._readers),
            done_bytes=self._done_bytes,
            read_bytes=self._read_bytes,
            zero_bytes=self._zero_bytes,
            reused_bytes=self._reused_bytes,
        )

    def failure(self) -> BackupError | None:
        """As the port says."""
        return self._failure

    async def finish(self) -> None:
        """As the port says."""
        await asyncio.wait([self._task])
        if self._task.cancelled():
            raise Interrupted
        self._task.result()
        if self._failure is not None:
            raise self._failure

    async def cancel(self) -> None:
        """As the port says."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        delivery = self._delivery
        try:
            for disk, reader in zip(delivery.disks, self._readers, strict=True):
                await self._move(disk, reader)
            self._entries = tuple([await disk.close() for disk in delivery.disks])
        except BackupError as error:
            self._failure = error
        except OSError as error:
            self._failure = DiskReadError(f"reading failed - {error.strerror or error}")
        finally:
            if self._entries is None:
                delivery.session.abort()
                delivery.arrivals.abandon()
            for reader in self._readers:
                reader.close()

    async def _move(self, disk: DiskUpload, reader: DiskReader) -> None:
        for piece in cut_pieces(reader):
            match piece:
                case KnownPieces(kind=ExtentKind.UNCHANGED):
                    self._reused_bytes += piece.length_bytes
                case KnownPieces():
                    await self._put_zeroes(disk, piece)
                    self._zero_bytes += piece.length_bytes
                case ReadPiece():
                    await self._put(disk, piece.offset_bytes, await self._read(reader, piece))
            self._done_bytes += piece.length_bytes

    async def _read(self, reader: DiskReader, piece: ReadPiece) -> memoryview:
        data = memoryview(bytearray(piece.length_bytes))
        for begin, end in piece.reads:
            for at in range(begin, end, _READ_BYTES):
                part = data[at : min(at + _READ_BYTES, end)]
                reader.read_into(piece.offset_bytes + at, part)
                self._read_bytes += len(part)
                await self._delivery.clock.sleep(len(part) / self._bytes_per_s)
        return data

    async def _put_zeroes(self, disk: DiskUpload, piece: KnownPieces) -> None:
        end = piece.offset_bytes + piece.length_bytes
        for offset_bytes in range(piece.offset_bytes, end, layout.CHUNK_BYTES):
            length_bytes = min(layout.CHUNK_BYTES, end - offset_bytes)
            await self._put(disk, offset_bytes, memoryview(bytes(length_bytes)))

    async def _put(self, disk: DiskUpload, offset_bytes: int, data: memoryview) -> None:
        delivery = self._delivery
        if len(data) == layout.CHUNK_BYTES and is_zero(data):
            digest = self._zero_digest
        else:
            digest = delivery.encoder.digest(data)
        if delivery.arrivals.claim(digest):
            chunk = delivery.encoder.encode(data)
            await delivery.arrivals.deliver(disk.writer_id, digest, chunk, size_bytes=len(data))
        await disk.name([(offset_bytes // layout.CHUNK_BYTES, digest)])
