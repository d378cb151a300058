"""HTTP/2 as a server behind the upgrade: streams in, replies out.

Owns the frames, flow control in both directions, one task for each request and the end of the
connection; what a request means is the handler's. Source: PBS formats, section 3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from vzdump_qemu.formats.pbs.h2_frames import BulkConnection
from vzdump_qemu.formats.pbs.layout import UPLOAD_BYTES_MAX
from vzdump_qemu.units import MIB
from vzsim.fakepbs.faults import REQUEST_KINDS, Fault, FaultKind, Faults
from vzsim.fakepbs.requests import Reply, Request
from vzsim.fakepbs.spoiled_streams import CONNECTION_LOST, ByteReader, ByteWriter

WINDOW_BYTES: Final = 32 * MIB
FRAME_BYTES_MAX: Final = 4 * MIB
_STREAM_COUNT_MAX: Final = 1 << 20
_WINDOW_BYTES_DEFAULT: Final = 65535
_READ_BYTES: Final = 1 << 18
# A handler behind its reply may not stop the frames of others for longer than one of these.
_SEND_BYTES: Final = 1 << 20

Handler = Callable[[Request], Awaitable[Reply]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    method: str
    path: str
    query: str
    headers: dict[str, str]


@dataclass(slots=True)
class _Body:
    parts: list[bytes] = field(default_factory=list)
    length_bytes: int = 0

    def take(self, piece: memoryview) -> None:
        """Keep a piece, or only count it where no upload may be as long."""
        if self.length_bytes <= UPLOAD_BYTES_MAX:
            self.parts.append(bytes(piece))
        self.length_bytes += len(piece)


class Http2Server:
    """One connection behind the upgrade.

    Args:
        handle: answers a request; cancelled if the connection ends first.
        faults: `RESET` and `GOAWAY` act here.
    """

    def __init__(
        self,
        reader: ByteReader,
        writer: ByteWriter,
        handle: Handler,
        faults: Faults,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._handle = handle
        self._faults = faults
        self._heads: dict[int, _Head] = {}
        self._bodies: dict[int, _Body] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._window_opened = asyncio.Event()
        self._is_over = False
        self._h2 = BulkConnection(
            h2.config.H2Configuration(
                client_side=False,
                header_encoding="utf-8",
                # Ours are written as they must be; only a client's are checked.
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                # It would join cookies, of which there are none.
                normalize_inbound_headers=False,
            ),
            self._take_data,
        )
        codes = h2.settings.SettingCodes
        self._h2.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                codes.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
                codes.MAX_FRAME_SIZE: FRAME_BYTES_MAX,
                codes.MAX_CONCURRENT_STREAMS: _STREAM_COUNT_MAX,
                codes.MAX_HEADER_LIST_SIZE: 1 << 16,
            },
        )
        self._h2.max_inbound_frame_size = FRAME_BYTES_MAX

    async def run(self) -> None:
        """Serve until either side ends the connection."""
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(WINDOW_BYTES - _WINDOW_BYTES_DEFAULT)
        try:
            async with asyncio.TaskGroup() as group:
                try:
                    await self._receive_all(group)
                finally:
                    self._is_over = True
                    for task in self._tasks.values():
                        task.cancel()
        except* CONNECTION_LOST:
            # The client is gone; what that means is the session's to decide.
            pass

    async def _receive_all(self, group: asyncio.TaskGroup) -> None:
        await self._flush()
        while not self._is_over:
            data = await self._reader.read(_READ_BYTES)
            if not data:
                return
            try:
                events = self._h2.receive_data(data)
            except h2.exceptions.ProtocolError:
                # The library has prepared the reason for the client.
                await self._flush()
                return
            for event in events:
                self._take(event, group)
            # Data may come before its head was looked at, and after its request was refused.
            for stream_id in self._bodies.keys() - self._heads.keys():
                del self._bodies[stream_id]
            await self._flush()

    def _take(self, event: h2.events.Event, group: asyncio.TaskGroup) -> None:
        match event:
            case h2.events.RequestReceived():
                self._begin(event)
            case h2.events.DataReceived():
                if event.flow_controlled_length:
                    self._h2.acknowledge_received_data(
                        event.flow_controlled_length, event.stream_id
                    )
            case h2.events.StreamEnded():
                self._start(event.stream_id, group)
            case h2.events.StreamReset():
                if request := self._pop_request(event.stream_id):
                    # The script counts what a client began, whether or not it came to an end.
                    self._faults.take(request.endpoint, *REQUEST_KINDS)
                if task := self._tasks.get(event.stream_id):
                    task.cancel()
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                self._window_opened.set()
            case h2.events.ConnectionTerminated():
                self._is_over = True

    def _begin(self, event: h2.events.RequestReceived) -> None:
        headers = {str(name): str(value) for name, value in event.headers}
        path, _, query = headers.get(":path", "/").partition("?")
        self._heads[event.stream_id] = _Head(
            method=headers.get(":method", ""), path=path, query=query, headers=headers
        )

    def _take_data(self, stream_id: int, piece: memoryview) -> None:
        self._bodies.setdefault(stream_id, _Body()).take(piece)

    def _pop_request(self, stream_id: int) -> Request | None:
        """What has come in of a request so far."""
        head = self._heads.pop(stream_id, None)
        body = self._bodies.pop(stream_id, None) or _Body()
        if head is None:
            return None
        return Request(
            method=head.method,
            path=head.path,
            query=head.query,
            headers=head.headers,
            body=b"".join(body.parts),
            body_bytes=body.length_bytes,
        )

    def _start(self, stream_id: int, group: asyncio.TaskGroup) -> None:
        request = self._pop_request(stream_id)
        if request is None:
            return
        fault = self._faults.take(request.endpoint, FaultKind.RESET, FaultKind.GOAWAY)
        if fault is not None:
            self._refuse(stream_id, fault)
            return
        task = group.create_task(self._answer(stream_id, request))
        self._tasks[stream_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(stream_id, None))

    def _refuse(self, stream_id: int, fault: Fault) -> None:
        if fault.kind is FaultKind.RESET:
            self._h2.reset_stream(stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
            return
        self._h2.close_connection(
            h2.errors.ErrorCodes.ENHANCE_YOUR_CALM,
            additional_data=fault.text.encode(),
            last_stream_id=max(0, stream_id - 2),
        )
        self._is_over = True

    async def _answer(self, stream_id: int, request: Request) -> None:
        reply = await self._handle(request)
        try:
            await self._send(stream_id, reply)
        except h2.exceptions.ProtocolError:
            # The stream or the connection was closed by the client meanwhile.
            return

    async def _send(self, stream_id: int, reply: Reply) -> None:
        headers = [
            (":status", str(reply.status)),
            ("content-type", reply.content_type),
            ("content-length", str(len(reply.body))),
            *reply.headers,
        ]
        body = memoryview(reply.body)
        self._h2.send_headers(stream_id, headers, end_stream=not len(body))
        while len(body):
            room_bytes = min(
                self._h2.local_flow_control_window(stream_id),
                self._h2.max_outbound_frame_size,
                _SEND_BYTES,
            )
            if room_bytes <= 0:
                self._window_opened.clear()
                await self._window_opened.wait()
                continue
            piece, body = body[:room_bytes], body[room_bytes:]
            self._h2.send_data(stream_id, piece, end_stream=not len(body))
            await self._flush()
        await self._flush()

    async def _flush(self) -> None:
        if buffers := self._h2.buffers_to_send():
            self._writer.write(buffers)
            await self._writer.drain()
