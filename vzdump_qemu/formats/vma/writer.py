"""Writing an archive: clusters in, buffers for writev out.

Owns the grouping into extents and the duty to give each cluster exactly once. No I/O: the caller
writes what it is handed, in order. Source: VMA format, sections 4, 5 and 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from vzdump_qemu.errors import VmaError
from vzdump_qemu.formats.vma import layout
from vzdump_qemu.formats.vma.book import ClusterBook
from vzdump_qemu.formats.vma.extent import encode_extent_headers, slot_values
from vzdump_qemu.formats.vma.header import ConfigBlob, VmaDevice, encode_header
from vzdump_qemu.formats.vma.zeroes import block_masks, stored_blocks

Buffer: TypeAlias = bytes | bytearray | memoryview


class VmaWriter:
    """Turns clusters of disks, in any order, into the stream of one archive.

    The stream is `header_bytes` and then every buffer handed out by `add_clusters`,
    `add_zero_clusters` and `finish`, in that order. Buffers refer to the data handed in, which
    must not change until the extent that holds it was handed out and written. A reader with one
    buffer of 58 clusters that puts the next data behind what is pending, and reads at most
    `slots_free` clusters at a time, never needs a second buffer.

    Args:
        uuid: 16 bytes.
        ctime_s: seconds since the epoch.
        configs, devices: all there will be; the header is final.

    Raises:
        VmaError: VMA cannot hold this.
    """

    def __init__(
        self,
        uuid: bytes,
        ctime_s: int,
        configs: Sequence[ConfigBlob],
        devices: Sequence[VmaDevice],
    ) -> None:
        self._uuid = uuid
        self._header = encode_header(uuid, ctime_s, configs, devices)
        self._book = ClusterBook(devices)
        self._slots: list[npt.NDArray[np.uint64]] = []
        self._slot_count = 0
        self._data: list[Buffer] = []
        self._block_count = 0
        self._extent_count = 0

    @property
    def slots_free(self) -> int:
        """Clusters that complete the pending extent: 1..58."""
        return layout.SLOTS_WRITTEN_PER_EXTENT - self._slot_count

    def header_bytes(self) -> bytes:
        """The archive header, a multiple of 512 bytes."""
        return self._header

    def add_clusters(self, vma_dev_id: int, first_index: int, data: Buffer) -> list[Buffer]:
        """Add adjacent clusters with their data; zero blocks are found and left out.

        Args:
            data: a multiple of 65536 bytes, or less only where the disk ends.

        Raises:
            VmaError: unknown device, beyond its end, given before, or a length that fits nothing.
        """
        view = memoryview(data).cast("B")
        return self.add_examined_clusters(vma_dev_id, first_index, view, stored_blocks(view))

    def add_examined_clusters(
        self, vma_dev_id: int, first_index: int, data: Buffer, stored: npt.NDArray[np.bool_]
    ) -> list[Buffer]:
        """As `add_clusters`, for a caller that has looked for the zero blocks already.

        Args:
            stored: what `stored_blocks` says of ``data``; may be changed.
        """
        view = memoryview(data).cast("B")
        device = self._known_device(vma_dev_id)
        if not len(view):
            return []
        self._check_length(device, first_index, len(view))
        masks = block_masks(stored)
        if device.is_vmstate:
            # Readers append stored blocks of a RAM state, so a block left out would be lost.
            stored[:] = True
            masks[:] = block_masks(stored)
        self._book.mark(vma_dev_id, first_index, len(masks))
        slots = slot_values(vma_dev_id, first_index, masks)
        ready: list[Buffer] = []
        at = 0
        while at < len(slots):
            step = min(self.slots_free, len(slots) - at)
            blocks = slice(
                at * layout.BLOCKS_PER_VMA_CLUSTER, (at + step) * layout.BLOCKS_PER_VMA_CLUSTER
            )
            part = view[at * layout.VMA_CLUSTER_BYTES : (at + step) * layout.VMA_CLUSTER_BYTES]
            self._append(slots[at : at + step], stored[blocks], part)
            if self._slot_count == layout.SLOTS_WRITTEN_PER_EXTENT:
                self._flush(ready)
            at += step
        return ready

    def add_zero_clusters(self, vma_dev_id: int, first_index: int, count: int) -> list[Buffer]:
        """Add adjacent clusters known to be zero. Takes and returns about 9 bytes per cluster.

        Raises:
            VmaError: unknown device, beyond its end, given before, or a RAM state, which must
                be stored in full.
        """
        if self._known_device(vma_dev_id).is_vmstate:
            raise VmaError("a RAM state cannot have zero clusters")
        self._book.mark(vma_dev_id, first_index, count)
        slots = slot_values(vma_dev_id, first_index, np.zeros(count, dtype=np.uint16))
        ready: list[Buffer] = []
        head = min(count, self.slots_free) if self._slot_count else 0
        if head:
            self._append_slots(slots[:head])
            if self._slot_count == layout.SLOTS_WRITTEN_PER_EXTENT:
                self._flush(ready)
        extent_count = (count - head) // layout.SLOTS_WRITTEN_PER_EXTENT
        if extent_count:
            whole = slots[head : head + extent_count * layout.SLOTS_WRITTEN_PER_EXTENT]
            ready.append(
                encode_extent_headers(self._uuid, whole.reshape(extent_count, -1), block_count=0)
            )
            self._extent_count += extent_count
            head += len(whole)
        if head < count:
            self._append_slots(slots[head:])
        return ready

    def flush(self) -> list[Buffer]:
        """Complete the pending extent if it refers to data, which may change after that."""
        ready: list[Buffer] = []
        if self._data:
            self._flush(ready)
        return ready

    def finish(self) -> list[Buffer]:
        """The last extent; an empty one if there was none at all.

        Raises:
            VmaError: a cluster of a device was never given.
        """
        self._book.check_complete()
        ready: list[Buffer] = []
        if self._slot_count or not self._extent_count:
            self._flush(ready)
        return ready

    def _known_device(self, vma_dev_id: int) -> VmaDevice:
        device = self._book.device(vma_dev_id)
        if device is None:
            raise VmaError(f"got wrong dev id {vma_dev_id}")
        return device

    def _check_length(self, device: VmaDevice, first_index: int, length_bytes: int) -> None:
        begin_bytes = first_index * layout.VMA_CLUSTER_BYTES
        if length_bytes % layout.VMA_CLUSTER_BYTES and (
            begin_bytes + length_bytes != device.size_bytes and not device.is_vmstate
        ):
            raise VmaError(
                f"{length_bytes} bytes at {begin_bytes} of {device.name} are no whole clusters"
            )
        if not device.is_vmstate and begin_bytes + length_bytes > device.size_bytes:
            raise VmaError(f"data beyond the end of {device.name}, {device.size_bytes} bytes")

    def _append(
        self, slots: npt.NDArray[np.uint64], stored: npt.NDArray[np.bool_], data: memoryview
    ) -> None:
        self._append_slots(slots)
        edges = np.flatnonzero(np.diff(stored, prepend=False, append=False)).tolist()
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            self._block_count += end - begin
            part = data[begin * layout.VMA_BLOCK_BYTES : end * layout.VMA_BLOCK_BYTES]
            self._data.append(part)
            short_bytes = -len(part) % layout.VMA_BLOCK_BYTES
            if short_bytes:
                self._data.append(bytes(short_bytes))

    def _append_slots(self, slots: npt.NDArray[np.uint64]) -> None:
        self._slots.append(slots)
        self._slot_count += len(slots)

    def _flush(self, ready: list[Buffer]) -> None:
        slots = np.concatenate([np.empty(0, dtype=np.uint64), *self._slots])
        ready.append(
            encode_extent_headers(self._uuid, slots.reshape(1, -1), block_count=self._block_count)
        )
        ready += self._data
        self._slots, self._slot_count = [], 0
        self._data, self._block_count = [], 0
        self._extent_count += 1
