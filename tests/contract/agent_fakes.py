"""The simulated guest agents of the contract: in memory, and behind a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from tests.contract.agents import AgentSubject
from tests.contract.fakes import SocketChannel
from tests.contract.selection import Offer
from tests.contract.subject import Channel, Silence
from vzsim.fakeqmp.agent import Agent
from vzsim.fakeqmp.host import LoopTimebase, RealHost
from vzsim.fakeqmp.machine import Machine, MachineConfig, ProcessEnd
from vzsim.fakeqmp.memory import MemoryHost, VirtualTimebase
from vzsim.fakeqmp.outside import Host, Timebase
from vzsim.fakeqmp.script import Script
from vzsim.fakeqmp.server import serve_agent

_HOOK_ERROR = "fsfreeze hook has failed with status 3"
_START_S = 10.0


def _build(
    timebase: Timebase, host: Host, on_end: Callable[[ProcessEnd], None]
) -> tuple[Machine, Agent]:
    machine = Machine(
        MachineConfig(agent_port_id="agent"),
        script=Script(),
        timebase=timebase,
        host=host,
        on_end=on_end,
    )
    machine.start()
    assert machine.agent is not None
    return machine, machine.agent


def _set_hook(agent: Agent, *, refused: bool) -> None:
    agent.rules = dataclasses.replace(agent.rules, freeze_error=_HOOK_ERROR if refused else None)


class _MemoryAgentChannel:
    def __init__(self, subject: _MemoryAgent, agent: Agent) -> None:
        self._subject = subject
        self._agent = agent
        self._lines: deque[bytes] = deque()
        agent.connect(lambda data: self._lines.extend(data.splitlines()), lambda: None)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        assert not fds
        self._agent.receive(data)

    def receive_line(self, timeout_s: float) -> bytes:
        if not self._lines:
            timebase = self._subject.timebase
            timebase.advance_to(timebase.now_s() + timeout_s)
        if not self._lines:
            raise Silence
        return self._lines.popleft()

    def close(self) -> None:
        self._agent.disconnect()


class _MemoryAgent:
    name = "memory-agent"

    def __init__(self) -> None:
        self.timebase = VirtualTimebase()
        self._machine, self._agent = _build(self.timebase, MemoryHost(), lambda _end: None)

    def open_agent(self) -> Channel:
        return _MemoryAgentChannel(self, self._agent)

    def refuse_freezes(self, *, refused: bool) -> None:
        _set_hook(self._agent, refused=refused)


class _SocketAgent:
    name = "sockets-agent"

    def __init__(self, path: str) -> None:
        self._path = path
        self._channels: list[SocketChannel] = []
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._agent: Agent | None = None
        self._machine: Machine | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(_START_S)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[ProcessEnd] = loop.create_future()
        self._machine, self._agent = _build(LoopTimebase(loop), RealHost(loop), ended.set_result)
        server = serve_agent(self._path, self._agent, loop)
        self._loop = loop
        self._ready.set()
        await ended
        server.close()

    def open_agent(self) -> Channel:
        channel = SocketChannel(self._path)
        self._channels.append(channel)
        return channel

    def refuse_freezes(self, *, refused: bool) -> None:
        assert self._loop is not None
        assert self._agent is not None
        agent, done = self._agent, threading.Event()

        def act() -> None:
            _set_hook(agent, refused=refused)
            done.set()

        self._loop.call_soon_threadsafe(act)
        assert done.wait(_START_S)

    def end(self) -> None:
        """Close every channel and end the machine."""
        assert self._loop is not None
        assert self._machine is not None
        for channel in self._channels:
            channel.close()
        self._loop.call_soon_threadsafe(self._machine.die, "SIGKILL")
        self._thread.join(_START_S)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def _memory_agent() -> Iterator[AgentSubject]:
    yield _MemoryAgent()


@contextlib.contextmanager
def _socket_agent() -> Iterator[AgentSubject]:
    with tempfile.TemporaryDirectory(prefix="vzc-", dir="/tmp") as directory:
        subject = _SocketAgent(f"{directory}/agent.sock")
        try:
            yield subject
        finally:
            subject.end()


FAKE_AGENTS = {
    "memory-agent": Offer(frozenset(), _memory_agent),
    "sockets-agent": Offer(frozenset(), _socket_agent),
}
