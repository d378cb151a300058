"""What a client sends behind the upgrade, read where TLS put it.

Owns taking a connection over from its streams, which would copy every byte three times, one buffer
that is used again and again, and holding the client back while that is full. What the bytes mean
is `http2`'s.
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

# What TLS of asyncio hands on at once.
_BUFFER_BYTES: Final = 1 << 18
# All that a stream reader may hold.
_TAKEN_BYTES_MAX: Final = 1 << 30


class BulkReader(asyncio.BufferedProtocol):
    """The reading end, and when there is room for more to be written, of an upgraded connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader: asyncio.StreamReader | None = reader
        self._writer = writer
        # Sockets, TLS and memory have both directions in one.
        self._transport = cast(asyncio.Transport, writer.transport)
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._ready = self._buffer[:0]
        self._is_ended = False
        self._error: Exception | None = None
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def read(self, n: int, /) -> memoryview:
        """Up to so many bytes, good until the next call; none at the end.

        Raises: what the connection was lost by.
        """
        if self._reader is not None:
            await self._take_over(self._reader)
        while not self._ready:
            if self._error is not None:
                raise self._error
            if self._is_ended:
                break
            self._changed.clear()
            self._transport.resume_reading()
            await self._changed.wait()
        data, self._ready = self._ready[:n], self._ready[n:]
        return data

    async def drain(self) -> None:
        """Return once there is room for more. Raises: what the connection was lost by."""
        await self._room.wait()
        if self._error is not None:
            raise self._error

    # -- as asyncio calls it ------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to put what comes."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """So much has come; no more until it has been read."""
        self._ready = self._buffer[:nbytes]
        self._transport.pause_reading()
        self._changed.set()

    def pause_writing(self) -> None:
        """The client is slower than what is written to it."""
        self._room.clear()

    def resume_writing(self) -> None:
        """No longer."""
        self._room.set()

    def eof_received(self) -> None:
        """The client has said all it will."""
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """There is no client any more."""
        self._end(exc or ConnectionResetError("Connection lost"))

    async def _take_over(self, reader: asyncio.StreamReader) -> None:
        data = await reader.read(_TAKEN_BYTES_MAX)
        # No wait from here on: nothing can come in between.
        self._ready = memoryview(data)
        if reader.at_eof() or self._transport.is_closing():
            self._is_ended = True
        else:
            self._transport.pause_reading()
            self._transport.set_protocol(self)
        self._reader = None

    def _end(self, error: Exception | None) -> None:
        self._is_ended = True
        self._error = self._error or error
        self._changed.set()
        self._room.set()
