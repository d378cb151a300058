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
import h2.frame_buffer
import h2.settings
from hyperframe.frame import DataFrame, Frame

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
_SEND_BYTES: Final = 1 << 18

Handler = Callable[[Request], Awaitable[Reply]]


@dataclass(slots=True)
class _Incoming:
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)
    body_bytes: int = 0

    def request(self) -> Request:
        """What has come in so far."""
        return Request(
            method=self.method,
            path=self.path,
            query=self.query,
            headers=self.headers,
            body=bytes(self.body),
            body_bytes=self.body_bytes,
        )


class _BriefFrames(h2.frame_buffer.FrameBuffer):
    """Frames that describe themselves without their data.

    The library describes each frame to a log that is off, which costs more than hashing the data.
    """

    def __next__(self) -> Frame:
        frame = super().__next__()
        if isinstance(frame, DataFrame):
            vars(frame)["_body_repr"] = str
        return frame


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
        self._incoming: dict[int, _Incoming] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._window_opened = asyncio.Event()
        self._is_over = False
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
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
        self._h2.incoming_buffer = _BriefFrames(server=True)

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
            await self._flush()

    def _take(self, event: h2.events.Event, group: asyncio.TaskGroup) -> None:
        match event:
            case h2.events.RequestReceived():
                self._begin(event)
            case h2.events.DataReceived():
                self._keep(event)
            case h2.events.StreamEnded():
                self._start(event.stream_id, group)
            case h2.events.StreamReset():
                if incoming := self._incoming.pop(event.stream_id, None):
                    # The script counts what a client began, whether or not it came to an end.
                    self._faults.take(incoming.request().endpoint, *REQUEST_KINDS)
                if task := self._tasks.get(event.stream_id):
                    task.cancel()
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                self._window_opened.set()
            case h2.events.ConnectionTerminated():
                self._is_over = True

    def _begin(self, event: h2.events.RequestReceived) -> None:
        headers = {str(name): str(value) for name, value in event.headers}
        path, _, query = headers.get(":path", "/").partition("?")
        self._incoming[event.stream_id] = _Incoming(
            method=headers.get(":method", ""), path=path, query=query, headers=headers
        )

    def _keep(self, event: h2.events.DataReceived) -> None:
        incoming = self._incoming.get(event.stream_id)
        if incoming is not None:
            incoming.body_bytes += len(event.data)
            if len(incoming.body) <= UPLOAD_BYTES_MAX:
                incoming.body += event.data
        if event.flow_controlled_length:
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)

    def _start(self, stream_id: int, group: asyncio.TaskGroup) -> None:
        incoming = self._incoming.pop(stream_id, None)
        if incoming is None:
            return
        request = incoming.request()
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
            self._h2.send_data(stream_id, bytes(piece), end_stream=not len(body))
            await self._flush()
        await self._flush()

    async def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data:
            self._writer.write(data)
            await self._writer.drain()
