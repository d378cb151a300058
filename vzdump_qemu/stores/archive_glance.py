"""Whether an archive looks whole, at the cost of its beginning, its end and its log.

Owns what an archive that was cut short on its way gives away without being read: an end at which
no archive of its kind ends, or another size than its log tells. What it does not give away is
`archive_reading.verify_archive`'s. Source: VMA format, sections 1, 2 and 4; host behaviour, 1.7
(step 22) and 2.8.
"""

from __future__ import annotations

import os
import re

from vzdump_qemu.errors import VmaError
from vzdump_qemu.formats.vma import VmaHeader, layout
from vzdump_qemu.stores.archive_reading import list_archive
from vzdump_qemu.stores.archive_source import Compression
from vzdump_qemu.units import KIB, render_archive_size

_EXTENT_BYTES_MAX = (
    layout.EXTENT_HEADER_BYTES + layout.EXTENT_BLOCK_COUNT_MAX * layout.VMA_BLOCK_BYTES
)
_LZOP_END = bytes(4)
# The line stands near the end of a log.
_LOG_TAIL_BYTES = 256 * KIB
_SIZE_LINE = re.compile(rb"archive file size: (\d+(?:\.\d+)?[KMGT]B)\s*$", re.MULTILINE)


def looks_whole(path: str, log_path: str) -> bool:
    """Whether nothing speaks against an archive.

    Args:
        log_path: of the log beside it; one that is missing or tells no size speaks for nothing.
    """
    try:
        summary = list_archive(path)
        size_bytes = os.stat(path).st_size
        match summary.compression:
            case Compression.NONE:
                ends_well = _ends_with_extent(path, summary.header, size_bytes)
            case Compression.LZOP:
                ends_well = _read_tail(path, len(_LZOP_END)) == _LZOP_END
            case _:
                # What ends these is a sum over everything before it.
                ends_well = True
    except (VmaError, OSError):
        return False
    return ends_well and _told_size(log_path) in ("", render_archive_size(size_bytes))


def _ends_with_extent(path: str, header: VmaHeader, size_bytes: int) -> bool:
    """Whether some extent of this archive ends where the file does."""
    tail_bytes = min(size_bytes - header.header_bytes, _EXTENT_BYTES_MAX)
    if tail_bytes <= 0:
        return tail_bytes == 0
    tail = _read_tail(path, tail_bytes)
    at = tail.find(layout.EXTENT_MAGIC)
    while at >= 0:
        if len(tail) - at >= layout.EXTENT_HEADER_BYTES:
            _, _, block_count, uuid, _ = layout.EXTENT_STRUCT.unpack_from(tail, at)
            end = at + layout.EXTENT_HEADER_BYTES + block_count * layout.VMA_BLOCK_BYTES
            if uuid == header.uuid and end == len(tail):
                return True
        at = tail.find(layout.EXTENT_MAGIC, at + 1)
    return False


def _told_size(log_path: str) -> str:
    """The size that a log tells, as it tells it; empty for none."""
    try:
        found = _SIZE_LINE.findall(_read_tail(log_path, _LOG_TAIL_BYTES))
    except OSError:
        return ""
    return found[-1].decode() if found else ""


def _read_tail(path: str, byte_count: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - byte_count))
        return file.read(byte_count)
