"""Persistent dirty bitmaps of a qcow2 image, read only.

Owns the bitmaps extension, its directory and the bitmap tables; what `qcow2` does with clusters is
its own. Source: the public description of the qcow2 format, and ``qsd-bitmap``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from vzsim.fakeqmp.bitmaps import Bitmap

_HEADER = struct.Struct(">IIQIIQ")
_HEADER_LENGTH_AT = 100
_EXTENSION = struct.Struct(">II")
_EXTENSION_KIND = 0x23852875
_BITMAPS = struct.Struct(">IIQQ")
_ENTRY = struct.Struct(">QIIBBHI")
_TABLE_ENTRY = struct.Struct(">Q")
_OFFSET_MASK = 0x00FFFFFFFFFFFE00
_ALL_ONES = 1
_IN_USE = 1
_AUTO = 2

ReadAt = Callable[[int, int], bytes]


def read_bitmaps(read_at: ReadAt) -> list[Bitmap]:
    """The consistent bitmaps of an image.

    Args:
        read_at: bytes of the image file by offset and length.

    Raises: OSError; struct.error for a file that is cut off.
    """
    _, version, _, _, unit_bits, size_bytes = _HEADER.unpack(read_at(0, _HEADER.size))
    if version < 3:
        return []
    place = _find_directory(read_at)
    if place is None:
        return []
    offset, length = place
    return list(_read_directory(read_at, read_at(offset, length), 1 << unit_bits, size_bytes))


def _find_directory(read_at: ReadAt) -> tuple[int, int] | None:
    (at,) = struct.unpack(">I", read_at(_HEADER_LENGTH_AT, 4))
    while True:
        kind, length = _EXTENSION.unpack(read_at(at, _EXTENSION.size))
        at += _EXTENSION.size
        if kind == 0:
            return None
        if kind == _EXTENSION_KIND:
            _, _, directory_bytes, offset = _BITMAPS.unpack(read_at(at, _BITMAPS.size))
            return offset, directory_bytes
        at += -(-length // 8) * 8


def _read_directory(
    read_at: ReadAt, directory: bytes, unit_bytes: int, size_bytes: int
) -> Iterator[Bitmap]:
    at = 0
    while at + _ENTRY.size <= len(directory):
        table_offset, table_count, flags, _, bits, name_bytes, extra_bytes = _ENTRY.unpack_from(
            directory, at
        )
        name_at = at + _ENTRY.size + extra_bytes
        at += -(-(_ENTRY.size + extra_bytes + name_bytes) // 8) * 8
        if flags & _IN_USE:
            continue
        raw_table = read_at(table_offset, table_count * _TABLE_ENTRY.size)
        bitmap = Bitmap(
            name=directory[name_at : name_at + name_bytes].decode(),
            size_bytes=size_bytes,
            granularity_bytes=1 << bits,
            recording=bool(flags & _AUTO),
            persistent=True,
        )
        bit_count = -(-size_bytes // bitmap.granularity_bytes)
        for index, (entry,) in enumerate(_TABLE_ENTRY.iter_unpack(raw_table)):
            first = index * unit_bytes * 8
            if entry & _OFFSET_MASK:
                data = read_at(entry & _OFFSET_MASK, unit_bytes)
                bitmap.dirty.update(first + bit for bit in _set_bits(data))
            elif entry & _ALL_ONES:
                bitmap.dirty.update(range(first, first + unit_bytes * 8))
        bitmap.dirty = {bit for bit in bitmap.dirty if bit < bit_count}
        yield bitmap


def _set_bits(data: bytes) -> Iterator[int]:
    for index, byte in enumerate(data):
        for bit in range(8):
            if byte >> bit & 1:
                yield index * 8 + bit
