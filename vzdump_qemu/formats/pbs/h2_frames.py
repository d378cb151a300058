"""HTTP/2 for bulk: what a library for pages copies and describes, passed by.

Owns the two places where `h2` handles the data of requests and replies byte by byte: frames that
come in, each of which it puts together, copies and renders for a log that is off; and frames that
go out, each of which it joins to all that waits. Protocol and credit stay the library's; how
headers are written is `h2_headers`'s.
No input or output. Source: PBS formats, section 3; RFC 9113, sections 4.1 and 6.1.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import h2.config
import h2.connection
import h2.exceptions
import h2.frame_buffer
from hyperframe.frame import DataFrame, Frame, HeadersFrame

from vzdump_qemu.formats.pbs.h2_headers import PlainEncoder
from vzdump_qemu.formats.pbs.layout import Buffer
from vzdump_qemu.units import KIB

_PREFACE_BYTES: Final = 24
# length (24 bits), type, flags, stream
_HEADER: Final = struct.Struct(">HBBBL")
_HEADER_BYTES: Final = 9
_DATA: Final = 0x0
_HEADERS: Final = 0x1
_CONTINUED_TYPES: Final = frozenset({0x1, 0x5, 0x9})
_END_STREAM: Final = 0x1
_END_HEADERS: Final = 0x4
_PADDED: Final = 0x8
_PRIORITY: Final = 0x20
# What most frames have, and nothing that changes how the rest is read.
_PLAIN_FLAGS: Final = {"END_STREAM": _END_STREAM, "END_HEADERS": _END_HEADERS}
# Below this a copy is cheaper than a buffer of its own.
_COPIED_BYTES_MAX: Final = 4 * KIB

assert _HEADER.size == _HEADER_BYTES


# Told of data as it comes: stream, and a view that is good only during the call.
TakeData: TypeAlias = Callable[[int, memoryview], None]


class _Elsewhere:
    """Stands for data in a frame, where the library wants to know nothing but its length."""

    __slots__ = ("_length_bytes", "buffer")

    def __init__(self, length_bytes: int, buffer: Buffer = b"") -> None:
        self._length_bytes = length_bytes
        self.buffer = buffer

    def __len__(self) -> int:
        return self._length_bytes


class BulkFrames(h2.frame_buffer.FrameBuffer):
    """Incoming frames, none of which holds data: that goes to `take_data` as it comes.

    So what is taken may belong to a frame that is refused when all of it is here: the connection
    ends with that. Each `add_data` has to be followed by an iteration to the end, as
    `H2Connection.receive_data` does; what was added may be changed then. Frames that are too long
    are refused by their header, before anything of them is kept.
    """

    def __init__(self, take_data: TakeData, *, server: bool) -> None:
        super().__init__(server=server)
        self._take_data = take_data
        self._preface_bytes = _PREFACE_BYTES if server else 0
        self._rest = memoryview(b"")
        # A header, or the whole of a frame that the library is to read.
        self._begun = bytearray()
        self._data_frame: DataFrame | None = None
        self._data_bytes_missing = 0
        self._is_in_headers = False

    def add_data(self, data: Any) -> None:
        """Take what has come. Raises h2.exceptions.ProtocolError for a wrong preface."""
        view = memoryview(data)
        if self._preface_bytes:
            preface = view[: self._preface_bytes]
            super().add_data(preface)
            self._preface_bytes -= len(preface)
            view = view[len(preface) :]
        self._rest = view

    def __next__(self) -> Frame:
        """The next whole frame; StopIteration where nothing is left."""
        if self._data_frame is not None:
            return self._gather_data(self._data_frame)
        self._gather(_HEADER_BYTES)
        high, low, kind, flags, stream_id = _HEADER.unpack_from(self._begun)
        length_bytes = (high << 8) + low
        if length_bytes > self.max_frame_size:
            raise h2.exceptions.FrameTooLargeError(
                f"Received overlong frame: length {length_bytes}, max {self.max_frame_size}"
            )
        if kind == _DATA and not flags & _PADDED and stream_id & 0x7FFFFFFF:
            if self._is_in_headers:
                raise h2.exceptions.ProtocolError("Invalid frame during header block.")
            self._begun.clear()
            self._data_frame = _data_frame(flags, stream_id & 0x7FFFFFFF, length_bytes)
            self._data_bytes_missing = length_bytes
            return self._gather_data(self._data_frame)
        self._gather(_HEADER_BYTES + length_bytes)
        whole, self._begun = self._begun, bytearray()
        is_plain = flags & (_END_HEADERS | _PADDED | _PRIORITY) == _END_HEADERS
        if kind == _HEADERS and is_plain and stream_id & 0x7FFFFFFF and not self._is_in_headers:
            return _headers_frame(flags, stream_id & 0x7FFFFFFF, bytes(whole[_HEADER_BYTES:]))
        if kind in _CONTINUED_TYPES:
            self._is_in_headers = not flags & _END_HEADERS
        super().add_data(whole)
        frame = super().__next__()
        if isinstance(frame, DataFrame) and frame.data:
            self._take_data(frame.stream_id, memoryview(frame.data))
        return frame

    def _gather(self, wanted_bytes: int) -> None:
        missing_bytes = wanted_bytes - len(self._begun)
        if missing_bytes > 0:
            self._begun += self._rest[:missing_bytes]
            self._rest = self._rest[missing_bytes:]
            if len(self._begun) < wanted_bytes:
                raise StopIteration

    def _gather_data(self, frame: DataFrame) -> Frame:
        if piece := self._rest[: self._data_bytes_missing]:
            self._take_data(frame.stream_id, piece)
            self._data_bytes_missing -= len(piece)
            self._rest = self._rest[len(piece) :]
        if self._data_bytes_missing:
            raise StopIteration
        self._data_frame = None
        return frame


class BulkConnection(h2.connection.H2Connection):
    """A connection that hands out data as it comes, and what is to be sent as buffers.

    `buffers_to_send` takes the place of `data_to_send`. Events of data have lengths only.
    """

    def __init__(self, config: h2.config.H2Configuration, take_data: TakeData) -> None:
        super().__init__(config)
        self.incoming_buffer = BulkFrames(take_data, server=not config.client_side)
        self.encoder = PlainEncoder()
        self._buffers: list[Buffer] = []

    def buffers_to_send(self) -> list[Buffer]:
        """All that waits, in order; none of it is empty. Data is not copied: leave it alone."""
        self._buffers_end()
        buffers, self._buffers = self._buffers, []
        return buffers

    def send_data(
        self, stream_id: int, data: Any, end_stream: bool = False, pad_length: Any = None
    ) -> None:
        """As the library says; what is long is not copied."""
        if len(data) > _COPIED_BYTES_MAX and pad_length is None:
            data = _Elsewhere(len(data), data)
        super().send_data(stream_id, data, end_stream, pad_length)

    def _prepare_for_sending(self, frames: list[Frame]) -> None:
        for frame in frames:
            parts = _plain_parts(frame)
            if parts is None:
                super()._prepare_for_sending([frame])
                continue
            header, data = parts
            if isinstance(data, _Elsewhere):
                self._buffers_end()
                self._buffers += (header, data.buffer)
            else:
                self._data_to_send += header
                self._data_to_send += data

    def _buffers_end(self) -> None:
        if data := self.data_to_send():
            self._buffers.append(data)


def _data_frame(flags: int, stream_id: int, length_bytes: int) -> DataFrame:
    frame = DataFrame(stream_id)
    frame.parse_flags(flags)
    elsewhere: Any = _Elsewhere(length_bytes)
    frame.data = elsewhere
    frame.body_len = length_bytes
    _leave_unrendered(frame)
    return frame


def _headers_frame(flags: int, stream_id: int, block: bytes) -> HeadersFrame:
    frame = HeadersFrame(stream_id)
    frame.parse_flags(flags)
    frame.data = block
    frame.body_len = len(block)
    _leave_unrendered(frame)
    return frame


def _leave_unrendered(frame: Frame) -> None:
    """Rendering costs as much as hashing the data; nothing but the log asks for it."""
    frame.__dict__["_body_repr"] = str


def _plain_parts(frame: Frame) -> tuple[bytes, Any] | None:
    """Header and data of a frame of which nothing else has to be made; None for all others."""
    if not isinstance(frame, DataFrame | HeadersFrame):
        return None
    bits = 0
    for name in frame.flags:
        if name not in _PLAIN_FLAGS:
            return None
        bits |= _PLAIN_FLAGS[name]
    length_bytes = len(frame.data)
    size = (length_bytes >> 8, length_bytes & 0xFF)
    return _HEADER.pack(*size, frame.type, bits, frame.stream_id), frame.data
