"""One server, as a place to send requests to.

Owns joining trust, login and HTTP/1.1: calls, and upgrades to HTTP/2. Retries a connection that
was not made, as nothing was asked by it; and a request whose ticket was refused, as the server did
nothing for it. Nothing else is sent twice. Source: PBS formats, sections 2 and 3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from vzdump_qemu.errors import PbsError, PbsRefused, PbsUnreachable
from vzdump_qemu.formats.pbs import Repository
from vzdump_qemu.ports import Clock
from vzdump_qemu.stores.pbs.h2_stream import H2Client
from vzdump_qemu.stores.pbs.http1 import (
    REPLY_BYTES_MAX,
    Http1Reply,
    Http1Request,
    read_body,
    read_head,
    send_request,
)
from vzdump_qemu.stores.pbs.login import Login
from vzdump_qemu.stores.pbs.replies import check_status, decode_data, unwrap
from vzdump_qemu.stores.pbs.timeouts import Timeouts
from vzdump_qemu.stores.pbs.tls import Stream, TlsTrust, open_tls

_CONNECT_COUNT_MAX: Final = 3
_CONNECT_PAUSE_S: Final = 1.0
_WORDS_BYTES_MAX: Final = 64 * 1024

_Outcome = TypeVar("_Outcome")
_Shape = TypeVar("_Shape")


class PbsEndpoint:
    """A server that is trusted and knows us.

    Args:
        repository: host, port and datastore; its auth id has been given to the login.
        connect_count_max: how often a connection is tried.
        open_stream: makes connections in another way than by TLS over TCP, for simulations.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        trust: TlsTrust,
        login: Login,
        clock: Clock,
        timeouts: Timeouts | None = None,
        connect_count_max: int = _CONNECT_COUNT_MAX,
        open_stream: Callable[[], Awaitable[Stream]] | None = None,
    ) -> None:
        self.repository = repository
        self.timeouts = Timeouts() if timeouts is None else timeouts
        self._trust = trust
        self._login = login
        self._clock = clock
        self._connect_count_max = connect_count_max
        self._open_stream = self._open_tls if open_stream is None else open_stream

    async def call(self, request: Http1Request, shape: type[_Shape], *, what: str) -> _Shape:
        """Carry out one management request and return its ``data``.

        Args:
            what: names the data in errors.
        Raises:
            PbsRefused: in the server's words.
            PbsUnreachable: no connection, or it ended: the request may have been carried out.
            PbsError: an answer that is none.
        Cancelled: the request may be carried out.
        """
        return decode_data(await self._authorised(request, self._exchange), shape, what=what)

    async def upgrade(
        self, path: str, query: Sequence[tuple[str, str]], *, protocol: str
    ) -> H2Client:
        """Make a connection into one of HTTP/2 for a protocol of backups.

        Raises:
            PbsRefused: in the server's words.
            PbsUnreachable, PbsError: as `call`.
        Cancelled: the connection is closed.
        """
        request = Http1Request(
            method="GET",
            path=path,
            query=query,
            headers={"Connection": "upgrade", "Upgrade": protocol},
        )
        return await self._authorised(request, self._upgrade)

    async def _authorised(
        self, request: Http1Request, carry: Callable[[Http1Request], Awaitable[_Outcome]]
    ) -> _Outcome:
        try:
            return await carry(await self._signed(request))
        except PbsRefused as error:
            if error.status != 401 or not self._login.forget():
                raise
        return await carry(await self._signed(request))

    async def _signed(self, request: Http1Request) -> Http1Request:
        changes = request.method != "GET"
        credentials = await self._login.headers(self._exchange, changes=changes)
        return replace(request, headers={**request.headers, **credentials})

    async def _exchange(self, request: Http1Request) -> bytes:
        request = replace(request, headers={"Connection": "close", **request.headers})
        reader, writer = await self._connect()
        try:
            async with asyncio.timeout(self.timeouts.call_s):
                head = await self._ask(reader, writer, request)
                body = await read_body(reader, head)
        except TimeoutError as error:
            raise self._too_late() from error
        finally:
            # Nothing is left to say: a goodbye would only wait for the other side's.
            writer.transport.abort()
        check_status(head.status, body, asked=f"{request.method} {request.path}")
        return unwrap(body, bytes_max=REPLY_BYTES_MAX)

    async def _upgrade(self, request: Http1Request) -> H2Client:
        reader, writer = await self._connect()
        try:
            async with asyncio.timeout(self.timeouts.call_s):
                head = await self._ask(reader, writer, request)
                if head.status != 101:
                    body = await read_body(reader, head, bytes_max=_WORDS_BYTES_MAX)
                    check_status(head.status, body, asked="upgrade")
                    raise PbsError("the server does not upgrade the connection")
                wanted = request.headers["Upgrade"]
                if head.headers.get("upgrade", wanted).lower() != wanted:
                    raise PbsError("the server upgrades to another protocol")
                return H2Client(reader, writer, timeouts=self.timeouts)
        except TimeoutError as error:
            writer.transport.abort()
            raise self._too_late() from error
        except BaseException:
            writer.transport.abort()
            raise

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: Http1Request
    ) -> Http1Reply:
        repository = self.repository
        await send_request(writer, request, host=f"{repository.url_host}:{repository.port}")
        return await read_head(reader)

    async def _connect(self) -> Stream:
        for _ in range(1, self._connect_count_max):
            try:
                return await self._open_stream()
            except PbsUnreachable:
                await self._clock.sleep(_CONNECT_PAUSE_S)
        return await self._open_stream()

    async def _open_tls(self) -> Stream:
        return await open_tls(
            self.repository.host,
            self.repository.port,
            self._trust,
            timeout_s=self.timeouts.connect_s,
        )

    def _too_late(self) -> PbsUnreachable:
        return PbsUnreachable(
            f"{self.repository.host}:{self.repository.port} did not answer within "
            f"{self.timeouts.call_s:g} seconds"
        )
