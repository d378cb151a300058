"""Reading an archive as a stream: headers checked, data handed on piece by piece.

`VmaStreamCheck` is told headers only and says how much data to skip, for a relay that never looks
at the data; `VmaReader` is fed everything. Both keep the same book. No I/O, no seeking; memory is
bounded by the header limit and the book. Source: VMA format, sections 1, 4, 6 and 7.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

from vzdump_qemu.errors import InternalError, VmaError
from vzdump_qemu.formats.vma import layout
from vzdump_qemu.formats.vma.book import ClusterBook, DeviceTally
from vzdump_qemu.formats.vma.extent import DataRun, VmaExtent, decode_extent
from vzdump_qemu.formats.vma.header import VmaHeader, decode_header, header_bytes_announced

NO_HEADER_HINT = "this is no VMA archive, or only its beginning"


@dataclass(frozen=True, slots=True)
class HeaderRead:
    """The archive header is whole and right."""

    header: VmaHeader


@dataclass(frozen=True, slots=True)
class ExtentRead:
    """An extent header is right; its data follows."""

    extent: VmaExtent


@dataclass(frozen=True, slots=True)
class DataRead:
    """A piece of a disk. Pieces are short where the input was, and never reach past the disk.

    Attributes:
        data: a view into what was fed; valid as long as that is.
    """

    vma_dev_id: int
    disk_offset_bytes: int
    data: memoryview


VmaEvent: TypeAlias = HeaderRead | ExtentRead | DataRead


class VmaStreamCheck:
    """Proves a stream whole from its headers alone.

    Give it exactly `needed_bytes` bytes, pass on or skip as many data bytes as it returns, and
    go on; at the end of the stream call `finish`. After a VmaError it is of no further use.
    """

    def __init__(self) -> None:
        self._fixed = b""
        self._header: VmaHeader | None = None
        self._book = ClusterBook(())
        self._extent: VmaExtent | None = None
        self._offset_bytes = 0
        self._extent_count = 0
        self._needed_bytes = layout.FIXED_HEADER_BYTES

    @property
    def needed_bytes(self) -> int:
        """Length of the next header part, never 0."""
        return self._needed_bytes

    @property
    def header(self) -> VmaHeader | None:
        """The archive header once it was given."""
        return self._header

    @property
    def extent(self) -> VmaExtent | None:
        """The extent given last."""
        return self._extent

    @property
    def extent_count(self) -> int:
        """Extents given so far."""
        return self._extent_count

    @property
    def stream_bytes(self) -> int:
        """Length of the stream so far, the data of the last extent included."""
        return self._offset_bytes

    def tallies(self) -> tuple[DeviceTally, ...]:
        """What was met so far, one row per device."""
        return self._book.tallies()

    def give(self, raw: bytes) -> int:
        """Take the next header part; the number of data bytes that follow it.

        Raises:
            VmaError: the part is wrong, or contradicts what came before.
        """
        if len(raw) != self._needed_bytes:
            raise InternalError(f"{len(raw)} header bytes given, {self._needed_bytes} needed")
        if self._header is not None:
            extent = decode_extent(
                raw, uuid=self._header.uuid, book=self._book, offset_bytes=self._offset_bytes
            )
            self._extent = extent
            self._extent_count += 1
            self._offset_bytes += len(raw) + extent.data_bytes
            return extent.data_bytes
        if not self._fixed:
            self._needed_bytes = header_bytes_announced(raw) - len(raw)
            self._fixed = raw
            return 0
        self._header = decode_header(self._fixed + raw)
        self._fixed = b""
        self._offset_bytes = self._header.header_bytes
        self._book = ClusterBook(self._header.devices)
        self._needed_bytes = layout.EXTENT_HEADER_BYTES
        return 0

    def finish(self, *, partial_bytes: int = 0, missing_data_bytes: int = 0) -> None:
        """The stream has ended.

        Args:
            partial_bytes: bytes of the next header part that came before the end.
            missing_data_bytes: bytes of the last extent's data that did not come.

        Raises:
            VmaError: it ended within something, or clusters are missing.
        """
        if self._header is None:
            if self._fixed:
                raise VmaError(
                    "can't read vma header data - got EOF",
                    offset_bytes=len(self._fixed) + partial_bytes,
                )
            raise VmaError(
                "can't read vma header - got EOF", offset_bytes=partial_bytes, hint=NO_HEADER_HINT
            )
        if missing_data_bytes and self._extent is not None:
            need = layout.EXTENT_HEADER_BYTES + self._extent.data_bytes
            raise VmaError(
                f"short vma extent ({need - missing_data_bytes} < {need}) "
                f"(extent at byte {self._extent.offset_bytes})",
                offset_bytes=self._offset_bytes - missing_data_bytes,
            )
        if partial_bytes:
            raise VmaError(
                f"read short extent ({partial_bytes} bytes) (at byte {self._offset_bytes})",
                offset_bytes=self._offset_bytes,
            )
        try:
            self._book.check_complete()
        except VmaError as error:
            raise VmaError(
                f"{error.message}, stream ends at byte {self._offset_bytes}",
                offset_bytes=self._offset_bytes,
            ) from None


class VmaReader:
    """Reads a stream that is fed in pieces of any size.

    Feed, take events until `next_event` returns None, feed again; call `finish` at the end of
    the stream. What was fed must not change until its events were taken.
    """

    def __init__(self) -> None:
        self._check = VmaStreamCheck()
        self._input: deque[memoryview] = deque()
        self._partial = bytearray()
        self._runs: deque[DataRun] = deque()
        self._run_taken_bytes = 0
        self._data_left_bytes = 0

    @property
    def check(self) -> VmaStreamCheck:
        """Header, counts and tallies of what was read so far."""
        return self._check

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add the next piece of the stream."""
        if len(data):
            self._input.append(memoryview(data).cast("B"))

    def next_event(self) -> VmaEvent | None:
        """The next event, or None until more is fed.

        Raises:
            VmaError: the stream is wrong; the reader is of no further use.
        """
        while self._input:
            if self._data_left_bytes:
                piece = self._take_data()
                if piece is not None:
                    return piece
                continue
            wanted = self._check.needed_bytes - len(self._partial)
            self._partial += self._take_input(wanted)
            if len(self._partial) < self._check.needed_bytes:
                continue
            event = self._take_header(bytes(self._partial))
            if event is not None:
                return event
        return None

    def finish(self) -> None:
        """The stream has ended, all events were taken.

        Raises:
            VmaError: it ended within something, or clusters are missing.
        """
        self._check.finish(
            partial_bytes=len(self._partial), missing_data_bytes=self._data_left_bytes
        )

    def _take_input(self, limit_bytes: int) -> memoryview:
        piece = self._input[0]
        if len(piece) <= limit_bytes:
            return self._input.popleft()
        self._input[0] = piece[limit_bytes:]
        return piece[:limit_bytes]

    def _take_header(self, raw: bytes) -> VmaEvent | None:
        self._partial.clear()
        had_header = self._check.header is not None
        self._data_left_bytes = self._check.give(raw)
        if had_header and self._check.extent is not None:
            self._runs.extend(self._check.extent.list_runs())
            return ExtentRead(self._check.extent)
        if self._check.header is not None:
            return HeaderRead(self._check.header)
        return None

    def _take_data(self) -> DataRead | None:
        """The next piece of the current run, or None if it was all padding."""
        run, begin = self._runs[0], self._run_taken_bytes
        piece = self._take_input(run.stored_bytes - begin)
        self._data_left_bytes -= len(piece)
        self._run_taken_bytes += len(piece)
        if self._run_taken_bytes == run.stored_bytes:
            self._runs.popleft()
            self._run_taken_bytes = 0
        kept = piece[: max(0, run.kept_bytes - begin)]
        if not len(kept):
            return None
        return DataRead(run.vma_dev_id, run.disk_offset_bytes + begin, kept)
