"""A pair of asyncio streams in memory, joined like a socket, for loops without sockets.

Owns the transports: order, flow control, half-close and abort. Nothing is delayed: bytes arrive in
the next round of the loop.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

_UNREAD_BYTES_MAX: Final = 1 << 20
# What arrives at once; in between the reader may say that it has enough.
_PIECE_BYTES: Final = 1 << 18

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class MemoryTransport(asyncio.Transport):
    """One end; `peer` is the other."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.BaseProtocol) -> None:
        super().__init__({"peername": ("memory", 0)})
        self._loop = loop
        self._protocol = protocol
        self._arrived = bytearray()
        self._is_eof_arrived = False
        self._is_eof_told = False
        self._is_reading = True
        self._is_closing = False
        self._is_paused = False
        self._is_due = False
        self.peer: MemoryTransport

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self._is_closing or self.peer._is_closing:
            return
        self.peer._arrived += data
        self.peer._deliver_soon()
        self._hold_back()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.peer._is_eof_arrived = True
        self.peer._deliver_soon()

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True
        self._deliver_soon()

    def is_reading(self) -> bool:
        return self._is_reading

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        """What was written still arrives."""
        if not self._is_closing:
            self._end(None)
            self.write_eof()

    def abort(self) -> None:
        """What has not been read by the other side is lost, as with a reset."""
        if not self._is_closing:
            self._end(None)
            self.peer._arrived.clear()
            if not self.peer._is_closing:
                self.peer._end(ConnectionResetError("Connection reset by peer"))

    def get_write_buffer_size(self) -> int:
        return len(self.peer._arrived)

    def _end(self, error: Exception | None) -> None:
        self._is_closing = True
        self._loop.call_soon(self._protocol.connection_lost, error)

    def _hold_back(self) -> None:
        is_full = len(self.peer._arrived) > _UNREAD_BYTES_MAX
        if is_full and not self._is_paused:
            self._is_paused = True
            self._protocol.pause_writing()
        elif self._is_paused and not is_full:
            self._is_paused = False
            self._protocol.resume_writing()

    def _deliver_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._is_due = False
        if self._is_closing or not self._is_reading:
            return
        if self._arrived:
            data = bytes(self._arrived[:_PIECE_BYTES])
            del self._arrived[:_PIECE_BYTES]
            self._hand_over(data)
            if not self.peer._is_closing:
                self.peer._hold_back()
        if self._arrived:
            self._deliver_soon()
        elif self._is_eof_arrived and not self._is_eof_told:
            self._is_eof_told = True
            if isinstance(self._protocol, asyncio.Protocol | asyncio.BufferedProtocol):
                self._protocol.eof_received()

    def _hand_over(self, data: bytes) -> None:
        match self._protocol:
            case asyncio.BufferedProtocol() as protocol:
                while data:
                    buffer = memoryview(protocol.get_buffer(len(data))).cast("B")
                    count = min(len(buffer), len(data))
                    buffer[:count] = data[:count]
                    protocol.buffer_updated(count)
                    data = data[count:]
            case asyncio.Protocol() as protocol:
                protocol.data_received(data)


def memory_streams(limit_bytes: int = 1 << 16) -> tuple[Streams, Streams]:
    """Two joined ends on the running loop."""
    loop = asyncio.get_running_loop()
    readers = [asyncio.StreamReader(limit=limit_bytes, loop=loop) for _ in range(2)]
    protocols = [asyncio.StreamReaderProtocol(reader, loop=loop) for reader in readers]
    transports = [MemoryTransport(loop, protocol) for protocol in protocols]
    transports[0].peer, transports[1].peer = transports[1], transports[0]
    ends = []
    for reader, protocol, transport in zip(readers, protocols, transports, strict=True):
        protocol.connection_made(transport)
        ends.append((reader, asyncio.StreamWriter(transport, protocol, reader, loop)))
    return ends[0], ends[1]
