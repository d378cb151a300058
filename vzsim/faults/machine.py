"""Fault sites of one VM as a whole: its power, and getting through to its monitor and agent.

Wrappers around the ports of a simulated machine; what happens on a connection once it is there is
`vzsim.faults.channels`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, Generic, TypeVar

from vzdump_qemu.errors import AgentUnreachable, BackupError, PowerError, QmpUnreachable
from vzdump_qemu.ports import Agent, Qmp
from vzsim.faults.channels import FaultyAgent, FaultyQmp
from vzsim.faults.contexts import Held, Way
from vzsim.faults.kinds import Family, Kind
from vzsim.faults.plane import Plane, length_of
from vzsim.faults.script import Fault
from vzsim.world.machine import SimulatedMachine


class FaultyPower:
    """The `Power` port."""

    def __init__(self, plane: Plane, machine: SimulatedMachine) -> None:
        self._plane = plane
        self._inner = machine.power

    async def start_paused(self) -> Sequence[str]:
        """As the port says."""
        return await self._do("start_paused", self._inner.start_paused)

    async def start(self) -> Sequence[str]:
        """As the port says."""
        return await self._do("start", self._inner.start)

    async def shut_down(self, *, timeout_s: float) -> Sequence[str]:
        """As the port says."""
        return await self._do("shut_down", lambda: self._inner.shut_down(timeout_s=timeout_s))

    async def stop(self) -> Sequence[str]:
        """As the port says."""
        return await self._do("stop", self._inner.stop)

    async def suspend(self) -> Sequence[str]:
        """As the port says."""
        return await self._do("suspend", self._inner.suspend)

    async def resume(self) -> Sequence[str]:
        """As the port says."""
        return await self._do("resume", self._inner.resume)

    async def _do(self, name: str, act: Callable[[], Awaitable[Sequence[str]]]) -> Sequence[str]:
        async def bend(fault: Fault, plain: Callable[[], Awaitable[Any]]) -> Any:
            text = f"simulated failure at {fault.site}#{fault.nth}"
            return await self._plane.bend_plainly(fault, plain, PowerError(text), outlives=True)

        return await self._plane.call(f"power.{name}", Family.POWER, act, bend=bend)


_ClientT = TypeVar("_ClientT", bound=FaultyQmp | FaultyAgent)


class _Connection(Generic[_ClientT]):
    """What the tool enters to get a client."""

    def __init__(
        self,
        connect: Callable[[Way[Any], float], Awaitable[_ClientT]],
        leave: Callable[[Way[Any], asyncio.Task[Any] | None], None],
        timeout_s: float,
    ) -> None:
        self._connect = connect
        self._leave = leave
        self._timeout_s = timeout_s
        self._way = Way[Any]()
        self._client: _ClientT | None = None

    async def __aenter__(self) -> _ClientT:
        try:
            self._client = await self._connect(self._way, self._timeout_s)
        except BaseException:
            await self._way.aclose()
            raise
        return self._client

    async def __aexit__(self, *raised: object) -> None:
        assert self._client is not None
        self._leave(self._way, self._client.late)
        await self._way.aclose()


class FaultyMachine:
    """The `Machine` port."""

    def __init__(self, plane: Plane, machine: SimulatedMachine) -> None:
        self._plane = plane
        self._inner = machine
        self.power = FaultyPower(plane, machine)

    @property
    def vmid(self) -> int:
        return self._inner.vmid

    @property
    def private_directory(self) -> str:
        """As the port says."""
        return self._inner.private_directory

    async def has_backup_job(self) -> bool:
        """As the port says."""
        return await self._inner.has_backup_job()

    async def is_running(self) -> bool:
        """As the port says."""
        return await self._plane.call("machine.is_running", Family.QUIET, self._inner.is_running)

    def connect_qmp(self, *, timeout_s: float) -> AbstractAsyncContextManager[Qmp]:
        """As the port says."""
        return _Connection(self._open_qmp, self._leave, timeout_s)

    async def _open_qmp(self, way: Way[Any], timeout_s: float) -> FaultyQmp:
        inner, slow_s = await self._connect(
            "qmp.connect",
            way,
            lambda: self._inner.connect_qmp(timeout_s=timeout_s),
            lambda: QmpUnreachable("no greeting from the monitor: another client may hold it"),
            timeout_s=timeout_s,
        )
        return FaultyQmp(self._plane, self._inner, inner, slow_s=slow_s)

    def connect_agent(self, *, timeout_s: float) -> AbstractAsyncContextManager[Agent]:
        """As the port says."""
        return _Connection(self._open_agent, self._leave, timeout_s)

    async def _open_agent(self, way: Way[Any], timeout_s: float) -> FaultyAgent:
        inner, slow_s = await self._connect(
            "agent.connect",
            way,
            lambda: self._inner.connect_agent(timeout_s=timeout_s),
            lambda: AgentUnreachable("no answer from the guest agent"),
            timeout_s=timeout_s,
        )
        return FaultyAgent(self._plane, self._inner, inner, slow_s=slow_s)

    async def _connect(
        self,
        site: str,
        way: Way[Any],
        connect: Callable[[], AbstractAsyncContextManager[Any]],
        refuse: Callable[[], BackupError],
        *,
        timeout_s: float,
    ) -> tuple[Any, float]:
        """Enter `connect` on a way that the kernel closes if the tool is killed.

        Returns: the client, and how long each of its replies is on its way, in seconds.
        """
        plane = self._plane
        plane.hold(way)
        slow_s = 0.0

        async def act() -> Any:
            inner = await way.enter(connect())
            if plane.is_dead:
                await way.aclose()  # killed while it was connecting: the kernel hangs up
            return inner

        async def bend(fault: Fault, plain: Callable[[], Awaitable[Any]]) -> Any:
            nonlocal slow_s
            length_s = length_of(fault)
            match fault.kind:
                case Kind.REFUSED:
                    raise refuse()
                case Kind.SLOW:
                    slow_s = length_s
                case Kind.OTHER_CLIENT:
                    plane.spawn(self._hold_socket(site, length_s))
                    plane.allowance_s += length_s
                    await asyncio.sleep(0.001)  # it comes first
                case Kind.STALE:
                    return await self._connect_to_stale(plain)
                case _ if length_s >= timeout_s:
                    await plane.wait(timeout_s)
                    raise refuse()
                case _:
                    await plane.wait(length_s)
            return await plain()

        family = Family.QMP_CONNECT if site == "qmp.connect" else Family.AGENT_CONNECT
        return await plane.call(site, family, act, bend=bend), slow_s

    async def _hold_socket(self, site: str, length_s: float) -> None:
        connect = self._inner.connect_qmp if site == "qmp.connect" else self._inner.connect_agent
        try:
            # Bounded: the QEMU that it waits for may have died.
            async with connect(timeout_s=length_s):
                await asyncio.sleep(length_s)
        except BackupError:
            return  # nothing to connect to

    async def _connect_to_stale(self, plain: Callable[[], Awaitable[Any]]) -> Any:
        process = self._inner.process if self._inner.run_state else None
        if process is None or process.agent is None:
            return await plain()
        agent, rules = process.agent, process.agent.rules
        agent.rules = replace(rules, stale_replies=({"return": {}}, {"return": 7}))
        try:
            return await plain()
        finally:
            agent.rules = rules

    def _leave(self, way: Way[Any], late: asyncio.Task[Any] | None) -> None:
        """A command that QEMU has not read yet keeps its connection; we are gone from it."""
        self._plane.release(way)
        if late is None or late.done():
            return
        kept = way.pop_all()

        async def close_later() -> None:
            await late
            await kept.aclose()

        self._plane.spawn(close_later())

    def keep_alive(self) -> AbstractAsyncContextManager[None]:
        """As the port says."""
        return Held(self._plane, self._inner.keep_alive, self._keep_alive)

    async def _keep_alive(self, act: Callable[[], Awaitable[None]]) -> None:
        async def bend(fault: Fault, plain: Callable[[], Awaitable[Any]]) -> Any:
            text = f"simulated failure at {fault.site}#{fault.nth}"
            return await self._plane.bend_plainly(fault, plain, PowerError(text))

        await self._plane.call("machine.keep_alive", Family.NODE, act, bend=bend)
