"""The writing end of a backup job: VMA extents into a sink that may be full.

Owns the queue between the job and its target. At most one extent waits: while it does, nothing more
can be added, which is what holds back the job and the guest's writes. The format itself belongs to
`vzdump_qemu.formats.vma`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from vzdump_qemu.errors import InternalError
from vzdump_qemu.formats.vma import Buffer, ConfigBlob, VmaDevice, encode_header, layout
from vzdump_qemu.formats.vma.extent import encode_extent_headers, slot_values
from vzdump_qemu.formats.vma.zeroes import block_masks, stored_blocks
from vzdump_qemu.units import ceil_div
from vzsim.fakeqmp.disks import BLOCK_BYTES, Disk, MemoryDisk
from vzsim.fakeqmp.outside import Sink


class VmaOutput:
    """VMA stream of one backup.

    Args:
        on_drained: see `BackupOutput`.
    """

    def __init__(self, sink: Sink, *, on_drained: Callable[[], None]) -> None:
        self._sink = sink
        self._on_drained = on_drained
        self._uuid = b""
        self._header: bytes = b""
        self._slots: list[npt.NDArray[np.uint64]] = []
        self._slot_count = 0
        self._data: list[Buffer] = []
        self._block_count = 0
        self._extent_count = 0
        self._queue: list[memoryview] = []
        self._dropped = False
        self.error_text = ""

    def open(
        self,
        *,
        archive_uuid: uuid.UUID,
        ctime_s: int,
        configs: Sequence[tuple[str, bytes]],
        devices: Sequence[tuple[str, int]],
    ) -> None:
        """Set the header; it goes out with the first extent, not before."""
        self._uuid = archive_uuid.bytes
        self._header = encode_header(
            self._uuid,
            ctime_s,
            [ConfigBlob(name=name, data=data) for name, data in configs],
            [
                VmaDevice(vma_dev_id=index, name=name, size_bytes=size_bytes)
                for index, (name, size_bytes) in enumerate(devices, start=1)
            ],
        )

    @property
    def piece_bytes(self) -> int:
        """A cluster."""
        return layout.VMA_CLUSTER_BYTES

    @property
    def is_blocked(self) -> bool:
        """An extent waits for the target."""
        return bool(self._queue)

    @property
    def is_settled(self) -> bool | None:
        """As the port says: a pipe confirms nothing."""
        return None

    @property
    def free_piece_count(self) -> int:
        """How many clusters can be added before the next flush."""
        return layout.SLOTS_WRITTEN_PER_EXTENT - self._slot_count

    def take(self, dev_number: int, first_index: int, count: int, source: Disk) -> int:
        """As the port says; at most `free_piece_count`."""
        offset_bytes = first_index * layout.VMA_CLUSTER_BYTES
        length_bytes = min(count * layout.VMA_CLUSTER_BYTES, source.size_bytes - offset_bytes)
        if isinstance(source, MemoryDisk):
            block_count = ceil_div(length_bytes, BLOCK_BYTES)
            blocks = source.blocks(offset_bytes // BLOCK_BYTES, block_count)
            return self.add_blocks(dev_number, first_index, count, blocks)
        return self.add(dev_number, first_index, source.read(offset_bytes, length_bytes))

    def add(self, vma_dev_id: int, first_index: int, data: Buffer) -> int:
        """Add whole clusters (the last of a disk may be short), at most `free_piece_count`.

        Of bytes that may change what is not zero is copied, so they may be a disk's own.

        The extent is sent as soon as it is full; a failure shows in `error_text`. Returns the
        bytes of zero blocks, counted past the end of the disk up to a whole cluster.
        """
        view = memoryview(data).cast("B")
        stored = stored_blocks(view)
        masks = block_masks(stored)
        self._add_slots(vma_dev_id, first_index, masks)
        edges = np.flatnonzero(np.diff(stored, prepend=False, append=False)).tolist()
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            part = view[begin * layout.VMA_BLOCK_BYTES : end * layout.VMA_BLOCK_BYTES]
            self._block_count += end - begin
            self._data.append(part if isinstance(data, bytes) else bytes(part))
            if len(part) % layout.VMA_BLOCK_BYTES:
                self._data.append(bytes(-len(part) % layout.VMA_BLOCK_BYTES))
        if self._slot_count == layout.SLOTS_WRITTEN_PER_EXTENT:
            self._flush()
        block_count = ceil_div(len(view), layout.VMA_CLUSTER_BYTES) * layout.BLOCKS_PER_VMA_CLUSTER
        return (block_count - int(np.count_nonzero(stored))) * layout.VMA_BLOCK_BYTES

    def add_blocks(
        self, vma_dev_id: int, first_index: int, cluster_count: int, blocks: Mapping[int, bytes]
    ) -> int:
        """As `add`, for clusters whose blocks that are not all zero are known.

        Args:
            blocks: each whole, by its distance from the first cluster's first block, in order.
        """
        masks = [0] * cluster_count
        for index in blocks:
            vma_cluster, bit = divmod(index, layout.BLOCKS_PER_VMA_CLUSTER)
            masks[vma_cluster] |= 1 << bit
        self._add_slots(vma_dev_id, first_index, np.array(masks, dtype=np.uint16))
        self._block_count += len(blocks)
        self._data.append(b"".join(blocks.values()))
        if self._slot_count == layout.SLOTS_WRITTEN_PER_EXTENT:
            self._flush()
        block_count = cluster_count * layout.BLOCKS_PER_VMA_CLUSTER
        return (block_count - len(blocks)) * layout.VMA_BLOCK_BYTES

    def _add_slots(self, vma_dev_id: int, first_index: int, masks: npt.NDArray[np.uint16]) -> None:
        self._slots.append(slot_values(vma_dev_id, first_index, masks))
        self._slot_count += len(masks)

    def finish(self) -> None:
        """Send the rest; `on_drained` is called once nothing is left (perhaps at once)."""
        if self._uuid and not self.error_text and (self._slot_count or not self._extent_count):
            self._flush()
        if not self._queue:
            self._on_drained()

    def _flush(self) -> None:
        if not self._uuid:
            raise InternalError("vma output used before its header was set")
        slots = np.concatenate([np.empty(0, dtype=np.uint64), *self._slots])
        extent_header = encode_extent_headers(
            self._uuid, slots.reshape(1, -1), block_count=self._block_count
        )
        self._send([self._header, extent_header, *self._data])
        self._header = b""
        self._slots, self._slot_count = [], 0
        self._data, self._block_count = [], 0
        self._extent_count += 1

    def drop(self) -> None:
        """Forget what is not written: a cancelled backup's last extent never appears."""
        self._dropped = True

    def close(self) -> None:
        """Close the target."""
        self._queue.clear()
        self._sink.close()

    def fail(self, text: str) -> None:
        """Record the first failure."""
        if not self.error_text:
            self.error_text = text

    def _send(self, buffers: Sequence[Buffer]) -> None:
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
