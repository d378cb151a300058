"""NBD on a real UNIX socket: any number of clients, all on one asyncio loop.

Owns accepting, reading and writing; what is said is `nbd_session`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

from vzsim.fakeqmp.nbd_session import NbdSession
from vzsim.fakeqmp.storage_host import NbdDirectory

_RECEIVE_BYTES = 256 * 1024


class _Connection:
    def __init__(
        self, client: socket.socket, directory: NbdDirectory, loop: asyncio.AbstractEventLoop
    ) -> None:
        client.setblocking(False)
        self._client = client
        self._loop = loop
        self._unsent = bytearray()
        self.is_closed = False
        self.session = NbdSession(directory, self._write)
        loop.add_reader(client, self._readable)

    def close(self) -> None:
        """Hang up."""
        if self.is_closed:
            return
        self.is_closed = True
        self._loop.remove_reader(self._client)
        self._loop.remove_writer(self._client)
        self.session.close()
        self._client.close()

    def _readable(self) -> None:
        try:
            data = self._client.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self.close()
            return
        self.session.feed(data)
        self._close_if_over()

    def _write(self, data: bytes) -> None:
        self._unsent += data
        self._flush()

    def _flush(self) -> None:
        if self.is_closed:
            return
        try:
            while self._unsent:
                del self._unsent[: self._client.send(self._unsent)]
        except BlockingIOError:
            self._loop.add_writer(self._client, self._writable)
            return
        except ConnectionError:
            self._unsent.clear()
        self._loop.remove_writer(self._client)

    def _writable(self) -> None:
        self._flush()
        self._close_if_over()

    def _close_if_over(self) -> None:
        if self.session.is_over and not self._unsent:
            self.close()


class NbdServer:
    """A listening server. Raises: OSError, at the constructor."""

    def __init__(self, path: str, directory: NbdDirectory, loop: asyncio.AbstractEventLoop) -> None:
        self._path = path
        self._directory = directory
        self._loop = loop
        self._connections: list[_Connection] = []
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(path)
        except OSError:
            self._listener.close()
            raise
        self._listener.listen(16)
        self._listener.setblocking(False)
        loop.add_reader(self._listener, self._accept)

    def drop_clients(self, name: str) -> None:
        """Close the connections to that export."""
        for connection in self._connections:
            export = connection.session.export
            if export is not None and export.name == name:
                connection.close()

    def close(self) -> None:
        """Stop listening and close every connection."""
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for connection in self._connections:
            connection.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        self._connections = [each for each in self._connections if not each.is_closed]
        self._connections.append(_Connection(client, self._directory, self._loop))
