"""NBD servers for tests: an honest one on a real UNIX socket, and one that says what it is told.

The honest one is the simulator's, on an event loop in a thread of its own. The told one negotiates
and then hands its connection to a function.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from vzsim.fakeqmp.bitmaps import Bitmap
from vzsim.fakeqmp.disks import Disk, MemoryDisk
from vzsim.fakeqmp.nbd_server import NbdServer
from vzsim.fakeqmp.storage_host import NbdExport

GREETING = struct.pack(">QQH", 0x4E42444D41474943, 0x49484156454F5054, 3)
READ, DISCONNECT = 0, 2
REQUEST = struct.Struct(">IHHQQI")


@dataclass
class Export:
    """One exported disk, and how many clients it has had."""

    name: str
    disk: Disk
    bitmaps: Sequence[Bitmap] = ()
    writable: bool = False
    clients_seen: int = 0

    def client_came(self) -> None:
        self.clients_seen += 1

    def client_left(self) -> None:
        """Nothing depends on it."""

    def write(self, offset_bytes: int, data: bytes) -> None:
        raise OSError(1, "not writable")


@dataclass
class Directory:
    exports: list[Export] = field(default_factory=list)

    def find_export(self, name: str) -> NbdExport | None:
        return next((each for each in self.exports if each.name == name), None)

    def export_names(self) -> list[str]:
        return [each.name for each in self.exports]


def memory_export(content: bytes, *, name: str = "d", bitmaps: Sequence[Bitmap] = ()) -> Export:
    return Export(name=name, disk=MemoryDisk(content), bitmaps=bitmaps)


@contextmanager
def serving(path: Path, *exports: Export) -> Iterator[None]:
    """Serve exports on a UNIX socket while inside."""
    loop = asyncio.new_event_loop()
    server = NbdServer(str(path), Directory(list(exports)), loop)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def close() -> None:
        server.close()

    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data


def chunk(cookie: int, kind: int, payload: bytes = b"", *, last: bool = True) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, int(last), kind, cookie, len(payload)) + payload


def receive_request(connection: socket.socket) -> tuple[int, int, int, int]:
    """Command, cookie, offset, length of the next request."""
    _, _, command, cookie, offset, length = REQUEST.unpack(receive(connection, REQUEST.size))
    return command, cookie, offset, length


def negotiate(connection: socket.socket, *, size_bytes: int, structured: bool, flags: int) -> None:
    connection.sendall(GREETING)
    receive(connection, 4)
    while True:
        _, option, length = struct.unpack(">QII", receive(connection, 16))
        receive(connection, length)
        if option == 8:
            connection.sendall(option_reply(8, 1 if structured else 0x80000001))
        elif option == 10:
            context = struct.pack(">I", 7) + b"base:allocation"
            connection.sendall(option_reply(10, 4, context) + option_reply(10, 1))
        else:
            info = struct.pack(">HQH", 0, size_bytes, flags)
            connection.sendall(option_reply(7, 3, info) + option_reply(7, 1))
            return


class ToldServer:
    """Accepts connections and does what a function says with each, in a thread.

    Args:
        serve: called with a connection whose negotiation is over; it may return early.
    """

    def __init__(
        self,
        path: Path,
        serve: Callable[[socket.socket], None],
        *,
        size_bytes: int,
        structured: bool = True,
        flags: int = 1 | 2 | 1 << 8,
        negotiates: bool = True,
    ) -> None:
        self._serve = serve
        self._negotiates = negotiates
        self._size_bytes = size_bytes
        self._structured = structured
        self._flags = flags
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> ToldServer:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(10)
        for each in (*self._connections, self._listener):
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                thread = threading.Thread(target=self._run, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _run(self, connection: socket.socket) -> None:
        with suppress(OSError, EOFError):
            if self._negotiates:
                negotiate(
                    connection,
                    size_bytes=self._size_bytes,
                    structured=self._structured,
                    flags=self._flags,
                )
            self._serve(connection)
