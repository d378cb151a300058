"""Peers on real UNIX sockets for the adapters' tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sockets import busy_listener, short_place
from vzdump_qemu.qemu.request_ids import RequestIds

GREETING = {
    "QMP": {
        "version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""},
        "capabilities": ["oob"],
    }
}


class Peer:
    """The far end of one connection: reads and writes JSON lines."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def read(self) -> dict[str, Any]:
        line = await self.reader.readline()
        if not line:
            raise EOFError
        return json.loads(line.lstrip(b"\xff"))

    def send(self, message: Any, *, prefix: bytes = b"") -> None:
        self.writer.write(prefix + json.dumps(message).encode() + b"\r\n")

    async def greet(self) -> None:
        """What QEMU does until the client may send commands."""
        self.send(GREETING)
        request = await self.read()
        assert request["execute"] == "qmp_capabilities"
        self.send({"return": {}, "id": request["id"]})

    async def answer_sync(self) -> int:
        request = await self.read()
        assert request["execute"] == "guest-sync-delimited"
        sync_id = request["arguments"]["id"]
        self.send({"return": sync_id}, prefix=b"\xff")
        return sync_id


Script = Callable[[Peer], Awaitable[None]]


@pytest.fixture
def socket_directory() -> Iterator[Path]:
    """Short enough for a socket's address whatever the test is called."""
    with short_place() as directory:
        yield directory


@pytest.fixture
async def serve(socket_directory: Path) -> AsyncIterator[Callable[[Script], Awaitable[str]]]:
    """Start a server that runs the script for each client; a failing script fails the test."""
    servers: list[asyncio.Server] = []
    faults: list[BaseException] = []
    tasks: set[asyncio.Task[None]] = set()

    async def start(script: Script) -> str:
        async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await script(Peer(reader, writer))
            except (EOFError, ConnectionError, asyncio.CancelledError):
                pass
            except BaseException as error:
                faults.append(error)
            finally:
                writer.close()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.get_running_loop().create_task(run(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        path = str(socket_directory / f"{len(servers)}.sock")
        servers.append(await asyncio.start_unix_server(accept, path))
        return path

    yield start
    for server in servers:
        server.close()
    for task in tuple(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not faults, faults


@pytest.fixture
def busy_socket(socket_directory: Path) -> Iterator[str]:
    """A listener that never accepts and whose queue is full."""
    path = str(socket_directory / "busy.sock")
    with busy_listener(path):
        yield path


@pytest.fixture
def request_ids() -> RequestIds:
    return RequestIds(4242)
