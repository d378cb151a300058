"""Requests and replies of the NBD transmission phase, without I/O.

Owns encoding of reads and block status requests, decoding of simple replies and of chunks, and
the bookkeeping that a read was answered whole and once. What a server announces is checked
against what was asked before anything of that length is received. Source: the public NBD
protocol description.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

from vzdump_qemu.errors import DiskReadError
from vzdump_qemu.formats.nbd import layout
from vzdump_qemu.formats.nbd.handshake import one_line
from vzdump_qemu.formats.nbd.layout import ChunkType, Command

_ERROR_TEXTS = {
    1: "Operation not permitted",
    5: "Input/output error",
    12: "Cannot allocate memory",
    22: "Invalid argument",
    28: "No space left on device",
    75: "Value too large for defined data type",
    95: "Operation not supported",
    108: "the server is shutting down",
}
# A server may answer in any order; one that leaves this many gaps does it on purpose.
_PART_COUNT_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class ReplyFront:
    """The first 16 bytes of a reply.

    Attributes:
        cookie: of the request that it answers.
        chunk_type: None for a simple reply; a chunk's length comes as 4 more bytes.
        is_last: nothing more comes for that request.
        error: of a simple reply; 0 for none.
    """

    cookie: int
    chunk_type: int | None
    is_last: bool
    error: int


def encode_read(
    cookie: int, offset_bytes: int, length_bytes: int, *, in_one_chunk: bool = False
) -> bytes:
    """Ask for data.

    Args:
        in_one_chunk: only where the export offers it. QEMU then answers a failed read with an
            error and its text; otherwise it hangs up on failures amid a reply.
    """
    flags = layout.REQUEST_FLAG_DF if in_one_chunk else 0
    return _request(Command.READ, cookie, offset_bytes, length_bytes, flags=flags)


def encode_block_status(cookie: int, offset_bytes: int, length_bytes: int) -> bytes:
    """Ask for the status in all contexts that were negotiated; under 4 GiB at a time."""
    return _request(Command.BLOCK_STATUS, cookie, offset_bytes, length_bytes)


def encode_disconnect() -> bytes:
    """Say farewell; there is no reply."""
    return _request(Command.DISCONNECT, 0, 0, 0)


def _request(
    command: Command, cookie: int, offset_bytes: int, length_bytes: int, *, flags: int = 0
) -> bytes:
    return layout.REQUEST_STRUCT.pack(
        layout.REQUEST_MAGIC, flags, command, cookie, offset_bytes, length_bytes
    )


def decode_reply_front(raw: bytes | bytearray, *, structured: bool) -> ReplyFront:
    """Decode the front of a reply.

    Raises:
        DiskReadError: it is neither, or a simple reply where only chunks may carry data.
    """
    magic = layout.NUMBER_STRUCT.unpack_from(raw)[0]
    if magic == layout.CHUNK_MAGIC and structured:
        _, flags, chunk_type, cookie = layout.CHUNK_STRUCT.unpack(raw)
        return ReplyFront(cookie, chunk_type, bool(flags & layout.CHUNK_FLAG_DONE), 0)
    if magic == layout.SIMPLE_REPLY_MAGIC:
        _, error, cookie = layout.SIMPLE_REPLY_STRUCT.unpack(raw)
        if not structured or error:
            return ReplyFront(cookie, None, True, error)
    raise DiskReadError("NBD server sent something else than a reply")


def check_error_length(length_bytes: int) -> None:
    """Raise DiskReadError if an error chunk announces more than errors have to say."""
    if not layout.ERROR_STRUCT.size <= length_bytes <= layout.OPTION_REPLY_BYTES_MAX:
        raise DiskReadError(f"NBD server announced an error of {length_bytes} bytes")


def decode_error(payload: bytes | bytearray) -> DiskReadError:
    """What an error chunk says."""
    error, text_bytes = layout.ERROR_STRUCT.unpack_from(payload)
    begin = layout.ERROR_STRUCT.size
    return server_error(error, bytes(payload[begin : begin + text_bytes]))


def server_error(error: int, text: bytes = b"") -> DiskReadError:
    """The error that a server answered a request with."""
    said = one_line(text)
    return DiskReadError(_ERROR_TEXTS.get(error, f"error {error}") + (f" ({said})" if said else ""))


class PendingRead:
    """One read on its way: which parts of it were answered.

    Args:
        offset_bytes, length_bytes: as asked for.
    """

    def __init__(self, offset_bytes: int, length_bytes: int) -> None:
        self.offset_bytes = offset_bytes
        self.length_bytes = length_bytes
        # Ends of answered parts by their begins, merged where they touch.
        self._begins: list[int] = []
        self._ends: list[int] = []

    def take_data(self, chunk_bytes: int, offset_bytes: int) -> tuple[int, int]:
        """Enter a data chunk of that payload; place in the buffer and length of its data.

        Raises:
            DiskReadError: it lies outside of what was asked for, or came before.
        """
        return self._take(offset_bytes, chunk_bytes - layout.OFFSET_STRUCT.size)

    def take_hole(self, payload: bytes | bytearray) -> tuple[int, int]:
        """Enter a hole; place in the buffer and length of its zeroes. Raises as `take_data`."""
        offset_bytes, length_bytes = layout.HOLE_STRUCT.unpack(payload)
        return self._take(offset_bytes, length_bytes)

    def check_whole(self) -> None:
        """Raise DiskReadError if the reply ended with a part missing."""
        if self._begins != [0] or self._ends != [self.length_bytes]:
            raise DiskReadError("NBD server ended a reply before all of it was sent")

    def _take(self, offset_bytes: int, length_bytes: int) -> tuple[int, int]:
        begin = offset_bytes - self.offset_bytes
        end = begin + length_bytes
        if begin < 0 or length_bytes <= 0 or end > self.length_bytes:
            raise DiskReadError("NBD server sent data that was not asked for")
        begins, ends = self._begins, self._ends
        # The usual case first: parts come in order and each continues the one before.
        at = len(begins)
        if begins and begin < ends[-1]:
            at = bisect_left(begins, begin)
            if (at < len(begins) and begins[at] < end) or (at and ends[at - 1] > begin):
                raise DiskReadError("NBD server sent the same data twice")
        if at and ends[at - 1] == begin:
            ends[at - 1] = end
        else:
            begins.insert(at, begin)
            ends.insert(at, end)
            at += 1
        if at < len(begins) and begins[at] == ends[at - 1]:
            ends[at - 1] = ends.pop(at)
            del begins[at]
        if len(begins) > _PART_COUNT_MAX:
            raise DiskReadError("NBD server scatters a reply beyond measure")
        return begin, length_bytes


def check_data_length(length_bytes: int, pending: PendingRead) -> None:
    """Raise DiskReadError if a data chunk announces more, or less, than it may hold."""
    if not 0 < length_bytes - layout.OFFSET_STRUCT.size <= pending.length_bytes:
        raise DiskReadError(f"NBD server announced a data chunk of {length_bytes} bytes")


def check_hole_length(length_bytes: int) -> None:
    """Raise DiskReadError if a hole chunk has a wrong length."""
    if length_bytes != layout.HOLE_STRUCT.size:
        raise DiskReadError(f"NBD server announced a hole chunk of {length_bytes} bytes")


def chunk_name(chunk_type: int) -> str:
    """How a chunk of that type is called in an error."""
    known = chunk_type in ChunkType.__members__.values()
    return ChunkType(chunk_type).name if known else f"{chunk_type:#x}"
