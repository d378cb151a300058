"""Which pieces of a disk are read, and which are known without reading.

Owns cutting a reader's extents into the pieces that sinks take. Nothing is read here but what the
reader knows of its extents, a window at a time, so memory does not follow the size of the disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from vzdump_qemu.disk_ports import PIECE_BYTES, DiskReader, Extent, ExtentKind
from vzdump_qemu.errors import DiskReadError
from vzdump_qemu.units import GIB, KIB

# Also the longest run of zeroes put at once: 16384 vma_clusters, 150 KB of their headers.
_WINDOW_BYTES: Final = GIB
# A gap this short costs less to read than to ask around; and reads keep to a server's blocks.
_READ_ALIGNMENT_BYTES: Final = 64 * KIB


@dataclass(frozen=True, slots=True)
class KnownPieces:
    """Adjacent pieces, up to a window of them, that need no reading.

    Attributes:
        kind: ZERO or UNCHANGED.
    """

    offset_bytes: int
    length_bytes: int
    kind: ExtentKind


@dataclass(frozen=True, slots=True)
class ReadPiece:
    """One piece that must be read.

    Attributes:
        reads: (begin, end) within the piece, ascending; all else in it is zero.
    """

    offset_bytes: int
    length_bytes: int
    reads: tuple[tuple[int, int], ...]


Piece: TypeAlias = KnownPieces | ReadPiece


def cut_pieces(reader: DiskReader) -> Iterator[Piece]:
    """All pieces of a disk, ascending and gapless.

    Raises:
        DiskReadError: the reader cannot tell, or what it tells is no gapless list.
    """
    size_bytes = reader.size_bytes
    begun: list[Extent] = []
    for extent in _all_extents(reader):
        at = extent.offset_bytes
        while at < extent.end_bytes:
            if not begun and extent.kind is not ExtentKind.DATA:
                end = extent.end_bytes
                if end < size_bytes:
                    end -= end % PIECE_BYTES
                if end > at:
                    yield KnownPieces(at, end - at, extent.kind)
                    at = end
                    continue
            piece_at = at - at % PIECE_BYTES
            piece_end = min(piece_at + PIECE_BYTES, size_bytes)
            end = min(extent.end_bytes, piece_end)
            begun.append(Extent(at, end - at, extent.kind))
            at = end
            if end == piece_end:
                yield _piece(begun)
                begun = []


def _all_extents(reader: DiskReader) -> Iterator[Extent]:
    at = 0
    while at < reader.size_bytes:
        window_bytes = min(_WINDOW_BYTES, reader.size_bytes - at)
        end = at + window_bytes
        extents = reader.extents(at, window_bytes)
        if not extents:
            raise DiskReadError(f"nothing is known of the disk at byte {at}")
        for extent in extents:
            if extent.offset_bytes != at or extent.length_bytes <= 0 or extent.end_bytes > end:
                raise DiskReadError(f"extents of the disk are no gapless list at byte {at}")
            yield extent
            at = extent.end_bytes


def _piece(parts: list[Extent]) -> Piece:
    begin, end = parts[0].offset_bytes, parts[-1].end_bytes
    kinds = {part.kind for part in parts}
    if len(kinds) == 1 and ExtentKind.DATA not in kinds:
        return KnownPieces(begin, end - begin, parts[0].kind)
    reads: list[tuple[int, int]] = []
    for part in parts:
        # A piece that changed in part is put whole, so what did not change is read as well.
        if part.kind is ExtentKind.ZERO:
            continue
        first = part.offset_bytes - begin
        first -= first % _READ_ALIGNMENT_BYTES
        last = part.end_bytes - begin
        last = min(last + -last % _READ_ALIGNMENT_BYTES, end - begin)
        if reads and first <= reads[-1][1]:
            first = reads.pop()[0]
        reads.append((first, last))
    return ReadPiece(begin, end - begin, tuple(reads))
