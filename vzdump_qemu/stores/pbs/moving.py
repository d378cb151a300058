"""How the disks of a backup get from where they are read into its session.

Owns the border between a backup's protocol and what moves its disks, and the way that is used: a
pump with threads. Another one is handed in where there are no threads. Source: PBS formats,
section 4.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from vzdump_qemu.disk_ports import DiskOrigin, DiskReader
from vzdump_qemu.formats.pbs import EncryptionKey, ManifestEntry, zero_chunk_digest
from vzdump_qemu.ports import Clock, DiskTransfer
from vzdump_qemu.stores.disk_pump import DiskPump
from vzdump_qemu.stores.pbs.backup_session import BackupSession
from vzdump_qemu.stores.pbs.chunk_workers import ChunkEncoder
from vzdump_qemu.stores.pbs.disk_upload import ChunkArrivals, DiskUpload, UploadStats
from vzdump_qemu.stores.pbs.sink import PbsSink
from vzdump_qemu.stores.raw_disk import RawDisk
from vzdump_qemu.stores.system import run_blocking, start_thread

OpenReader: TypeAlias = Callable[[DiskOrigin], DiskReader]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """Where the disks of one backup go, and how.

    Attributes:
        disks: their indexes in the making.
        data_key: encrypts; None for plain chunks.
        rate_limit_bytes_per_s: of reading, over all disks; 0 means unlimited.
    """

    session: BackupSession
    disks: Sequence[DiskUpload]
    arrivals: ChunkArrivals
    encoder: ChunkEncoder
    data_key: EncryptionKey | None
    clock: Clock
    rate_limit_bytes_per_s: int


class Moved(Protocol):
    """What is known of moved disks."""

    @property
    def entries(self) -> tuple[ManifestEntry, ...] | None:
        """What the manifest says of the disks; None before all of them are closed."""
        ...

    def stats(self) -> UploadStats:
        """What was sent so far."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Moving:
    """Disks that are being moved."""

    transfer: DiskTransfer
    moved: Moved


class BeginMoving(Protocol):
    """Opens every disk, then begins to move them."""

    async def __call__(self, delivery: Delivery, origins: Sequence[DiskOrigin]) -> Moving:
        """Begin; the disks are in the order of the delivery's.

        Raises:
            DiskReadError: a disk could not be opened; nothing was sent.
        Cancelled: nothing was sent; disks that are being opened are let go of once they are.
        """
        ...


def threaded_moving(open_nbd: OpenReader, *, thread_count: int) -> BeginMoving:
    """Threads that read, hash and compress.

    Args:
        open_nbd: opens an origin with an NBD socket. It blocks, and raises DiskReadError.
    """

    async def begin(delivery: Delivery, origins: Sequence[DiskOrigin]) -> Moving:
        zero_digest = await run_blocking(lambda: zero_chunk_digest(delivery.data_key))
        opening = start_thread(lambda: _open_all(origins, open_nbd), name="open-disks")
        try:
            readers = await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)
            raise
        sink = PbsSink(
            delivery.session,
            delivery.disks,
            arrivals=delivery.arrivals,
            encoder=delivery.encoder,
            zero_digest=zero_digest,
        )
        pump = DiskPump(
            readers,
            sink,
            clock=delivery.clock,
            rate_limit_bytes_per_s=delivery.rate_limit_bytes_per_s,
            worker_count=thread_count,
        )
        return Moving(transfer=pump, moved=sink)

    return begin


def _open_all(origins: Sequence[DiskOrigin], open_nbd: OpenReader) -> list[DiskReader]:
    readers: list[DiskReader] = []
    with ExitStack() as undo:
        for origin in origins:
            reader = open_nbd(origin) if origin.nbd_socket else RawDisk(origin)
            undo.callback(reader.close)
            readers.append(reader)
        undo.pop_all()
    return readers


def _close_opened(opening: Future[list[DiskReader]]) -> None:
    if opening.exception() is None:
        for reader in opening.result():
            reader.close()
