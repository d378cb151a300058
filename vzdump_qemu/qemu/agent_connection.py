"""The `Agent` port: the guest agent's socket, spoken with a delimited sync before each command.

Owns the framing on a channel that nobody resets: replies to commands that were given up long
ago arrive whenever the guest gets round to them. What the commands mean is left to callers.
The guest is not trusted: lines are bounded. Source: host behaviour, section 6.5.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from vzdump_qemu.errors import AgentCommandError, AgentTimeout, AgentUnreachable
from vzdump_qemu.ports import Agent
from vzdump_qemu.qemu.request_ids import RequestIds
from vzdump_qemu.qemu.unix_socket import SocketBusy, connect_unix_socket

# `guest-file-read` answers with up to 48 MiB; nothing that a backup asks comes near a MiB.
LINE_BYTES_MAX = 4 * 1024 * 1024
_RETRY_INTERVAL_S = 0.1
_DELIMITER = b"\xff"
# These may end the channel, or the guest, instead of answering: that is their success.
_SILENT_COMMANDS = frozenset(
    {"guest-shutdown", "guest-suspend-ram", "guest-suspend-disk", "guest-suspend-hybrid"}
)
_BUSY_HINT = "another client may hold the agent channel: QEMU serves one at a time"


class _ChannelFault(Exception):
    """What was read cannot be an answer; the text says why."""


class _ChannelEnd(_ChannelFault):
    """The peer closed the channel."""


class AgentConnection:
    """One connection; made by `connect_agent`."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        vmid: int,
        request_ids: RequestIds,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._vmid = vmid
        self._request_ids = request_ids

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float
    ) -> Any:
        """See `ports.Agent.execute`. A later command on this connection is safe after a timeout:

        its own sync lets it skip whatever still comes in for this one.
        """
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = dict(arguments)
        try:
            async with asyncio.timeout(timeout_s):
                reply = await self._round_trip(request)
        except TimeoutError as error:
            raise AgentTimeout(f"{self._failed(command)} - got timeout") from error
        except (_ChannelEnd, OSError) as error:
            if command in _SILENT_COMMANDS:
                return {}
            raise AgentTimeout(f"{self._failed(command)} - client closed connection") from error
        except _ChannelFault as error:
            raise AgentTimeout(f"{self._failed(command)} - {error}") from error
        fault = reply.get("error")
        if isinstance(fault, Mapping):
            raise AgentCommandError(
                error_class=str(fault.get("class", "GenericError")),
                description=str(fault.get("desc", "no description")),
            )
        if "return" not in reply:
            raise AgentTimeout(f"{self._failed(command)} - reply without result")
        return reply["return"]

    async def synchronise(self) -> None:
        """Make one sync round trip without a command behind it."""
        sync_id = self._request_ids.next_sync_id()
        # The delimiter first resets the agent's parser, should half a request be left in it.
        self._writer.write(_DELIMITER + _sync_request(sync_id))
        await self._writer.drain()
        await self._skip_to_sync(sync_id)

    async def close(self) -> None:
        """Drop the connection without waiting for the peer."""
        self._writer.transport.abort()
        try:
            await self._writer.wait_closed()
        except OSError:
            pass

    async def _round_trip(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        sync_id = self._request_ids.next_sync_id()
        self._writer.write(_sync_request(sync_id) + _line(request))
        await self._writer.drain()
        await self._skip_to_sync(sync_id)
        return _parse(await self._read_line())

    async def _skip_to_sync(self, sync_id: int) -> None:
        while True:
            line = await self._read_line()
            _, delimiter, text = line.rpartition(_DELIMITER)
            if not delimiter:
                continue
            try:
                answer = _parse(text).get("return")
            except _ChannelFault:
                continue
            if answer == sync_id:
                return
            if isinstance(answer, int) and answer > sync_id:
                raise _ChannelFault(f"got wrong command id '{answer}' (expected {sync_id})")

    async def _read_line(self) -> bytes:
        try:
            return await self._reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            raise _ChannelEnd("client closed connection") from error
        except asyncio.LimitOverrunError as error:
            raise _ChannelFault(f"line over {LINE_BYTES_MAX} bytes") from error

    def _failed(self, command: str) -> str:
        return f"VM {self._vmid} qga command '{command}' failed"


@asynccontextmanager
async def connect_agent(
    path: str, *, vmid: int, timeout_s: float, request_ids: RequestIds
) -> AsyncIterator[Agent]:
    """Connect and make one sync round trip within `timeout_s`; closes on leaving.

    Raises:
        AgentUnreachable: no socket, or no agent answered; nothing was asked of the guest.
    """
    connection: AgentConnection | None = None
    prefix = f"unable to connect to VM {vmid} qga socket"
    try:
        try:
            async with asyncio.timeout(timeout_s):
                stream = await connect_unix_socket(
                    path,
                    retry_interval_s=_RETRY_INTERVAL_S,
                    retry_count_max=max(int(timeout_s / _RETRY_INTERVAL_S), 10),
                )
                reader, writer = await asyncio.open_unix_connection(
                    sock=stream, limit=LINE_BYTES_MAX
                )
                connection = AgentConnection(reader, writer, vmid=vmid, request_ids=request_ids)
                await connection.synchronise()
        except TimeoutError as error:
            raise AgentUnreachable(f"VM {vmid} qga command failed - got timeout") from error
        except SocketBusy as error:
            raise AgentUnreachable(f"{prefix} - {error}", hint=_BUSY_HINT) from error
        except FileNotFoundError as error:
            raise AgentUnreachable("unable to open monitor socket", hint=path) from error
        except OSError as error:
            raise AgentUnreachable(f"{prefix} - {error.strerror or error}", hint=path) from error
        except _ChannelFault as error:
            raise AgentUnreachable(f"{prefix} - {error}") from error
        yield connection
    finally:
        if connection is not None:
            await connection.close()


def _sync_request(sync_id: int) -> bytes:
    return _line({"execute": "guest-sync-delimited", "arguments": {"id": sync_id}})


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _parse(line: bytes) -> Mapping[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _ChannelFault("reply is not JSON") from error
    if not isinstance(message, dict):
        raise _ChannelFault("reply is not an object")
    return message
