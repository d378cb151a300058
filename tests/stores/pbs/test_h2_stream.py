"""Many requests on one connection: credit, turns, bounds, and peers that misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from tests.stores.pbs.running_server import TIMEOUTS
from vzdump_qemu.errors import PbsError, PbsUnreachable
from vzdump_qemu.stores.pbs import Timeouts
from vzdump_qemu.stores.pbs.h2_stream import H2Client, H2Request
from vzsim.fakepbs import memory_streams

HASTY = replace(TIMEOUTS, stall_s=0.2, request_s=5.0)
GET = H2Request(method="GET", path="/x")


class Peer:
    """A bare HTTP/2 server whose windows, limits and answers a test decides.

    Attributes:
        on_end: called with the stream and its body when a request is whole.
        open_most: most requests that were under way at once.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        window_bytes: int = 65535,
        stream_count_max: int = 1000,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        codes = h2.settings.SettingCodes
        self.h2.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                codes.INITIAL_WINDOW_SIZE: window_bytes,
                codes.MAX_CONCURRENT_STREAMS: stream_count_max,
            },
        )
        self.bodies: dict[int, bytearray] = {}
        self.open_most = 0
        self.on_headers: Callable[[int], None] = lambda _: None
        self.on_end: Callable[[int, bytes], None] = self.answer
        self.gives_credit = True

    def answer(self, stream_id: int, body: bytes = b"", status: str = "200") -> None:
        self.h2.send_headers(stream_id, [(":status", status)])
        self.h2.send_data(stream_id, body[:1000], end_stream=True)
        self.bodies.pop(stream_id, None)

    def write(self, data: bytes = b"") -> None:
        self._writer.write(self.h2.data_to_send() + data)

    def cut(self) -> None:
        self._writer.close()

    async def run(self) -> None:
        self.h2.initiate_connection()
        self.write()
        while data := await self._reader.read(65536):
            for event in self.h2.receive_data(data):
                match event:
                    case h2.events.RequestReceived():
                        self.bodies[event.stream_id] = bytearray()
                        self.open_most = max(self.open_most, len(self.bodies))
                        self.on_headers(event.stream_id)
                    case h2.events.DataReceived():
                        self.bodies.get(event.stream_id, bytearray()).extend(event.data)
                        if self.gives_credit:
                            self.h2.acknowledge_received_data(
                                event.flow_controlled_length, event.stream_id
                            )
                    case h2.events.StreamEnded() if event.stream_id in self.bodies:
                        self.on_end(event.stream_id, bytes(self.bodies[event.stream_id]))
            self.write()


@asynccontextmanager
async def connected(
    *, timeouts: Timeouts = TIMEOUTS, window_bytes: int = 65535, stream_count_max: int = 1000
) -> AsyncIterator[tuple[H2Client, Peer]]:
    client_end, server_end = memory_streams()
    peer = Peer(*server_end, window_bytes=window_bytes, stream_count_max=stream_count_max)
    serving = asyncio.create_task(peer.run())
    client = H2Client(*client_end, timeouts=timeouts)
    try:
        async with asyncio.timeout(20):
            yield client, peer
    finally:
        await client.close()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def test_bodies_pass_through_windows_smaller_than_they_are() -> None:
    async with connected(window_bytes=1000) as (client, peer):
        got: dict[str, bytes] = {}

        def keep(stream_id: int, body: bytes) -> None:
            got[body[:1].decode()] = body
            peer.answer(stream_id, body)

        # The windows are known once the first answer is here.
        await client.request(GET)
        peer.on_end = keep
        bodies = [bytes([65 + number]) * 30_001 for number in range(5)]
        replies = await asyncio.gather(
            *(
                client.request(H2Request(method="POST", path="/x", body=(body[:7], b"", body[7:])))
                for body in bodies
            )
        )
        assert [reply.body for reply in replies] == [body[:1000] for body in bodies]
        assert sorted(got.values()) == bodies


async def test_body_without_bytes_is_a_body() -> None:
    async with connected() as (client, _):
        reply = await client.request(H2Request(method="POST", path="/x", body=(b"",)))
        assert (reply.status, reply.body) == (200, b"")


async def test_no_more_streams_than_the_server_allows_are_open() -> None:
    async with connected(stream_count_max=3) as (client, peer):
        # The limit is known once the first answer is here.
        await client.request(GET)
        peer.open_most = 0
        loop = asyncio.get_running_loop()

        def answer(stream_id: int) -> None:
            peer.answer(stream_id)
            peer.write()

        peer.on_end = lambda stream, body: loop.call_soon(answer, stream) and None
        await asyncio.gather(*(client.request(GET) for _ in range(20)))
        assert peer.open_most == 3


async def test_answer_before_the_body_was_sent_ends_the_request() -> None:
    async with connected() as (client, peer):
        peer.gives_credit = False
        peer.on_headers = lambda stream_id: peer.answer(stream_id, b"too large", "400")
        post = H2Request(method="POST", path="/x", body=(bytes(1 << 20),))
        reply = await client.request(post)
        assert (reply.status, reply.body) == (400, b"too large")
        # What was sent in vain is reset, so the connection goes on.
        assert (await client.request(GET)).status == 400


async def test_peer_that_gives_no_credit_is_a_stall() -> None:
    async with connected(timeouts=HASTY) as (client, peer):
        peer.gives_credit = False
        with pytest.raises(PbsUnreachable, match="nothing moved"):
            await client.request(H2Request(method="POST", path="/x", body=(bytes(1 << 20),)))
        with pytest.raises(PbsUnreachable):
            await client.request(GET)


async def test_silence_that_was_asked_for_is_no_stall() -> None:
    async with connected(timeouts=replace(HASTY, stall_s=0.02)) as (client, peer):
        peer.on_end = lambda stream, body: None
        with pytest.raises(PbsUnreachable, match=r"within 0.2 seconds"):
            await client.request(replace(GET, timeout_s=0.2, may_stall=True))
        with pytest.raises(PbsUnreachable, match="nothing moved"):
            await client.request(replace(GET, timeout_s=5.0))


async def test_answer_that_never_comes_ends_with_the_time_of_the_request_alone() -> None:
    async with connected() as (client, peer):
        peer.on_end = lambda stream, body: None
        with pytest.raises(PbsUnreachable, match=r"within 0.05 seconds"):
            await client.request(replace(GET, timeout_s=0.05))
        peer.on_end = lambda stream, body: peer.answer(stream)
        assert (await client.request(GET)).status == 200


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4,
        b"\xff" * 100,
        # Data for a stream that was never opened; a window update of nothing.
        b"\0\0\1\0\0\0\0\0\x63x",
        b"\0\0\4\x08\0\0\0\0\0\0\0\0\0",
        # Headers that are no header compression.
        b"\0\0\4\1\5\0\0\0\1\xff\xff\xff\xff",
    ],
    ids=("http1", "noise", "no-stream", "no-credit", "no-headers"),
)
async def test_peer_that_breaks_the_protocol_is_left(data: bytes) -> None:
    async with connected(timeouts=HASTY) as (client, peer):
        peer.on_end = lambda stream, body: peer.write(data)
        with pytest.raises(PbsError) as caught:
            await client.request(GET)
        assert "\n" not in str(caught.value)
        assert client.failure is not None


async def test_connection_that_ends_fails_all_requests() -> None:
    async with connected() as (client, peer):
        peer.on_end = lambda stream, body: peer.cut() if stream == 5 else None
        replies = await asyncio.gather(
            *(client.request(GET) for _ in range(3)), return_exceptions=True
        )
        assert [type(reply) for reply in replies] == [PbsUnreachable] * 3
        assert len({id(reply) for reply in replies}) == 3


async def test_reset_fails_one_request_and_leaves_the_others() -> None:
    async with connected() as (client, peer):
        peer.on_end = lambda stream, body: (
            peer.h2.reset_stream(stream, 7) if stream == 1 else peer.answer(stream)
        )
        broken, fine = await asyncio.gather(
            client.request(GET), client.request(GET), return_exceptions=True
        )
        assert isinstance(broken, PbsError)
        assert "REFUSED_STREAM" in str(broken)
        assert not isinstance(fine, BaseException)


async def test_closing_is_idempotent_and_fails_what_waits() -> None:
    async with connected() as (client, peer):
        peer.on_end = lambda stream, body: None
        waiting = asyncio.create_task(client.request(GET))
        await asyncio.sleep(0)
        await client.close()
        await client.close()
        with pytest.raises(PbsUnreachable):
            await waiting


async def test_reply_is_put_into_the_buffer_that_the_request_brought() -> None:
    async with connected() as (client, peer):
        peer.on_end = lambda stream, body: peer.answer(stream, bytes(range(200)))
        buffer = memoryview(bytearray(201))
        reply = await client.request(replace(GET, reply_buffer=buffer))
        assert (reply.status, reply.length_bytes, reply.body) == (200, 200, b"")
        assert bytes(buffer) == bytes(range(200)) + b"\0"


async def test_reply_longer_than_its_buffer_is_refused_and_leaves_the_others() -> None:
    async with connected() as (client, peer):
        peer.on_end = lambda stream, body: peer.answer(stream, bytes(range(200)))
        room = bytearray(300)
        with pytest.raises(PbsError, match="longer than 199 bytes"):
            await client.request(replace(GET, reply_buffer=memoryview(room)[:199]))
        assert room[199:] == bytes(101)
        assert (await client.request(GET)).body == bytes(range(200))


async def test_connection_that_ended_before_it_was_used_fails_requests() -> None:
    client_end, (_, server_writer) = memory_streams()
    server_writer.close()
    while not client_end[0].at_eof():
        await asyncio.sleep(0)
    client = H2Client(*client_end, timeouts=TIMEOUTS)
    with pytest.raises(PbsUnreachable, match="ended the connection"):
        await client.request(GET)
    await client.close()


async def test_what_came_right_behind_the_upgrade_is_read() -> None:
    client_end, server_end = memory_streams()
    peer = Peer(*server_end, stream_count_max=1)
    serving = asyncio.create_task(peer.run())
    # The settings are here before anybody reads frames.
    for _ in range(5):
        await asyncio.sleep(0)
    client = H2Client(*client_end, timeouts=TIMEOUTS)
    assert (await client.request(GET)).status == 200
    peer.open_most = 0
    await asyncio.gather(*(client.request(GET) for _ in range(5)))
    assert peer.open_most == 1
    await client.close()
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
