"""Client ends of a simulated machine's monitor and agent: the `Qmp` and `Agent` ports in memory.

The conversation is the real one, message for message. An agent's is in bytes, since what resets a
serial line is one; a monitor's is in objects, since both ends are here. One client at a time: the
next waits until the first has left.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Generic, Protocol, TypeVar

from vzdump_qemu.errors import (
    AgentCommandError,
    AgentTimeout,
    AgentUnreachable,
    QmpClosed,
    QmpCommandError,
    QmpTimeout,
    QmpUnreachable,
)
from vzdump_qemu.ports import QmpEvent
from vzsim.fakeqmp import wire
from vzsim.fakeqmp.agent import Agent as AgentMachine
from vzsim.fakeqmp.monitor import Monitor

EVENT_COUNT_MAX = 10_000
_SYNC = b'{"execute": "guest-sync-delimited", "arguments": {"id": %d}}\n'
# Connecting to a socket is never instant: another client may come first.
CONNECT_S = 0.0005


class MemoryQmp:
    """One client of one monitor."""

    def __init__(self, monitor: Monitor, duplicate_fd: Callable[[int], int]) -> None:
        self._monitor = monitor
        self._duplicate_fd = duplicate_fd
        # What was asked, with who waits for the reply, if anybody has to.
        self._asked: dict[int, asyncio.Future[Mapping[str, Any]] | None] = {}
        self._answers: dict[int, Mapping[str, Any]] = {}
        self._listeners: list[tuple[frozenset[str], deque[QmpEvent], asyncio.Event]] = []
        self._next_id = 0
        self._closed = False

    async def open(self, timeout_s: float) -> None:
        """Connect and negotiate; the greeting is not waited for."""
        self._monitor.connect_in_memory(self._take, self._hung_up)
        await self.execute("qmp_capabilities", timeout_s=timeout_s)

    def close(self) -> None:
        """Leave."""
        if not self._closed:
            self._closed = True
            self._monitor.disconnect()

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout_s: float,
        fds: tuple[int, ...] = (),
    ) -> Any:
        """As the port says.

        Args:
            fds: descriptors that go along and become QEMU's.
        """
        if self._closed:
            raise QmpClosed("client closed connection")
        self._next_id += 1
        asked_id = self._next_id
        message: dict[str, Any] = {"execute": command, "id": asked_id}
        if arguments:
            message["arguments"] = wire.as_read(dict(arguments))
        self._asked[asked_id] = None
        self._monitor.take(message, fds)
        # Most commands are carried out at once; no time passes.
        answer = self._answers.pop(asked_id, None)
        if answer is None:
            answer = await self._wait_for(asked_id, timeout_s)
        if "error" in answer:
            raise QmpCommandError(
                command=command,
                error_class=answer["error"]["class"],
                description=answer["error"]["desc"],
            )
        return answer["return"]

    async def execute_with_fd(
        self, command: str, arguments: Mapping[str, Any], fd: int, *, timeout_s: float
    ) -> Any:
        """As the port says; QEMU gets a descriptor of its own."""
        if self._closed:
            raise QmpClosed("client closed connection")
        fds = (self._duplicate_fd(fd),)
        return await self.execute(command, arguments, timeout_s=timeout_s, fds=fds)

    @asynccontextmanager
    async def events(self, *names: str) -> AsyncIterator[AsyncIterator[QmpEvent]]:
        """As the port says; bounded, the oldest are dropped."""
        queue: deque[QmpEvent] = deque(maxlen=EVENT_COUNT_MAX)
        entry = (frozenset(names), queue, asyncio.Event())
        self._listeners.append(entry)

        async def iterate() -> AsyncIterator[QmpEvent]:
            while True:
                while queue:
                    yield queue.popleft()
                if self._closed:
                    return
                entry[2].clear()
                await entry[2].wait()

        try:
            yield iterate()
        finally:
            self._listeners.remove(entry)

    async def _wait_for(self, asked_id: int, timeout_s: float) -> Mapping[str, Any]:
        if self._closed:
            raise QmpClosed("client closed connection")
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Mapping[str, Any]] = loop.create_future()
        self._asked[asked_id] = reply
        timer = loop.call_later(timeout_s, _give_up, reply)
        try:
            return await reply
        except TimeoutError as error:
            # A late reply must never be taken for the next one: this connection is spent.
            self.close()
            raise QmpTimeout("got timeout") from error
        finally:
            timer.cancel()

    def _take(self, message: Mapping[str, Any]) -> None:
        if "event" in message:
            self._take_event(message["event"], message)
            return
        asked_id = message.get("id")
        if asked_id not in self._asked:
            return
        reply = self._asked.pop(asked_id)
        if reply is None:
            self._answers[asked_id] = wire.as_read(message)
        elif not reply.done():
            reply.set_result(wire.as_read(message))

    def _take_event(self, name: str, message: Mapping[str, Any]) -> None:
        listening = [entry for entry in self._listeners if not entry[0] or name in entry[0]]
        if not listening:
            return
        event = QmpEvent(name=name, data=wire.as_read(message.get("data", {})))
        for _, queue, ready in listening:
            queue.append(event)
            ready.set()

    def _hung_up(self) -> None:
        self._closed = True
        for reply in self._asked.values():
            if reply is not None and not reply.done():
                reply.set_exception(QmpClosed("client closed connection"))
        self._asked.clear()
        for _, _, ready in self._listeners:
            ready.set()


def _give_up(reply: asyncio.Future[Mapping[str, Any]]) -> None:
    if not reply.done():
        reply.set_exception(TimeoutError())


class MemoryAgent:
    """One client of one agent channel."""

    def __init__(self, machine: AgentMachine, sync_ids: Callable[[], int]) -> None:
        self._machine = machine
        self._sync_ids = sync_ids
        self._buffer = bytearray()
        self._arrived = asyncio.Event()
        self._closed = False

    async def open(self, timeout_s: float) -> None:
        """Connect and synchronise. Raises AgentUnreachable."""
        self._machine.connect(self._take, self._hung_up)
        await self.synchronise(timeout_s)

    def close(self) -> None:
        """Leave; what was asked is still carried out."""
        if not self._closed:
            self._closed = True
            self._machine.disconnect()

    async def synchronise(self, timeout_s: float) -> None:
        """One delimited round trip. Raises AgentUnreachable."""
        try:
            await self._sync(asyncio.get_running_loop().time() + timeout_s)
        except TimeoutError as error:
            raise AgentUnreachable("no answer from the guest agent") from error

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float
    ) -> Any:
        """As the port says."""
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        try:
            await self._sync(deadline_s)
            message: dict[str, Any] = {"execute": command}
            if arguments:
                message["arguments"] = dict(arguments)
            self._send(wire.encode(message, line_end=b"\n"))
            answer = json.loads(await self._line(deadline_s))
        except TimeoutError as error:
            raise AgentTimeout("got timeout") from error
        if "error" in answer:
            raise AgentCommandError(
                error_class=answer["error"]["class"], description=answer["error"]["desc"]
            )
        return answer["return"]

    async def _sync(self, deadline_s: float) -> None:
        sync_id = self._sync_ids()
        self._send(_SYNC % sync_id)
        while True:
            line = await self._line(deadline_s)
            at = line.rfind(b"\xff")
            if at >= 0 and json.loads(line[at + 1 :]).get("return") == sync_id:
                return

    def _send(self, line: bytes) -> None:
        if self._closed:
            raise AgentTimeout("client closed connection")
        self._machine.receive(line)

    async def _line(self, deadline_s: float) -> bytes:
        """The next line. Raises TimeoutError if it has to be waited for too long."""
        while b"\n" not in self._buffer:
            if self._closed:
                raise AgentTimeout("client closed connection")
            self._arrived.clear()
            async with asyncio.timeout_at(deadline_s):
                await self._arrived.wait()
        end = self._buffer.index(b"\n")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _take(self, data: bytes) -> None:
        self._buffer += data
        self._arrived.set()

    def _hung_up(self) -> None:
        self._closed = True
        self._arrived.set()


class OneClient:
    """A socket that serves one client at a time."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._waiting_count = 0

    async def enter(self, timeout_s: float, refuse: Callable[[], Exception]) -> None:
        """Wait for one's turn, bounded; raise what `refuse` makes otherwise."""
        await asyncio.sleep(CONNECT_S)
        # A turn may have to be waited for: one that was told to go on may not have yet.
        if not (self._waiting_count or self._lock.locked()):
            await self._lock.acquire()
            return
        self._waiting_count += 1
        try:
            async with asyncio.timeout(timeout_s):
                await self._lock.acquire()
        except TimeoutError as error:
            raise refuse() from error
        finally:
            self._waiting_count -= 1

    def leave(self) -> None:
        """It is the next one's turn."""
        self._lock.release()


class _Client(Protocol):
    async def open(self, timeout_s: float) -> None: ...

    def close(self) -> None: ...


_ClientT = TypeVar("_ClientT", bound=_Client)


class Connection(Generic[_ClientT]):
    """One turn of one client, as a context: opened once it is its turn, in the end closed."""

    def __init__(
        self,
        client: _ClientT,
        turn: OneClient,
        *,
        timeout_s: float,
        refuse: Callable[[], Exception],
    ) -> None:
        self._client = client
        self._turn = turn
        self._timeout_s = timeout_s
        self._refuse = refuse

    async def __aenter__(self) -> _ClientT:
        await self._turn.enter(self._timeout_s, self._refuse)
        try:
            await self._client.open(self._timeout_s)
        except BaseException:
            self._leave()
            raise
        return self._client

    async def __aexit__(self, *raised: object) -> None:
        self._leave()

    def _leave(self) -> None:
        self._client.close()
        self._turn.leave()


def open_qmp(
    monitor: Monitor,
    turn: OneClient,
    *,
    timeout_s: float,
    duplicate_fd: Callable[[int], int],
) -> Connection[MemoryQmp]:
    """Connect to a monitor and negotiate."""
    client = MemoryQmp(monitor, duplicate_fd)
    return Connection(
        client,
        turn,
        timeout_s=timeout_s,
        refuse=lambda: QmpUnreachable("no greeting from the monitor: another client may hold it"),
    )


def open_agent(
    machine: AgentMachine, turn: OneClient, *, timeout_s: float, sync_ids: Callable[[], int]
) -> Connection[MemoryAgent]:
    """Connect to an agent and synchronise."""
    client = MemoryAgent(machine, sync_ids)
    return Connection(
        client,
        turn,
        timeout_s=timeout_s,
        refuse=lambda: AgentUnreachable("another client holds the agent's channel"),
    )
