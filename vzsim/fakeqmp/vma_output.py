"""The writing end of a backup job: VMA extents into a sink that may be full.

Owns the queue between the job and its target. At most one extent waits: while it does, nothing more
can be added, which is what holds back the job and the guest's writes. The format itself belongs to
`vzdump_qemu.formats.vma`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence

from vzdump_qemu.formats.vma import VmaDevice, VmaWriter
from vzdump_qemu.errors import InternalError
from vzdump_qemu.units import ceil_div
from vzsim.fakeqmp.outside import Sink

VMA_CLUSTER_BYTES = 65536
# QEMU flushes an extent when 58 of its 59 slots are taken.
EXTENT_FILL_COUNT = 58


class VmaOutput:
    """VMA stream of one backup.

    Args:
        on_drained: called after a wait, when clusters can be added again or the output failed.
    """

    def __init__(self, sink: Sink, *, on_drained: Callable[[], None]) -> None:
        self._sink = sink
        self._on_drained = on_drained
        self._writer: VmaWriter | None = None
        self._slots_taken_count = 0
        self._queue: list[memoryview] = []
        self._finishing = False
        self._dropped = False
        self.error_text = ""
        self.accepted_bytes = 0

    def open(
        self,
        *,
        archive_uuid: uuid.UUID,
        ctime_s: int,
        configs: Sequence[tuple[str, bytes]],
        devices: Sequence[tuple[str, int]],
    ) -> None:
        """Set the header; it goes out with the first extent, not before."""
        self._writer = VmaWriter(
            uuid=archive_uuid.bytes,
            ctime_s=ctime_s,
            configs=configs,
            devices=[
                VmaDevice(dev_id=index, name=name, size_bytes=size_bytes)
                for index, (name, size_bytes) in enumerate(devices, start=1)
            ],
        )

    @property
    def is_blocked(self) -> bool:
        """An extent waits for the target."""
        return bool(self._queue)

    @property
    def is_open(self) -> bool:
        """The header is set and the end not yet reached."""
        return self._writer is not None

    @property
    def free_slot_count(self) -> int:
        """How many clusters can be added before the next flush."""
        return EXTENT_FILL_COUNT - self._slots_taken_count

    def add(self, vma_dev_id: int, first_index: int, data: bytes | bytearray | memoryview) -> None:
        """Add whole clusters (the last of a disk may be short), at most `free_slot_count`.

        The extent is sent as soon as it is full; a failure shows in `error_text`.
        """
        if self._writer is None:
            raise InternalError("vma output used before its header was set")
        buffers = self._writer.add_clusters(vma_dev_id, first_index, data)
        self._slots_taken_count += ceil_div(len(data), VMA_CLUSTER_BYTES)
        if self._slots_taken_count >= EXTENT_FILL_COUNT:
            self._slots_taken_count = 0
        self._send(buffers)

    def finish(self) -> None:
        """Send the rest; `on_drained` is called once nothing is left (perhaps at once)."""
        self._finishing = True
        if self._writer is not None and not self.error_text:
            self._send(self._writer.finish())
        if not self._queue:
            self._on_drained()

    def drop(self) -> None:
        """Forget what is not written: a cancelled backup's last extent never appears."""
        self._dropped = True
        self._writer = None

    def close(self) -> None:
        """Close the target."""
        self._writer = None
        self._queue.clear()
        self._sink.close()

    def fail(self, text: str) -> None:
        """Record the first failure."""
        if not self.error_text:
            self.error_text = text

    def _send(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        self._queue.extend(memoryview(buffer).cast("B") for buffer in buffers if len(buffer))
        if self._queue:
            self._push()

    def _push(self) -> None:
        while self._queue:
            try:
                count = self._sink.write(self._queue[0])
            except OSError as error:
                self.fail(f"vma_queue_write: write error - {os.strerror(error.errno or 0)}")
                self._queue.clear()
                return
            self.accepted_bytes += count
            if count == 0:
                self._sink.when_writable(self._go_on)
                return
            if count == len(self._queue[0]):
                del self._queue[0]
            else:
                self._queue[0] = self._queue[0][count:]

    def _go_on(self) -> None:
        if self._dropped:
            self._queue.clear()
        if self._queue:
            self._push()
        if not self._queue:
            self._on_drained()
