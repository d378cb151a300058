"""Heads and bodies of HTTP/1.1, whole, in parts, and beyond their bounds."""

from __future__ import annotations

import asyncio

import pytest

from vzdump_qemu.errors import PbsError, PbsUnreachable
from vzdump_qemu.stores.pbs.http1 import Http1Reply, Http1Request, read_body, read_head


async def read(data: bytes, *, bytes_max: int = 1000) -> Http1Reply:
    reader = asyncio.StreamReader(limit=1 << 20)
    reader.feed_data(data)
    reader.feed_eof()
    head = await read_head(reader)
    body = await read_body(reader, head, bytes_max=bytes_max)
    return Http1Reply(status=head.status, headers=head.headers, body=body)


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 5\r\n\r\nhelloX",
        b"content-length:5\n\nhello",
        b"\r\nhello",
        b"Transfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nTrailer: 1\r\n\r\n",
    ],
    ids=["length", "bare-line-ends", "to-the-end", "chunked"],
)
async def test_body_is_read_in_every_form(rest: bytes) -> None:
    reply = await read(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n" + rest)
    assert (reply.status, reply.body) == (200, b"hello")


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 20000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n" + b"x" * 1001,
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1001,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
    ],
)
async def test_reply_that_is_none_or_too_long_is_refused(data: bytes) -> None:
    with pytest.raises(PbsError) as caught:
        await read(data)
    assert not isinstance(caught.value, PbsUnreachable)


async def test_reply_that_ends_anywhere_is_a_lost_connection() -> None:
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    for end in range(len(whole)):
        with pytest.raises(PbsUnreachable):
            await read(whole[:end])


def test_target_that_servers_refuse_is_not_sent() -> None:
    request = Http1Request(method="GET", path="/x", query=[("ns", "a/b c")])
    assert request.target == "/x?ns=a%2Fb%20c"
    with pytest.raises(PbsError, match="longer than servers take"):
        assert Http1Request(method="GET", path="/" + "x" * 4000).target
