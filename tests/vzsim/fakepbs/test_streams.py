"""The pair of streams in memory behaves like a socket."""

from __future__ import annotations

import asyncio

import pytest

from vzsim.fakepbs import memory_streams
from vzsim.pytest_plugin import Simulation


async def test_bytes_arrive_in_order_and_the_end_behind_them() -> None:
    (_, writer), (reader, other) = memory_streams()
    writer.write(b"one ")
    writer.write(b"two")
    writer.close()
    await writer.wait_closed()
    assert await reader.read() == b"one two"
    other.close()


async def test_half_closed_stream_still_receives() -> None:
    (client, writer), (reader, answering) = memory_streams()
    writer.write_eof()
    assert await reader.read() == b""
    answering.write(b"late")
    answering.close()
    assert await client.read() == b"late"
    writer.close()


async def test_writer_waits_for_a_reader_that_does_not_read() -> None:
    (_, writer), (reader, _) = memory_streams()
    writer.write(bytes(4 << 20))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            writer.write(b"more")
            await writer.drain()
    received = 0
    while received < (4 << 20) + 4:
        received += len(await reader.read(1 << 16))
    await writer.drain()
    writer.close()


async def test_abort_is_a_reset_for_the_other_side_and_loses_what_was_unread() -> None:
    # Both ends are held: a writer that nobody holds closes its end.
    (reader, _keep), (_, writer) = memory_streams()
    writer.write(b"lost")
    writer.transport.abort()
    with pytest.raises(ConnectionResetError):
        await reader.read()


async def test_writing_to_one_who_has_gone_fails_when_it_is_waited_for() -> None:
    (_, writer), (_, other) = memory_streams()
    other.transport.abort()
    await asyncio.sleep(0)
    writer.write(b"x")
    with pytest.raises(ConnectionResetError):
        await writer.drain()


def test_streams_need_no_real_loop(sim: Simulation) -> None:
    async def exchange() -> bytes:
        (reader, writer), (other_reader, other_writer) = memory_streams()
        writer.write(b"ping")
        assert await other_reader.read(4) == b"ping"
        await asyncio.sleep(5)
        other_writer.write(b"pong")
        return await reader.readexactly(4)

    assert sim.run(exchange()) == b"pong"
    assert sim.time_s == 5
