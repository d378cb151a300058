"""One extent header: encoding many at once, and decoding one into checked data runs.

Owns the 512 bytes in front of each extent's data. Pure; shared by the writer, the streaming reader
and the check of a passing stream. Source: VMA format, sections 4 to 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vzdump_qemu.errors import VmaError
from vzdump_qemu.formats.vma import layout
from vzdump_qemu.formats.vma.book import ClusterBook
from vzdump_qemu.formats.vma.header import VmaDevice, md5_digest

_BITS = np.arange(layout.BLOCKS_PER_VMA_CLUSTER, dtype=np.uint16)
_BIT_NUMBERS = _BITS.astype(np.int64)
_MD5_END = layout.EXTENT_MD5_OFFSET + layout.MD5_BYTES
_BLANK_MD5 = bytes(layout.MD5_BYTES)
_UNUSED_SLOT = bytes(8 * (layout.SLOTS_PER_EXTENT - layout.SLOTS_WRITTEN_PER_EXTENT))


@dataclass(frozen=True, slots=True)
class DataRun:
    """Stored blocks that are adjacent both in the stream and on the disk.

    Attributes:
        vma_dev_id: the device they belong to.
        disk_offset_bytes: where they begin on the disk (for a RAM state: in its stream).
        stored_bytes: length in the stream, a multiple of 4096.
        kept_bytes: how much of it lies on the disk; the rest is padding behind its end.
    """

    vma_dev_id: int
    disk_offset_bytes: int
    stored_bytes: int
    kept_bytes: int


@dataclass(frozen=True, slots=True)
class VmaExtent:
    """A checked extent header.

    Attributes:
        offset_bytes: place of the header in the stream.
        data_bytes: length of the data behind it.
        stretches: what that data is, in stream order, without gaps: the device, the number of
            its first block, how many blocks.
    """

    offset_bytes: int
    data_bytes: int
    stretches: Sequence[tuple[VmaDevice, int, int]]

    def list_runs(self) -> list[DataRun]:
        """What the data is, in stream order, without gaps.

        Made only for whoever takes the data: a check that skips it needs none.
        """
        runs = []
        for device, first_block, count in self.stretches:
            offset = first_block * layout.VMA_BLOCK_BYTES
            length = count * layout.VMA_BLOCK_BYTES
            kept = length if device.is_vmstate else max(0, min(length, device.size_bytes - offset))
            runs.append(DataRun(device.vma_dev_id, offset, length, kept))
        return runs


def slot_values(
    vma_dev_id: int, first_index: int, block_masks: npt.NDArray[np.uint16]
) -> npt.NDArray[np.uint64]:
    """Slot values of adjacent clusters: mask, device number and cluster number in 64 bits."""
    indexes = np.arange(first_index, first_index + len(block_masks), dtype=np.uint64)
    return block_masks.astype(np.uint64) << np.uint64(48) | np.uint64(vma_dev_id << 32) | indexes


def encode_extent_headers(
    uuid: bytes, slots: npt.NDArray[np.uint64], *, block_count: int
) -> bytearray:
    """Encode one header per row of ``slots`` (at most 59 columns), packed one after the other.

    All of them announce the same ``block_count``.
    """
    count = len(slots)
    packed = bytearray(count * layout.EXTENT_HEADER_BYTES)
    rows = np.frombuffer(packed, dtype=np.uint8).reshape(count, layout.EXTENT_HEADER_BYTES)
    prefix = layout.EXTENT_STRUCT.pack(layout.EXTENT_MAGIC, 0, block_count, uuid, _BLANK_MD5)
    rows[:, : layout.SLOTS_OFFSET] = np.frombuffer(prefix, dtype=np.uint8)
    slots_end = layout.SLOTS_OFFSET + slots.shape[1] * 8
    rows[:, layout.SLOTS_OFFSET : slots_end] = slots.astype(">u8").view(np.uint8).reshape(count, -1)
    view = memoryview(packed)
    for at in range(0, len(packed), layout.EXTENT_HEADER_BYTES):
        digest = md5_digest(view[at : at + layout.EXTENT_HEADER_BYTES])
        view[at + layout.EXTENT_MD5_OFFSET : at + _MD5_END] = digest
    return packed


def decode_extent(raw: bytes, *, uuid: bytes, book: ClusterBook, offset_bytes: int) -> VmaExtent:
    """Check one extent header, enter its clusters in the book and lay out its data.

    Raises:
        VmaError: sum, uuid, magic, accounting, device, cluster or mask is wrong; with its place.
    """
    try:
        block_count = _check_fixed_part(raw, uuid)
        if not block_count and _enter_zero_run(raw, book):
            return VmaExtent(offset_bytes, 0, ())
        slots = np.frombuffer(
            raw, dtype=">u8", count=layout.SLOTS_PER_EXTENT, offset=layout.SLOTS_OFFSET
        ).astype(np.uint64)
        dev_ids = ((slots >> np.uint64(32)) & np.uint64(0xFF)).astype(np.int64)
        used = np.flatnonzero(dev_ids)
        dev_ids = dev_ids[used]
        masks = (slots[used] >> np.uint64(48)).astype(np.uint16)
        indexes = (slots[used] & np.uint64(0xFFFFFFFF)).astype(np.int64)
        stored = (masks[:, None] >> _BITS) & np.uint16(1)
        per_slot = stored.sum(axis=1, dtype=np.int64)
        stored_count = int(per_slot.sum())
        if stored_count > block_count:
            raise VmaError("short vma extent - too many blocks")
        if stored_count < block_count:
            raise VmaError("vma extent error - missing blocks")
        stretches: list[tuple[VmaDevice, int, int]] = []
        for begin, end in _groups(dev_ids):
            device = book.device(int(dev_ids[begin]))
            if device is None:
                raise VmaError(f"got wrong dev id {int(dev_ids[begin])}")
            part = slice(begin, end)
            first_block = _enter(book, device, indexes[part], masks[part], per_slot[part])
            blocks = _blocks(indexes[part], stored[part], first_block)
            for at, past in _bounds(np.flatnonzero(blocks[1:] - blocks[:-1] != 1), len(blocks)):
                stretches.append((device, int(blocks[at]), past - at))
    except VmaError as error:
        raise VmaError(
            f"{error.message} (extent at byte {offset_bytes})", offset_bytes=offset_bytes
        ) from None
    return VmaExtent(offset_bytes, block_count * layout.VMA_BLOCK_BYTES, stretches)


def _check_fixed_part(raw: bytes, uuid: bytes) -> int:
    magic, reserved, block_count, extent_uuid, digest = layout.EXTENT_STRUCT.unpack_from(raw)
    blank = raw[: layout.EXTENT_MD5_OFFSET] + _BLANK_MD5 + raw[_MD5_END:]
    if md5_digest(blank) != digest:
        raise VmaError("wrong vma extent header chechsum")
    if extent_uuid != uuid:
        raise VmaError("wrong vma extent uuid")
    if magic != layout.EXTENT_MAGIC or reserved:
        raise VmaError("wrong vma extent header magic")
    if block_count > layout.EXTENT_BLOCK_COUNT_MAX:
        raise VmaError(
            f"vma extent announces {block_count} blocks, over {layout.EXTENT_BLOCK_COUNT_MAX}"
        )
    return int(block_count)


def _enter_zero_run(raw: bytes, book: ClusterBook) -> bool:
    """Enter a full extent of adjacent zero clusters of one disk; False if it is anything else.

    Empty disks consist of nothing else, and a look at each slot would take as long as reading.
    """
    first = int.from_bytes(raw[layout.SLOTS_OFFSET : layout.SLOTS_OFFSET + 8], "big")
    vma_dev_id, first_index = first >> 32, first & 0xFFFFFFFF
    device = book.device(vma_dev_id)
    end = first + layout.SLOTS_WRITTEN_PER_EXTENT
    if device is None or device.is_vmstate or end > (vma_dev_id + 1) << 32:
        return False
    # Numbers over 254 are no devices, so the mask is known to be empty.
    expected = np.arange(first, end, dtype=np.uint64).astype(">u8").tobytes()
    if raw[layout.SLOTS_OFFSET :] != expected + _UNUSED_SLOT:
        return False
    book.mark(vma_dev_id, first_index, layout.SLOTS_WRITTEN_PER_EXTENT)
    book.add_amounts(
        vma_dev_id, stored_block_count=0, zero_cluster_count=layout.SLOTS_WRITTEN_PER_EXTENT
    )
    return True


def _groups(values: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Bounds of groups of equal neighbours."""
    return _bounds(np.flatnonzero(values[1:] != values[:-1]), len(values))


def _bounds(breaks: npt.NDArray[np.intp], count: int) -> list[tuple[int, int]]:
    """Half-open bounds of what lies between breaks (each after its position)."""
    if not count:
        return []
    ends = [*(breaks + 1).tolist(), count]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _enter(
    book: ClusterBook,
    device: VmaDevice,
    indexes: npt.NDArray[np.int64],
    masks: npt.NDArray[np.uint16],
    per_slot: npt.NDArray[np.int64],
) -> int | None:
    """Enter a device's slots in the book; the first block's place for a RAM state, else None."""
    first_block = None
    if device.is_vmstate:
        first_block = book.stored_count(device.vma_dev_id)
    for begin, end in _bounds(np.flatnonzero(indexes[1:] - indexes[:-1] != 1), len(indexes)):
        book.mark(device.vma_dev_id, int(indexes[begin]), end - begin)
    book.add_amounts(
        device.vma_dev_id,
        stored_block_count=int(per_slot.sum()),
        zero_cluster_count=int(np.count_nonzero(per_slot == 0)),
    )
    if not device.is_vmstate:
        _check_tail(device, indexes, masks)
    return first_block


def _check_tail(
    device: VmaDevice, indexes: npt.NDArray[np.int64], masks: npt.NDArray[np.uint16]
) -> None:
    """Refuse blocks wholly behind the end; a full mask there is an accepted surplus."""
    tail_blocks = -(-(device.size_bytes % layout.VMA_CLUSTER_BYTES) // layout.VMA_BLOCK_BYTES)
    if not tail_blocks:
        return
    for mask in masks[indexes == device.vma_cluster_count - 1].tolist():
        if mask >> tail_blocks and mask != layout.FULL_BLOCK_MASK:
            raise VmaError("got wrong block address - write beyond end")


def _blocks(
    indexes: npt.NDArray[np.int64], stored: npt.NDArray[np.uint16], first_block: int | None
) -> npt.NDArray[np.int64]:
    """Block numbers on the disk, in stream order."""
    if first_block is not None:
        return np.arange(first_block, first_block + int(stored.sum()), dtype=np.int64)
    numbers = indexes[:, None] * layout.BLOCKS_PER_VMA_CLUSTER + _BIT_NUMBERS
    return numbers[stored.astype(np.bool_)]
