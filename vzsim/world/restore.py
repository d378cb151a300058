"""What a VMA stream restores to, per device.

Owns a second reading of extents, by the format's text and not by the product's reader: what both
misread the same way would never show. The header is the product's to decode; a RAM state is not
read here. Source: VMA format, sections 4 to 7.
"""

from __future__ import annotations

import struct
from hashlib import md5

from vzdump_qemu.errors import VmaError
from vzdump_qemu.formats.vma import VmaDevice, VmaHeader, layout
from vzdump_qemu.formats.vma.header import decode_header, header_bytes_announced
from vzsim.fakeqmp.disks import DiskContent, MemoryDisk

_BLOCK_BYTES = 4096
_BLOCKS_PER_CLUSTER = 16
# Magic, reserved, block count, uuid, sum; then the slots.
_EXTENT = struct.Struct(">4sHH16s16s59Q")
_SUM_AT = slice(24, 40)
_CLUSTER_INDEX_MASK = 0xFFFF_FFFF
_FULL_MASK = 0xFFFF


class _RestoredDisk:
    """One disk while it is put together."""

    def __init__(self, device: VmaDevice) -> None:
        self.device = device
        self.seen: set[int] = set()
        # Not rounded to sectors: a wrong size is to be seen.
        self.disk = MemoryDisk()
        self.disk.resize(device.size_bytes)
        self.cluster_count = device.vma_cluster_count
        self._block_count = -(-device.size_bytes // _BLOCK_BYTES)

    def take(self, cluster_index: int, mask: int, data: bytes) -> None:
        """One cluster with its stored blocks."""
        device = self.device
        if cluster_index >= self.cluster_count:
            raise VmaError(f"cluster {cluster_index} of {device.name} is beyond its end")
        if cluster_index in self.seen:
            raise VmaError(f"cluster {cluster_index} of {device.name} is there twice")
        self.seen.add(cluster_index)
        at, bits = 0, mask
        while bits:
            lowest = bits & -bits
            bits ^= lowest
            block_index = cluster_index * _BLOCKS_PER_CLUSTER + lowest.bit_length() - 1
            if block_index < self._block_count:
                offset_bytes = block_index * _BLOCK_BYTES
                kept_bytes = min(_BLOCK_BYTES, device.size_bytes - offset_bytes)
                self.disk.write(offset_bytes, data[at : at + kept_bytes])
            elif mask != _FULL_MASK:
                raise VmaError(f"block {block_index} of {device.name} is beyond its end")
            at += _BLOCK_BYTES


def restore_disks(stream: bytes) -> dict[str, DiskContent]:
    """Decode a whole, plain VMA stream. Raises VmaError if it is not whole."""
    header = _read_header(stream)
    disks = {device.vma_dev_id: _RestoredDisk(device) for device in header.devices}
    at = header.header_bytes
    while at < len(stream):
        at = _read_extent(stream, at, header.uuid, disks)
    for disk in disks.values():
        missing_count = disk.cluster_count - len(disk.seen)
        if missing_count:
            raise VmaError(f"{missing_count} clusters of {disk.device.name} are missing")
    return {disk.device.name: disk.disk.content() for disk in disks.values()}


def _read_header(stream: bytes) -> VmaHeader:
    if len(stream) < layout.FIXED_HEADER_BYTES:
        raise VmaError("the stream ends within its header")
    header_bytes = header_bytes_announced(stream[: layout.FIXED_HEADER_BYTES])
    if len(stream) < header_bytes:
        raise VmaError("the stream ends within its header")
    return decode_header(stream[:header_bytes])


def _read_extent(stream: bytes, at: int, uuid: bytes, disks: dict[int, _RestoredDisk]) -> int:
    """One extent; where the next one begins."""
    raw = stream[at : at + _EXTENT.size]
    if len(raw) < _EXTENT.size:
        raise VmaError(f"the stream ends within the extent at byte {at}")
    magic, reserved, block_count, extent_uuid, digest, *slots = _EXTENT.unpack(raw)
    blank = bytearray(raw)
    blank[_SUM_AT] = bytes(len(digest))
    if md5(blank, usedforsecurity=False).digest() != digest:
        raise VmaError(f"wrong sum of the extent at byte {at}")
    if magic != b"VMAE" or reserved or extent_uuid != uuid:
        raise VmaError(f"the extent at byte {at} is none of this archive")
    begin = at + _EXTENT.size
    end = begin + int(block_count) * _BLOCK_BYTES
    if end > len(stream):
        raise VmaError(f"the stream ends within the extent at byte {at}")
    for slot in slots:
        vma_dev_id = slot >> 32 & 0xFF
        if not vma_dev_id:
            continue
        if vma_dev_id not in disks:
            raise VmaError(f"the extent at byte {at} holds an unknown device {vma_dev_id}")
        mask = slot >> 48
        data_bytes = mask.bit_count() * _BLOCK_BYTES
        data = stream[begin : begin + data_bytes] if mask else b""
        disks[vma_dev_id].take(slot & _CLUSTER_INDEX_MASK, mask, data)
        begin += data_bytes
    if begin != end:
        raise VmaError(f"the extent at byte {at} announces other blocks than it holds")
    return end
