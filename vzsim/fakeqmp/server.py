"""A machine behind real UNIX sockets: monitors and the agent's port.

Owns listening, accepting one client at a time (others wait in the backlog, as with QEMU), and
descriptors that come along (SCM_RIGHTS). All work happens on one asyncio loop.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from vzsim.fakeqmp.agent import Agent
from vzsim.fakeqmp.monitor import Monitor

_RECEIVE_BYTES = 65536
_FD_COUNT_MAX = 16


class Endpoint(Protocol):
    """What speaks on a socket."""

    def connect(self, write: Callable[[bytes], None], hang_up: Callable[[], None]) -> None: ...

    def disconnect(self) -> None: ...


class ChannelServer:
    """One listening socket with at most one client.

    Args:
        receive: takes what the client sent, with the descriptors that came along.
    """

    def __init__(
        self,
        path: str,
        endpoint: Endpoint,
        receive: Callable[[bytes, Sequence[int]], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._path = path
        self._endpoint = endpoint
        self._receive = receive
        self._loop = loop
        self._client: socket.socket | None = None
        self._unsent = bytearray()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(16)
        self._listener.setblocking(False)
        loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Flush what can be flushed, close and remove the socket."""
        self._drop_client()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def _accept(self) -> None:
        if self._client is not None:
            return
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        client.setblocking(False)
        # Nobody else is served until this client leaves.
        self._loop.remove_reader(self._listener)
        self._client = client
        self._loop.add_reader(client, self._read)
        self._endpoint.connect(self._write, self._drop_client)

    def _read(self) -> None:
        client = self._client
        if client is None:
            return
        try:
            data, fds = _receive_with_fds(client)
        except BlockingIOError:
            return
        except ConnectionError:
            data, fds = b"", []
        if data:
            self._receive(data, fds)
        else:
            self._endpoint.disconnect()
            self._drop_client()

    def _write(self, data: bytes) -> None:
        self._unsent.extend(data)
        self._flush()

    def _flush(self) -> None:
        client = self._client
        if client is None:
            return
        try:
            while self._unsent:
                del self._unsent[: client.send(self._unsent)]
        except BlockingIOError:
            self._loop.add_writer(client, self._flush)
            return
        except ConnectionError:
            self._unsent.clear()
        self._loop.remove_writer(client)

    def _drop_client(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        self._loop.remove_reader(client)
        self._loop.remove_writer(client)
        self._unsent.clear()
        client.close()
        self._loop.add_reader(self._listener, self._accept)


def serve_monitor(path: str, monitor: Monitor, loop: asyncio.AbstractEventLoop) -> ChannelServer:
    """Serve a monitor on a socket. Raises: OSError."""
    return ChannelServer(path, monitor, monitor.receive, loop)


def serve_agent(path: str, agent: Agent, loop: asyncio.AbstractEventLoop) -> ChannelServer:
    """Serve the agent's port on a socket. Raises: OSError."""
    return ChannelServer(path, agent, lambda data, _fds: agent.receive(data), loop)


def _receive_with_fds(client: socket.socket) -> tuple[bytes, list[int]]:
    size = array.array("i").itemsize
    data, ancillary, _flags, _address = client.recvmsg(
        _RECEIVE_BYTES, socket.CMSG_SPACE(_FD_COUNT_MAX * size), socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % size])
    return data, list(fds)
