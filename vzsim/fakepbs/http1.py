"""HTTP/1.1 as a server needs it: requests in, replies out.

Owns parsing within bounds and rendering; what a request means is left to `connection`. Bodies have
a content length. Source: PBS formats, section 2.
"""

from __future__ import annotations

import asyncio
from typing import Final

from vzdump_qemu.formats.pbs.layout import UPLOAD_BYTES_MAX
from vzsim.fakepbs.requests import ApiError, Reply, Request

_HEAD_BYTES_MAX: Final = 16 * 1024
_TARGET_BYTES_MAX: Final = 3072
_BODY_PIECE_BYTES: Final = 1 << 16


class BadRequest(Exception):
    """This is no HTTP/1.1; the connection ends without a reply."""


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """The next request, None if the client has closed.

    Raises:
        BadRequest: no request.
        ApiError: a request that is refused as it stands.
    """
    head = await _read_head(reader)
    if head is None:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    try:
        method, target, version = first.split(" ")
    except ValueError as error:
        raise BadRequest from error
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise BadRequest
    headers: dict[str, str] = {}
    for line in filter(None, lines):
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise BadRequest
        headers[name.strip().lower()] = value.strip()
    body, body_bytes = await _read_body(reader, headers.get("content-length", "0"))
    if len(target) > _TARGET_BYTES_MAX:
        raise ApiError("Request URI too long", status=414)
    path, _, query = target.partition("?")
    if any(part.startswith(".") for part in path.split("/")):
        raise ApiError("Path contains illegal components.")
    return Request(
        method=method,
        path=path.rstrip("/"),
        query=query,
        headers=headers,
        body=body,
        body_bytes=body_bytes,
    )


async def _read_head(reader: asyncio.StreamReader) -> bytes | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise BadRequest from error
        return None
    except asyncio.LimitOverrunError as error:
        raise BadRequest from error
    if len(head) > _HEAD_BYTES_MAX:
        raise BadRequest
    return head


async def _read_body(reader: asyncio.StreamReader, length: str) -> tuple[bytes, int]:
    """What is kept of a body, and how long it was."""
    if not length.isdecimal():
        raise BadRequest
    kept = bytearray()
    rest_bytes = body_bytes = int(length)
    while rest_bytes:
        piece = await reader.read(min(rest_bytes, _BODY_PIECE_BYTES))
        if not piece:
            raise BadRequest
        rest_bytes -= len(piece)
        if len(kept) <= UPLOAD_BYTES_MAX:
            kept += piece
    return bytes(kept), body_bytes


def render_reply(reply: Reply, *, is_last: bool = False) -> bytes:
    """The bytes of a reply with its body."""
    lines = [
        f"HTTP/1.1 {reply.status} {reply.reason}",
        f"content-type: {reply.content_type}",
        f"content-length: {len(reply.body)}",
        *(f"{name}: {value}" for name, value in reply.headers),
    ]
    if is_last:
        lines.append("connection: close")
    return "\r\n".join((*lines, "", "")).encode("latin-1") + reply.body


def render_upgrade(protocol: str) -> bytes:
    """The reply after which the other protocol begins."""
    return (
        f"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\r\n"
    ).encode()
