"""The bytes under HTTP/2: a connection taken over from the streams that made the upgrade.

Owns reading into one buffer that is used again and again, writing buffers as they are, and when
there is room for more of them. Frames are `h2_stream`'s. Streams of asyncio would copy everything
that comes in three times.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import Final

from vzdump_qemu.errors import PbsError, PbsUnreachable
from vzdump_qemu.formats.pbs.layout import Buffer
from vzdump_qemu.units import KIB

# What TLS of asyncio hands on at once.
_READ_BYTES: Final = 256 * KIB
# All that a stream reader may hold.
_TAKEN_BYTES_MAX: Final = 1 << 30


class H2Line(asyncio.BufferedProtocol):
    """A connection behind the upgrade; owns both streams.

    Args:
        on_data: told of what has come; the view is good only during the call.
        on_end: told once, why the connection has ended.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        on_data: Callable[[memoryview], None],
        on_end: Callable[[PbsError], None],
    ) -> None:
        # Streams that nobody holds any more close what they were made of.
        self._streams = (reader, writer)
        self._transport = writer.transport
        self._on_data = on_data
        self._on_end = on_end
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._room = asyncio.Event()
        self._room.set()
        self._taking = asyncio.create_task(self._take_over(reader), name="pbs-receive")

    @property
    def unsent_bytes(self) -> int:
        """What was written and has not left yet."""
        return self._transport.get_write_buffer_size()

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Send buffers, none of them empty; nothing where the connection has ended."""
        if buffers and not self._transport.is_closing():
            self._transport.writelines(buffers)

    async def drain(self) -> None:
        """Return once there is room for more, or the connection has ended."""
        await self._room.wait()

    def abort(self) -> None:
        """End the connection where it stands. Idempotent."""
        self._taking.cancel()
        self._room.set()
        # Not closed: that would wait for the other side's goodbye.
        self._transport.abort()

    async def aborted(self) -> None:
        """Return once nothing runs any more, after `abort`."""
        await asyncio.wait([self._taking])

    # -- as asyncio calls it ------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to put what comes."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """So much has come."""
        self._on_data(self._buffer[:nbytes])

    def pause_writing(self) -> None:
        """More is waiting to be sent than should."""
        self._room.clear()

    def resume_writing(self) -> None:
        """No longer."""
        self._room.set()

    def eof_received(self) -> None:
        """The other side has said all it will."""
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """There is no connection any more."""
        self._end(exc)

    async def _take_over(self, reader: asyncio.StreamReader) -> None:
        """Hand on what came right behind the upgrade, then be told of all else."""
        try:
            data = await reader.read(_TAKEN_BYTES_MAX)
        except (OSError, ssl.SSLError) as error:
            self._end(error)
            return
        # No wait from here on: nothing can come in between.
        if data:
            self._on_data(memoryview(data))
        if reader.at_eof() or self._transport.is_closing():
            self._end(None)
        else:
            self._transport.set_protocol(self)

    def _end(self, error: Exception | None) -> None:
        self._room.set()
        if error is None:
            self._on_end(PbsUnreachable("server ended the connection"))
        else:
            cause = error.strerror if isinstance(error, OSError) else None
            self._on_end(
                PbsUnreachable(f"the connection to the server was lost - {cause or error}")
            )
