"""HTTP/1.1, as far as logging in, management calls and upgrades need it.

Owns writing one request and reading its reply within bounds; the trust is `tls`'s, the meaning
`endpoint`'s. A connection carries one request. Source: PBS formats, sections 2 and 3.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final
from urllib.parse import quote

from vzdump_qemu.errors import PbsError, PbsUnreachable
from vzdump_qemu.units import KIB, MIB

# Servers of PBS refuse longer ones.
TARGET_BYTES_MAX: Final = 3072
_LINE_BYTES_MAX: Final = 16 * KIB
_HEADER_COUNT_MAX: Final = 100
_INTERIM_COUNT_MAX: Final = 8
# Ten thousand backups of a group, in the longest listing there is.
REPLY_BYTES_MAX: Final = 32 * MIB

FORM_TYPE: Final = "application/x-www-form-urlencoded"
JSON_TYPE: Final = "application/json"
BINARY_TYPE: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Http1Request:
    """One request.

    Attributes:
        path: absolute, unescaped letters only.
        query: names with their values, in order.
        headers: those of the login among them, so never shown.
    """

    method: str
    path: str
    query: Sequence[tuple[str, str]] = ()
    body: bytes = field(default=b"", repr=False)
    content_type: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def target(self) -> str:
        """Path and query as on the wire. Raises PbsError if a server would refuse the length."""
        return join_target(self.path, self.query, bytes_max=TARGET_BYTES_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Http1Reply:
    """Status, headers by lower-case name, and the whole body."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)


def join_target(path: str, query: Sequence[tuple[str, str]], *, bytes_max: int) -> str:
    """Path and query as on the wire.

    Raises:
        PbsError: longer than that.
    """
    pairs = "&".join([f"{_quote(name)}={_quote(value)}" for name, value in query])
    target = f"{path}?{pairs}" if pairs else path
    if len(target) > bytes_max:
        raise PbsError(f"request of {len(target)} bytes is longer than servers take")
    return target


# Names and most values are those of the request before.
@lru_cache(maxsize=128)
def _quote(text: str) -> str:
    return quote(text, safe="")


async def send_request(writer: asyncio.StreamWriter, request: Http1Request, *, host: str) -> None:
    """Write a request with its body. Raises PbsUnreachable."""
    lines = [f"{request.method} {request.target} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    if request.content_type:
        lines.append(f"Content-Type: {request.content_type}")
    if request.body or request.method != "GET":
        lines.append(f"Content-Length: {len(request.body)}")
    if any("\r" in line or "\n" in line for line in lines):
        raise PbsError("a request cannot hold line breaks")
    try:
        writer.write("\r\n".join((*lines, "", "")).encode("latin-1") + request.body)
        await writer.drain()
    except UnicodeEncodeError:
        # Not chained: the cause would show the headers.
        raise PbsError("a request cannot hold these letters") from None
    except (OSError, ssl.SSLError) as error:
        raise _lost(error) from error


async def read_head(reader: asyncio.StreamReader) -> Http1Reply:
    """Read status and headers; interim replies are passed over, a change of protocol is not.

    Raises:
        PbsUnreachable: the connection ended.
        PbsError: no HTTP, or more than the bounds.
    """
    for _ in range(_INTERIM_COUNT_MAX):
        status = _status(await _read_line(reader))
        headers: dict[str, str] = {}
        for _ in range(_HEADER_COUNT_MAX + 1):
            line = await _read_line(reader)
            if not line:
                break
            name, colon, value = line.partition(":")
            if not colon:
                raise PbsError("the server's reply is no HTTP: bad header")
            headers[name.strip().lower()] = value.strip()
        else:
            raise PbsError("the server's reply has too many headers")
        if status >= 200 or status == 101:
            return Http1Reply(status=status, headers=headers)
    raise PbsError("the server sends interim replies only")


async def read_body(
    reader: asyncio.StreamReader, head: Http1Reply, *, bytes_max: int = REPLY_BYTES_MAX
) -> bytes:
    """Read the body that belongs to a head.

    Raises:
        PbsUnreachable: the connection ended before it did.
        PbsError: longer than the bound, or no HTTP.
    """
    if head.status in (204, 304):
        return b""
    coding = head.headers.get("transfer-encoding", "").lower()
    if coding == "chunked":
        return await _read_chunked(reader, bytes_max)
    if coding:
        raise PbsError("the server's reply has an unknown transfer encoding")
    length = head.headers.get("content-length")
    if length is None:
        return await _read_to_end(reader, bytes_max)
    # Only ASCII digits: int() takes signs, blanks and the digits of any script.
    if not (length.isascii() and length.isdigit() and len(length) <= 12):
        raise PbsError("the server's reply is no HTTP: bad length")
    if int(length) > bytes_max:
        raise PbsError(f"the server's reply is longer than {bytes_max} bytes")
    return await _read_exactly(reader, int(length))


def _status(line: str) -> int:
    parts = line.split(" ", 2)
    if len(parts) < 2 or not parts[0].startswith("HTTP/1."):
        raise PbsError("the server does not speak HTTP")
    if len(parts[1]) != 3 or not (parts[1].isascii() and parts[1].isdigit()):
        raise PbsError("the server's reply is no HTTP: bad status")
    return int(parts[1])


async def _read_line(reader: asyncio.StreamReader) -> str:
    try:
        raw = await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        raise PbsUnreachable("the server ended the connection") from error
    except asyncio.LimitOverrunError as error:
        raise PbsError("the server's reply has a line without end") from error
    except (OSError, ssl.SSLError) as error:
        raise _lost(error) from error
    if len(raw) > _LINE_BYTES_MAX:
        raise PbsError("the server's reply has a line without end")
    return raw.rstrip(b"\r\n").decode("latin-1")


async def _read_exactly(reader: asyncio.StreamReader, count_bytes: int) -> bytes:
    try:
        return await reader.readexactly(count_bytes)
    except asyncio.IncompleteReadError as error:
        raise PbsUnreachable("the server ended the connection") from error
    except (OSError, ssl.SSLError) as error:
        raise _lost(error) from error


async def _read_to_end(reader: asyncio.StreamReader, bytes_max: int) -> bytes:
    parts: list[bytes] = []
    total_bytes = 0
    try:
        while part := await reader.read(64 * KIB):
            parts.append(part)
            total_bytes += len(part)
            if total_bytes > bytes_max:
                raise PbsError(f"the server's reply is longer than {bytes_max} bytes")
    except (OSError, ssl.SSLError) as error:
        raise _lost(error) from error
    return b"".join(parts)


async def _read_chunked(reader: asyncio.StreamReader, bytes_max: int) -> bytes:
    parts: list[bytes] = []
    total_bytes = 0
    while True:
        digits = (await _read_line(reader)).partition(";")[0].strip()
        if not 1 <= len(digits) <= 8 or not set(digits) <= set("0123456789abcdefABCDEF"):
            raise PbsError("the server's reply is no HTTP: bad part")
        length = int(digits, 16)
        total_bytes += length
        # The marks around a part cost more than the part may hold.
        if total_bytes > bytes_max or len(parts) > bytes_max // 16 + 1024:
            raise PbsError(f"the server's reply is longer than {bytes_max} bytes")
        if not length:
            for _ in range(_HEADER_COUNT_MAX):
                if not await _read_line(reader):
                    return b"".join(parts)
            raise PbsError("the server's reply has too many headers")
        parts.append(await _read_exactly(reader, length))
        if await _read_line(reader):
            raise PbsError("the server's reply is no HTTP: bad part")


def _lost(error: OSError) -> PbsUnreachable:
    return PbsUnreachable(f"the connection to the server was lost - {error.strerror or error}")
