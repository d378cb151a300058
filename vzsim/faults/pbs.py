"""Fault sites of a backup server: connections, and every request that it carries out.

A request is a site by what it is for: ``pbs.login``, ``pbs.begin``, ``pbs.previous``,
``pbs.fixed_chunk``, ``pbs.append``, ``pbs.finish``. The server is another process than the tool: it
carries out what it has read whether or not the tool still lives.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from vzdump_qemu.disk_ports import DiskOrigin
from vzdump_qemu.errors import DiskReadError, PbsUnreachable
from vzsim.fakepbs.connection import Hang
from vzsim.fakepbs.requests import ApiError, Reply, error_reply
from vzsim.fakepbs.streams import Streams
from vzsim.faults.kinds import Family, Kind
from vzsim.faults.plane import Plane, length_of
from vzsim.faults.script import Fault
from vzsim.world.backup_server import SimulatedBackupServer
from vzsim.world.disk_reader import SimulatedDiskReader
from vzsim.world.files import SimulatedFiles
from vzsim.world.packer import SimulatedPacker

# What clients of the real server allow for a connection to stand.
CONNECT_S_MAX = 10.0
_NAMES = {
    "POST /access/ticket": "login",
    "GET /backup": "begin",
    "GET /reader": "open_reader",
    "PUT /fixed_index": "append",
    "GET /admin/datastore/tank/status": "status",
}


class FaultyServer:
    """What a tool under test has of a server, and of disks to send there."""

    def __init__(
        self,
        plane: Plane,
        server: SimulatedBackupServer,
        packer: SimulatedPacker,
        files: SimulatedFiles,
    ) -> None:
        self._plane = plane
        self._server = server
        self._packer = packer
        self._files = files

    @property
    def bytes_per_s(self) -> float:
        """How fast disks can be read."""
        return self._packer.rules.bytes_per_s

    def read_file(self, path: str) -> bytes:
        """A file of the node. Raises: OSError."""
        return self._files.read(path)

    async def open_disk(self, origin: DiskOrigin) -> SimulatedDiskReader:
        """Raises: DiskReadError."""

        async def act() -> SimulatedDiskReader:
            return SimulatedDiskReader(self._packer, origin)

        async def bend(fault: Fault, plain: Callable[[], Awaitable[Any]]) -> Any:
            text = f"simulated failure at {fault.site}#{fault.nth}"
            return await self._plane.bend_plainly(fault, plain, DiskReadError(text))

        return await self._plane.call("pbs.open_disk", Family.INTAKE, act, bend=bend)

    async def open_stream(self) -> Streams:
        """A connection. Raises: PbsUnreachable."""

        async def act() -> Streams:
            streams, _ = self._server.connect(around=self._carry_out)
            self._plane.on_kill.append(streams[1].transport.abort)
            return streams

        async def bend(fault: Fault, plain: Callable[[], Awaitable[Any]]) -> Any:
            length_s = length_of(fault)
            if fault.kind is Kind.REFUSED:
                raise PbsUnreachable("unable to connect to pbs.example:8007 - Connection refused")
            if fault.kind is Kind.SERVER_DIES:
                self._server.die(length_s)
                return await plain()
            await self._plane.wait(min(length_s, CONNECT_S_MAX))
            if length_s > CONNECT_S_MAX:
                raise PbsUnreachable(f"no connection within {CONNECT_S_MAX:g} seconds")
            return await plain()

        return await self._plane.call("pbs.connect", Family.PBS_CONNECT, act, bend=bend)

    async def _carry_out(
        self, endpoint: str, act: Callable[[], Awaitable[Reply]], hang: Hang
    ) -> Reply:
        """One request at the server, on the server's time."""
        plane = self._plane
        method, _, path = endpoint.partition(" ")
        path = path.removeprefix("/api2/json")
        name = _NAMES.get(f"{method} {path}", path.rpartition("/")[2])

        async def bend(fault: Fault, plain: Callable[[], Awaitable[Any]]) -> Any:
            return await self._bend(fault, plain, hang)

        reply: Reply = await plane.attend(f"pbs.{name}", Family.PBS, act, bend=bend)
        return reply

    async def _bend(self, fault: Fault, plain: Callable[[], Awaitable[Reply]], hang: Hang) -> Reply:
        text = f"simulated failure at {fault.site}#{fault.nth}"
        server = self._server
        match fault.kind:
            case Kind.ERROR:
                return error_reply(ApiError(text, status=500))
            case Kind.ENOSPC:
                server.fill(0)
                return await plain()
            case Kind.STALL:
                await self._plane.wait(length_of(fault))
                return await plain()
            case Kind.PREVIOUS_PRUNED:
                server.prune_previous()
                return await plain()
            case Kind.PREVIOUS_FAILED:
                server.fail_previous()
                return await plain()
            case Kind.KEY_CHANGED:
                server.change_key(self._files)
                return await plain()
            case Kind.KEY_LOST:
                server.lose_key(self._files)
                return await plain()
            case Kind.TOKEN_REVOKED:
                server.revoke()
                return await plain()
            case Kind.CLOSED_BEFORE:
                raise ConnectionResetError
            case Kind.SERVER_DIES:
                server.die(length_of(fault))
                raise ConnectionResetError
        await plain()
        if fault.kind is Kind.ERROR_AFTER:
            return error_reply(ApiError(text, status=500))
        if fault.kind is Kind.REPLY_LOST:
            await hang()
        if fault.kind is Kind.SERVER_DIES_AFTER:
            server.die(length_of(fault))
        raise ConnectionResetError
