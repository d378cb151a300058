"""The container of the lzop program around LZO blocks.

Owns the framing and its sums; the blocks themselves are decompressed by `lzallright`. One member
only, as backups are written; zero padding behind it is accepted, as lzop itself does.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Final

import lzallright

from vzdump_qemu.errors import VmaError

LZOP_MAGIC: Final = b"\x89LZO\x00\r\n\x1a\n"
# lzop always makes blocks of 256 KiB; the bound keeps a damaged length from costing memory.
_BLOCK_BYTES_MAX: Final = 8 * 1024 * 1024
_ADLER32_PLAIN: Final = 0x0001
_ADLER32_PACKED: Final = 0x0002
_EXTRA_FIELD: Final = 0x0040
_CRC32_PLAIN: Final = 0x0100
_CRC32_PACKED: Final = 0x0200
_MULTIPART: Final = 0x0400
_FILTER: Final = 0x0800
_HEADER_CRC32: Final = 0x1000
_VERSION_WITH_LEVEL: Final = 0x0940
_U8: Final = struct.Struct(">B")
_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")


def decode_lzop(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """Yield the content block by block.

    Args:
        read: gives as many bytes as asked for, fewer only at the end of the input.

    Raises:
        VmaError: damaged, cut short, of a kind lzop does not write, or followed by other data.
    """
    flags = _read_header(read)
    while True:
        plain_bytes = _number(_exactly(read, 4))
        if not plain_bytes:
            break
        yield _read_block(read, flags, plain_bytes)
    while rest := read(65536):
        if rest.count(0) != len(rest):
            raise VmaError("lzop file is followed by other data")


def _read_header(read: Callable[[int], bytes]) -> int:
    if _exactly(read, len(LZOP_MAGIC)) != LZOP_MAGIC:
        raise VmaError("not an lzop file - wrong magic number")
    seen = bytearray()

    def take(layout: struct.Struct) -> int:
        raw = _exactly(read, layout.size)
        seen.extend(raw)
        return int(layout.unpack(raw)[0])

    version = take(_U16)
    take(_U16)
    if version >= _VERSION_WITH_LEVEL:
        take(_U16)
    method = take(_U8)
    if version >= _VERSION_WITH_LEVEL:
        take(_U8)
    flags = take(_U32)
    if flags & _FILTER:
        take(_U32)
    take(_U32)
    take(_U32)
    if version >= _VERSION_WITH_LEVEL:
        take(_U32)
    seen.extend(_exactly(read, take(_U8)))
    checksum = zlib.crc32(seen) if flags & _HEADER_CRC32 else zlib.adler32(seen)
    if _number(_exactly(read, 4)) != checksum:
        raise VmaError("lzop header checksum is wrong")
    if method not in (1, 2, 3) or flags & (_MULTIPART | _FILTER | _EXTRA_FIELD):
        raise VmaError(f"lzop file of an unknown kind (method {method}, flags {flags:#x})")
    return flags


def _read_block(read: Callable[[int], bytes], flags: int, plain_bytes: int) -> bytes:
    packed_bytes = _number(_exactly(read, 4))
    if plain_bytes > _BLOCK_BYTES_MAX or not 0 < packed_bytes <= plain_bytes:
        raise VmaError(f"lzop block has impossible lengths {packed_bytes}/{plain_bytes}")
    plain_sums = _read_sums(read, adler=flags & _ADLER32_PLAIN, crc=flags & _CRC32_PLAIN)
    packed_sums = (
        _read_sums(read, adler=flags & _ADLER32_PACKED, crc=flags & _CRC32_PACKED)
        if packed_bytes < plain_bytes
        else []
    )
    data = _exactly(read, packed_bytes)
    _check_sums(data, packed_sums)
    if packed_bytes < plain_bytes:
        try:
            data = lzallright.LZOCompressor.decompress(data, plain_bytes)
        except lzallright.LZOError:
            raise VmaError("lzop block is damaged") from None
    if len(data) != plain_bytes:
        raise VmaError(f"lzop block gives {len(data)} bytes instead of {plain_bytes}")
    _check_sums(data, plain_sums)
    return data


def _read_sums(
    read: Callable[[int], bytes], *, adler: int, crc: int
) -> list[tuple[Callable[[bytes], int], int]]:
    sums: list[tuple[Callable[[bytes], int], int]] = []
    if adler:
        sums.append((zlib.adler32, _number(_exactly(read, 4))))
    if crc:
        sums.append((zlib.crc32, _number(_exactly(read, 4))))
    return sums


def _check_sums(data: bytes, sums: list[tuple[Callable[[bytes], int], int]]) -> None:
    for function, expected in sums:
        if function(data) != expected:
            raise VmaError("lzop block checksum is wrong")


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, "big")


def _exactly(read: Callable[[int], bytes], count: int) -> bytes:
    raw = read(count)
    if len(raw) < count:
        raise VmaError("lzop file is cut short")
    return raw
