"""A small qcow2 layer: images as ``qemu-img create -f qcow2`` makes them.

Reads and writes plain clusters; new ones are appended and counted. Backing files, encryption,
compression, external data files and extended L2 entries are refused by name.
"""

from __future__ import annotations

import os
import struct

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.units import SECTOR_BYTES, round_up
from vzsim.fakeqmp.disks import FormatMismatch

# magic, version, backing offset, backing size, cluster bits, size, crypt, l1 size, l1 offset,
# refcount table offset, refcount table clusters, snapshot count, snapshots offset
_HEADER = struct.Struct(">IIQIIQIIQQIIQ")
_EXTENSION = struct.Struct(">QQQII")
_MAGIC = 0x514649FB
_OFFSET_MASK = 0x00FFFFFFFFFFFE00
_COPIED = 1 << 63
_COMPRESSED = 1 << 62
_READS_ZERO = 1
_REFCOUNT_ORDER = 4
_ENTRY = struct.Struct(">Q")


class Qcow2Disk:
    """A qcow2 image.

    Raises: OSError; ConfigError for a feature that is not simulated.
    """

    def __init__(self, path: str, *, read_only: bool = False) -> None:
        self._fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        try:
            self._load(path)
        except BaseException:
            os.close(self._fd)
            raise

    def _load(self, path: str) -> None:
        raw = os.pread(self._fd, _HEADER.size + _EXTENSION.size, 0)
        if len(raw) < _HEADER.size or _HEADER.unpack_from(raw)[0] != _MAGIC:
            raise FormatMismatch(f"{path}: not a qcow2 image")
        fields = _HEADER.unpack_from(raw)
        version, backing_offset, bits, size, crypt = (fields[index] for index in (1, 2, 4, 5, 6))
        incompatible, order = 0, _REFCOUNT_ORDER
        if version >= 3:
            incompatible, _, _, order, _ = _EXTENSION.unpack_from(raw, _HEADER.size)
        for is_used, name in (
            (backing_offset, "a backing file"),
            (crypt, "encryption"),
            (fields[11], "internal snapshots"),
            (incompatible & ~1, "an incompatible feature"),
            (order != _REFCOUNT_ORDER, "an unusual refcount width"),
        ):
            if is_used:
                raise ConfigError(f"{path}: qcow2 with {name} is not simulated")
        self._size_bytes = round_up(size, SECTOR_BYTES)
        self._unit_bytes = 1 << bits
        self._l2_count = self._unit_bytes // _ENTRY.size
        self._l1_offset, l1_count = fields[8], fields[7]
        self._refcount_table_offset = fields[9]
        self._refcount_block_count = fields[10] * self._l2_count
        self._l1 = list(
            struct.unpack(f">{l1_count}Q", os.pread(self._fd, 8 * l1_count, self._l1_offset))
        )
        self._end_offset = round_up(os.lseek(self._fd, 0, os.SEEK_END), self._unit_bytes)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def allocated_bytes(self) -> int:
        return os.fstat(self._fd).st_blocks * SECTOR_BYTES

    def read(self, offset_bytes: int, length_bytes: int) -> bytearray:
        data = bytearray(length_bytes)
        for start, inside, count in self._pieces(offset_bytes, length_bytes):
            host_offset = self._host_offset(start + inside)
            if host_offset:
                piece = os.pread(self._fd, count, host_offset + inside)
                at = start + inside - offset_bytes
                data[at : at + len(piece)] = piece
        return data

    def write(self, offset_bytes: int, data: bytes) -> None:
        for start, inside, count in self._pieces(offset_bytes, len(data)):
            host_offset = self._host_offset(start) or self._allocate_at(start)
            at = start + inside - offset_bytes
            os.pwrite(self._fd, data[at : at + count], host_offset + inside)

    def held_pieces(self, piece_bytes: int) -> set[int]:
        """Indices of the pieces that the image holds itself, at least in part."""
        held: set[int] = set()
        for position in range(0, self._size_bytes, self._unit_bytes):
            if self._host_offset(position):
                end = min(position + self._unit_bytes, self._size_bytes)
                held.update(range(position // piece_bytes, (end - 1) // piece_bytes + 1))
        return held

    def resize(self, size_bytes: int) -> None:
        """Not simulated. Raises: ConfigError."""
        raise ConfigError("resizing a qcow2 image is not simulated")

    def close(self) -> None:
        os.close(self._fd)

    def _pieces(self, offset_bytes: int, length_bytes: int) -> list[tuple[int, int, int]]:
        """Split at cluster borders: (start of the cluster, offset inside, length)."""
        pieces = []
        position, end = offset_bytes, offset_bytes + length_bytes
        while position < end:
            inside = position % self._unit_bytes
            count = min(self._unit_bytes - inside, end - position)
            pieces.append((position - inside, inside, count))
            position += count
        return pieces

    def _host_offset(self, position: int) -> int:
        l1_index, l2_index = divmod(position // self._unit_bytes, self._l2_count)
        table_offset = self._l1[l1_index] & _OFFSET_MASK
        if not table_offset:
            return 0
        entry = self._read_entry(table_offset + l2_index * _ENTRY.size)
        if entry & _COMPRESSED:
            raise ConfigError("compressed qcow2 clusters are not simulated")
        return 0 if entry & _READS_ZERO else entry & _OFFSET_MASK

    def _allocate_at(self, position: int) -> int:
        l1_index, l2_index = divmod(position // self._unit_bytes, self._l2_count)
        if not self._l1[l1_index] & _OFFSET_MASK:
            self._l1[l1_index] = self._allocate() | _COPIED
            self._write_entry(self._l1_offset + l1_index * _ENTRY.size, self._l1[l1_index])
        table_offset = self._l1[l1_index] & _OFFSET_MASK
        host_offset = self._allocate()
        self._write_entry(table_offset + l2_index * _ENTRY.size, host_offset | _COPIED)
        return host_offset

    def _allocate(self) -> int:
        """A new zeroed cluster at the end of the file, counted."""
        offset = self._end_offset
        self._end_offset += self._unit_bytes
        os.ftruncate(self._fd, self._end_offset)
        self._count_reference(offset)
        return offset

    def _count_reference(self, offset: int) -> None:
        per_block = self._unit_bytes * 8 // (1 << _REFCOUNT_ORDER)
        block_index, index = divmod(offset // self._unit_bytes, per_block)
        if block_index >= self._refcount_block_count:
            raise ConfigError("qcow2 image outgrew its refcount table")
        entry_offset = self._refcount_table_offset + block_index * _ENTRY.size
        block_offset = self._read_entry(entry_offset) & _OFFSET_MASK
        if not block_offset:
            block_offset = self._end_offset
            self._end_offset += self._unit_bytes
            os.ftruncate(self._fd, self._end_offset)
            self._write_entry(entry_offset, block_offset)
            self._count_reference(block_offset)
        os.pwrite(self._fd, b"\0\1", block_offset + 2 * index)

    def _read_entry(self, offset: int) -> int:
        raw = os.pread(self._fd, _ENTRY.size, offset)
        return int(_ENTRY.unpack(raw)[0]) if len(raw) == _ENTRY.size else 0

    def _write_entry(self, offset: int, value: int) -> None:
        os.pwrite(self._fd, _ENTRY.pack(value), offset)
