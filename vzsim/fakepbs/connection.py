"""One client: HTTP/1.1 until it upgrades, then a session on HTTP/2.

Owns the order of the two, the delays before refusals, the faults of single requests, and that a
session ends with its connection. Source: PBS formats, sections 2 and 3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from vzdump_qemu.errors import PbsError
from vzsim.fakepbs.accounts import Accounts
from vzsim.fakepbs.admission import BACKUP_PROTOCOL, READER_PROTOCOL, Admission
from vzsim.fakepbs.backup_session import BackupSession, SessionTools, endpoint_list
from vzsim.fakepbs.faults import FaultKind
from vzsim.fakepbs.files import render_os_error
from vzsim.fakepbs.http1 import BadRequest, read_request, render_reply, render_upgrade
from vzsim.fakepbs.http2 import Http2Server
from vzsim.fakepbs.reader_session import ReaderSession
from vzsim.fakepbs.requests import ApiError, Reply, Request, data_reply, error_reply
from vzsim.fakepbs.spoiled_streams import CONNECTION_LOST, SpoiledStreams, Spoiling

API_ROOT: Final = "/api2/json"
_UPGRADES: Final = {
    f"GET {API_ROOT}/backup": BACKUP_PROTOCOL,
    f"GET {API_ROOT}/reader": READER_PROTOCOL,
}
# Half a second instead of three where only a privilege is missing.
_FORBIDDEN_DELAY_PART: Final = 1 / 6
_READ_BYTES: Final = 1 << 16

Session = BackupSession | ReaderSession
Endpoint = Callable[[Request], Awaitable[Reply]]
Hang = Callable[[], Awaitable[None]]
# Carries out a request of that name (``POST /fixed_chunk``) in its own way, or as it is, or waits
# for the connection's end instead.
Around = Callable[[str, Callable[[], Awaitable[Reply]], Hang], Awaitable[Reply]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionTools:
    """What every connection of a server shares.

    Attributes:
        manage: answers what is no upgrade, given who asks.
        sessions: those that are open; a connection keeps it up to date.
        fill: makes the datastores take so many bytes more.
        refusal_delay_s: before a reply about credentials.
    """

    accounts: Accounts
    admission: Admission
    manage: Callable[[Request], Awaitable[Reply]]
    session_tools: SessionTools
    sessions: set[Session]
    fill: Callable[[int], None]
    refusal_delay_s: float


class Connection:
    """One accepted client.

    Args:
        around: has every request pass, for simulations.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        tools: ConnectionTools,
        *,
        around: Around | None = None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._tools = tools
        self._around = around

    async def serve(self) -> None:
        """Serve until either side ends the connection."""
        self._tools.session_tools.counters.connection_count += 1
        try:
            while await self._serve_one():
                pass
        except (BadRequest, *CONNECTION_LOST):
            # Nothing can be said to such a client.
            self._writer.transport.abort()
        finally:
            self._writer.close()

    async def _serve_one(self) -> bool:
        """Serve one request; false if the connection is to end."""
        try:
            request = await read_request(self._reader)
        except ApiError as error:
            await self._write(render_reply(error_reply(error), is_last=True))
            return False
        if request is None:
            return False
        protocol = _UPGRADES.get(f"{request.method} {request.path}")
        if protocol is not None:
            return await self._serve_upgrade(request, protocol)
        reply = await self._answer(request, self._tools.manage, self._await_end)
        return await self._reply(request, reply)

    async def _serve_upgrade(self, request: Request, protocol: str) -> bool:
        opened: list[Session] = []

        async def upgrade(request: Request) -> Reply:
            opened.append(self._open(request, protocol))
            return Reply(status=101)

        try:
            reply = await self._answer(request, upgrade, self._await_end)
            if not opened:
                return await self._reply(request, reply)
            await self._run_session(opened[0], request, protocol)
        finally:
            for session in opened:
                self._tools.sessions.discard(session)
                session.end()
        return False

    def _open(self, request: Request, protocol: str) -> Session:
        auth_id = self._tools.accounts.authenticate(request.headers, is_get=True)
        admission = self._tools.admission
        session: Session = (
            admission.open_backup(request, auth_id)
            if protocol == BACKUP_PROTOCOL
            else admission.open_reader(request, auth_id)
        )
        self._tools.sessions.add(session)
        return session

    async def _run_session(self, session: Session, request: Request, protocol: str) -> None:
        tools = self._tools.session_tools
        await self._write(render_upgrade(protocol))
        spoiling = Spoiling.draw(tools.faults, request.endpoint)
        streams = SpoiledStreams(self._reader, self._writer, spoiling, tools.counters)

        async def handle(request: Request) -> Reply:
            return await self._answer(request, _dispatcher(session.endpoints), _hang)

        await Http2Server(streams, streams, handle, tools.faults).run()

    async def _answer(self, request: Request, endpoint: Endpoint, hang: Hang) -> Reply:
        """Reply of an endpoint, or what the fault script has in its place.

        Args:
            hang: waits until the connection is gone, and does not return.
        """
        tools = self._tools.session_tools
        name = request.endpoint
        tools.counters.requests[name] += 1
        full = tools.faults.take(name, FaultKind.DISK_FULL)
        if full is not None:
            self._tools.fill(full.bytes)
        fault = tools.faults.take(name, FaultKind.REPLY, FaultKind.HANG, FaultKind.HANG_AFTER)
        if fault is not None and fault.kind is FaultKind.HANG:
            await hang()
        if fault is not None and fault.kind is FaultKind.REPLY:
            reply = error_reply(ApiError(fault.text, status=fault.status))
        elif self._around is not None:
            reply = await self._around(name, lambda: self._try(request, endpoint), hang)
        else:
            reply = await self._try(request, endpoint)
        if fault is not None and fault.kind is FaultKind.HANG_AFTER:
            await hang()
        if reply.status not in (101, 200):
            tools.counters.refusals[reply.status] += 1
        return reply

    async def _await_end(self) -> None:
        while await self._reader.read(_READ_BYTES):
            pass
        raise ConnectionResetError

    async def _try(self, request: Request, endpoint: Endpoint) -> Reply:
        try:
            return await endpoint(request)
        except OSError as error:
            return error_reply(ApiError(render_os_error(error)))
        except PbsError as error:
            return error_reply(ApiError(error.message))
        except ApiError as error:
            if error.is_about_credentials:
                part = 1.0 if error.status == 401 else _FORBIDDEN_DELAY_PART
                await asyncio.sleep(self._tools.refusal_delay_s * part)
            return error_reply(error)

    async def _reply(self, request: Request, reply: Reply) -> bool:
        """Send a reply; false if the connection is to end behind it."""
        is_last = request.headers.get("connection", "").lower() == "close"
        await self._write(render_reply(reply, is_last=is_last))
        return not is_last

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


def _dispatcher(endpoints: Mapping[str, Endpoint]) -> Endpoint:
    """Finds the endpoint of a request on HTTP/2."""

    async def dispatch(request: Request) -> Reply:
        if request.endpoint == "GET /":
            return data_reply(endpoint_list(endpoints))
        if request.endpoint not in endpoints:
            raise ApiError(f"Path '{request.path}' not found.", status=404)
        return await endpoints[request.endpoint](request)

    return dispatch


async def _hang() -> None:
    """Wait until the task is cancelled, which it is with its connection."""
    await asyncio.get_running_loop().create_future()
