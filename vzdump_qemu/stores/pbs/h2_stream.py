"""HTTP/2 on an upgraded connection: many requests at once, each with its reply.

Owns multiplexing, flow control both ways, bounds on what is held in memory, and that every wait
ends: by the reply, by the connection's end, by a stall of the whole connection, or by the
request's own time. The frames are `h2`'s, the meaning of requests `backup_session`'s and
`reader_session`'s. Source: PBS formats, section 3; failure modes, row 73.

For one event loop: every method is called from there, and nothing is locked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from vzdump_qemu.errors import PbsError, PbsUnreachable
from vzdump_qemu.formats.pbs.h2_frames import BulkConnection, TakeData
from vzdump_qemu.formats.pbs.layout import Buffer
from vzdump_qemu.stores.pbs.h2_line import H2Line
from vzdump_qemu.stores.pbs.http1 import join_target
from vzdump_qemu.stores.pbs.timeouts import Timeouts
from vzdump_qemu.units import KIB, MIB

# What the reference client keeps to; servers of PBS build longer paths from no query.
TARGET_BYTES_MAX: Final = 4096
# Replies that are not asked to be longer: JSON and messages.
SHORT_REPLY_BYTES_MAX: Final = 64 * KIB
# Between two frames other streams have their turn; larger ones cost fewer cycles for each byte. As
# long as a chunk, which is what servers of PBS take.
_SENT_FRAME_BYTES_MAX: Final = 4 * MIB
_RECEIVED_FRAME_BYTES_MAX: Final = MIB
_JOINED_BYTES_MAX: Final = 4 * KIB
_HEADER_BYTES_MAX: Final = 64 * KIB
# Every chunk of a parallel restore under way at once, so that none waits for credit.
_STREAM_WINDOW_BYTES: Final = 16 * MIB
_CONNECTION_WINDOW_BYTES: Final = 96 * MIB
# Answers that a peer makes us write without reading them: settings and pings.
_UNSENT_BYTES_MAX: Final = 32 * MIB
_AUTHORITY: Final = "localhost:8007"


@dataclass(frozen=True, slots=True, kw_only=True)
class H2Request:
    """One request.

    Attributes:
        body: buffers in order, not copied: leave them alone until the reply.
        reply_bytes_max: a longer reply is an error.
        reply_buffer: where the reply is put, and how long it may be at most; leave it alone until
            the reply is here. None has memory taken for it.
        timeout_s: of the whole request; None for the connection's own.
        may_stall: the server may be silent for all that time, as it has much to do.
    """

    method: str
    path: str
    query: Sequence[tuple[str, str]] = ()
    body: Sequence[Buffer] = field(default=(), repr=False)
    content_type: str = ""
    reply_bytes_max: int = SHORT_REPLY_BYTES_MAX
    reply_buffer: memoryview | None = field(default=None, repr=False)
    timeout_s: float | None = None
    may_stall: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class H2Reply:
    """Status and length of the reply, and all of it unless it is in the request's buffer."""

    status: int
    length_bytes: int
    body: bytes = field(repr=False)


class _Exchange:
    """A request under way."""

    __slots__ = (
        "_body", "_buffer", "_bytes_max", "_total_bytes", "may_stall", "reply", "status", "wake",
    )  # fmt: skip

    def __init__(self, request: H2Request) -> None:
        self._buffer = request.reply_buffer
        self._bytes_max = request.reply_bytes_max if self._buffer is None else len(self._buffer)
        # One object, however small the pieces are that a server sends.
        self._body = bytearray()
        self._total_bytes = 0
        self.may_stall = request.may_stall
        self.status = 0
        self.reply: asyncio.Future[H2Reply] = asyncio.get_running_loop().create_future()
        # There is credit to send, or no reason to send any more.
        self.wake = asyncio.Event()

    def take(self, piece: memoryview) -> None:
        """Keep a piece of the reply."""
        begin = self._total_bytes
        self._total_bytes += len(piece)
        if self._total_bytes > self._bytes_max:
            self._body.clear()
            self.fail(PbsError(f"server's reply is longer than {self._bytes_max} bytes"))
        elif self._buffer is None:
            self._body += piece
        else:
            self._buffer[begin : self._total_bytes] = piece

    def end(self) -> None:
        """The reply is whole."""
        if self.reply.done():
            return
        body = bytes(self._body)
        self._body.clear()
        self.reply.set_result(
            H2Reply(status=self.status, length_bytes=self._total_bytes, body=body)
        )
        self.wake.set()

    def fail(self, error: PbsError) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)
            # Whoever asked may have been cancelled; then nobody is there to be told.
            self.reply.exception()
        self.wake.set()


class H2Client:
    """The client's side of a connection that has just been upgraded; owns both streams."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, timeouts: Timeouts
    ) -> None:
        self._timeouts = timeouts
        self._exchanges: dict[int, _Exchange] = {}
        self._failure: PbsError | None = None
        self._send_turn = asyncio.Lock()
        self._room = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._moved_at = self._loop.time()
        self._connection = _make_connection(self._take_data)
        self._line = H2Line(reader, writer, on_data=self._receive, on_end=self._fail)
        self._write_pending()
        self._watch: asyncio.TimerHandle | None = None
        self._watch_stall()

    @property
    def failure(self) -> PbsError | None:
        """Why the connection ended, None as long as it has not."""
        return self._failure

    async def request(self, request: H2Request) -> H2Reply:
        """Carry out one request; as many at once as the server allows, the others wait.

        Raises:
            PbsUnreachable: the connection ended, or there was no reply in time: the request may
                have been carried out.
            PbsError: the server broke the protocol, or the reply is too long.
        Cancelled: the server is told; the request may have been carried out.
        """
        target = join_target(request.path, request.query, bytes_max=TARGET_BYTES_MAX)
        timeout_s = request.timeout_s or self._timeouts.request_s
        try:
            async with asyncio.timeout(timeout_s):
                return await self._carry_out(request, target)
        except TimeoutError as error:
            raise PbsUnreachable(
                f"server did not answer {request.method} {request.path} within {timeout_s:g} "
                "seconds"
            ) from error

    def abort(self) -> None:
        """End the connection where it stands; requests under way fail. Idempotent."""
        self._fail(PbsUnreachable("the connection to the server was ended by us"))

    async def close(self) -> None:
        """End the connection; requests under way fail. Idempotent, bounded.

        Cancelled: the connection has ended nevertheless.
        """
        if self._failure is None:
            with suppress(h2.exceptions.H2Error):
                self._connection.close_connection()
                self._write_pending()
        self.abort()
        await self._line.aborted()

    async def _carry_out(self, request: H2Request, target: str) -> H2Reply:
        await self._wait_for_room()
        exchange = _Exchange(request)
        try:
            stream_id = self._connection.get_next_available_stream_id()
            self._connection.send_headers(
                stream_id, _headers(request, target), end_stream=not request.body
            )
        except h2.exceptions.H2Error as error:
            raise self._broken(error) from error
        self._touch_if_idle()
        self._exchanges[stream_id] = exchange
        try:
            if not request.body:
                async with self._send_turn:
                    await self._flush()
            await self._send_body(stream_id, exchange, request.body)
            return await exchange.reply
        finally:
            self._exchanges.pop(stream_id, None)
            self._reset_unless_ended(stream_id)
            self._room.set()

    async def _wait_for_room(self) -> None:
        while True:
            self._check()
            limit = self._connection.remote_settings.max_concurrent_streams
            if len(self._exchanges) < limit:
                return
            self._room.clear()
            await self._room.wait()

    async def _send_body(self, stream_id: int, exchange: _Exchange, body: Sequence[Buffer]) -> None:
        views = [view for one in body if len(view := memoryview(one).cast("B"))]
        if len(views) != 1 and sum(map(len, views)) <= _JOINED_BYTES_MAX:
            # One frame costs more than copying so little; an empty body is one too.
            views = [memoryview(b"".join(views))] if body else []
        for number, view in enumerate(views, start=1):
            while not exchange.reply.done():
                count = await self._wait_for_credit(stream_id, exchange, len(view))
                if exchange.reply.done():
                    return
                async with self._send_turn:
                    # Others had their turn meanwhile and used credit too.
                    count = min(count, self._credit(stream_id, len(view)))
                    if exchange.reply.done() or (not count and len(view)):
                        continue
                    is_last = number == len(views) and count == len(view)
                    self._send_data(stream_id, view[:count], is_last=is_last)
                    # What is short goes with what follows it.
                    if is_last or count > _JOINED_BYTES_MAX:
                        await self._flush()
                view = view[count:]
                if not len(view):
                    break

    async def _wait_for_credit(self, stream_id: int, exchange: _Exchange, wanted_bytes: int) -> int:
        while True:
            self._check()
            exchange.wake.clear()
            count = self._credit(stream_id, wanted_bytes)
            if count or not wanted_bytes or exchange.reply.done():
                return count
            self._write_pending()
            await exchange.wake.wait()

    def _credit(self, stream_id: int, wanted_bytes: int) -> int:
        try:
            window_bytes = self._connection.local_flow_control_window(stream_id)
        except h2.exceptions.H2Error:
            # The stream is over; its reply tells why.
            return 0
        limit = min(self._connection.max_outbound_frame_size, _SENT_FRAME_BYTES_MAX)
        return max(0, min(wanted_bytes, window_bytes, limit))

    def _send_data(self, stream_id: int, data: memoryview, *, is_last: bool) -> None:
        try:
            self._connection.send_data(stream_id, data, end_stream=is_last)
        except h2.exceptions.H2Error as error:
            raise self._broken(error) from error

    async def _flush(self) -> None:
        self._write_pending()
        await self._line.drain()
        self._check()
        self._moved_at = self._loop.time()

    def _write_pending(self) -> None:
        self._line.write(self._connection.buffers_to_send())

    def _reset_unless_ended(self, stream_id: int) -> None:
        """Tell the server that nobody waits for the rest, if there is one."""
        if self._failure is not None:
            return
        stream = self._connection.streams.get(stream_id)
        if stream is None or stream.closed:
            return
        with suppress(h2.exceptions.H2Error):
            self._connection.reset_stream(stream_id, h2.errors.ErrorCodes.CANCEL)
            self._write_pending()

    def _receive(self, data: memoryview) -> None:
        if self._failure is not None:
            return
        try:
            for event in self._connection.receive_data(data):
                self._handle(event)
        except h2.exceptions.H2Error as error:
            self._fail(self._broken(error))
            return
        self._write_pending()
        if self._line.unsent_bytes > _UNSENT_BYTES_MAX:
            self._fail(PbsError("server makes us answer and does not read"))

    def _handle(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.DataReceived():
                # Given back at once: what is held is bounded by the replies that are awaited.
                self._connection.acknowledge_received_data(
                    event.flow_controlled_length or 0, event.stream_id
                )
            case h2.events.ResponseReceived():
                self._take_status(event)
            case h2.events.StreamEnded():
                if (exchange := self._exchanges.get(event.stream_id)) is not None:
                    exchange.end()
            case h2.events.StreamReset():
                if (exchange := self._exchanges.get(event.stream_id)) is not None:
                    exchange.fail(PbsError(f"server broke off a request ({_code(event)})"))
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                self._moved_at = self._loop.time()
                self._room.set()
                for exchange in self._exchanges.values():
                    exchange.wake.set()
            case h2.events.ConnectionTerminated():
                self._fail(PbsUnreachable(f"server ended the connection ({_code(event)})"))

    def _take_data(self, stream_id: int, piece: memoryview) -> None:
        exchange = self._exchanges.get(stream_id)
        if exchange is not None and not exchange.reply.done():
            self._moved_at = self._loop.time()
            exchange.take(piece)

    def _take_status(self, event: h2.events.ResponseReceived) -> None:
        exchange = self._exchanges.get(event.stream_id)
        if exchange is None:
            return
        self._moved_at = self._loop.time()
        for name, value in event.headers or ():
            if name == b":status" and len(value) == 3 and value.isdigit():
                exchange.status = int(value)
        if not exchange.status:
            exchange.fail(PbsError("server's reply has no status"))

    def _watch_stall(self) -> None:
        """Look again a few times within the time that a stall may last."""
        if self._failure is not None:
            return
        stall_s = self._timeouts.stall_s
        is_owed = not all(one.may_stall for one in self._exchanges.values())
        if is_owed and self._loop.time() - self._moved_at > stall_s:
            self._fail(PbsUnreachable(f"nothing moved on the connection for {stall_s:g} seconds"))
            return
        self._watch = self._loop.call_later(stall_s / 4, self._watch_stall)

    def _touch_if_idle(self) -> None:
        if all(one.may_stall for one in self._exchanges.values()):
            self._moved_at = self._loop.time()

    def _check(self) -> None:
        if (failure := self._failure) is not None:
            # One object would gather the tracebacks of all who fail by it.
            raise type(failure)(failure.message, hint=failure.hint)

    def _fail(self, error: PbsError) -> None:
        if self._failure is not None:
            return
        self._failure = error
        if self._watch is not None:
            self._watch.cancel()
        for exchange in self._exchanges.values():
            exchange.fail(type(error)(error.message, hint=error.hint))
        self._room.set()
        self._line.abort()

    def _broken(self, error: h2.exceptions.H2Error) -> PbsError:
        if self._failure is not None:
            return self._failure
        return PbsError(f"server broke the HTTP/2 protocol: {str(error) or type(error).__name__}")


def _make_connection(take_data: TakeData) -> BulkConnection:
    connection = BulkConnection(
        h2.config.H2Configuration(
            client_side=True,
            header_encoding=None,
            # Ours are written as they must be; only a server's are checked.
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            # It would join cookies, at which nobody looks.
            normalize_inbound_headers=False,
        ),
        take_data,
    )
    codes = h2.settings.SettingCodes
    # Replaced, not updated: an update is announced only with the next settings.
    connection.local_settings = h2.settings.Settings(
        client=True,
        initial_values={
            codes.ENABLE_PUSH: 0,
            codes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW_BYTES,
            codes.MAX_FRAME_SIZE: _RECEIVED_FRAME_BYTES_MAX,
            codes.MAX_HEADER_LIST_SIZE: _HEADER_BYTES_MAX,
        },
    )
    connection.max_inbound_frame_size = _RECEIVED_FRAME_BYTES_MAX
    connection.decoder.max_header_list_size = _HEADER_BYTES_MAX
    connection.initiate_connection()
    connection.increment_flow_control_window(
        _CONNECTION_WINDOW_BYTES - connection.inbound_flow_control_window
    )
    return connection


def _headers(request: H2Request, target: str) -> list[tuple[str, str]]:
    headers = [
        (":method", request.method),
        (":scheme", "https"),
        (":authority", _AUTHORITY),
        (":path", target),
    ]
    if request.content_type:
        headers.append(("content-type", request.content_type))
    return headers


def _code(event: h2.events.StreamReset | h2.events.ConnectionTerminated) -> str:
    code = event.error_code
    return code.name if isinstance(code, h2.errors.ErrorCodes) else f"error {code}"
