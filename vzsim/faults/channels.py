"""Fault sites of the conversations with one VM: its monitor and its agent.

Wrappers around the ports of one connection; connecting is `vzsim.faults.machine`'s. A command
whose answer comes too late keeps its connection inside QEMU until it was carried out: the next
client waits, as with a blocked monitor.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Generic, TypeVar

from vzdump_qemu.errors import (
    AgentCommandError,
    AgentTimeout,
    BackupError,
    QmpClosed,
    QmpCommandError,
    QmpTimeout,
)
from vzdump_qemu.ports import Agent, Qmp, QmpEvent
from vzsim.faults.kinds import Family, Kind
from vzsim.faults.plane import Plane, length_of
from vzsim.faults.script import Fault
from vzsim.world.machine import SimulatedMachine

_AGENT_SITES = {
    "guest-ping": "agent.ping",
    "guest-fsfreeze-status": "agent.status",
    "guest-fsfreeze-freeze": "agent.freeze",
    "guest-fsfreeze-thaw": "agent.thaw",
}
# What is read late is carried out then; a peer that does not answer by this time has gone.
_LATE_LIMIT_S = 5.0


_ClientT = TypeVar("_ClientT", bound=Qmp | Agent)


class _FaultyClient(Generic[_ClientT]):
    """One connection: how long its replies are on their way, and what its peer reads late."""

    def __init__(
        self, plane: Plane, machine: SimulatedMachine, inner: _ClientT, *, slow_s: float
    ) -> None:
        self._slow_s = slow_s
        self._plane = plane
        self._machine = machine
        self._inner = inner
        self.late: asyncio.Task[Any] | None = None

    async def _miss(
        self, length_s: float, act: Callable[..., Awaitable[Any]], limit_s: float
    ) -> None:
        """Let the time-out pass; the command is carried out later, and nobody hears it."""

        async def carry_out_late() -> None:
            await asyncio.sleep(length_s)
            try:
                await act(_LATE_LIMIT_S)
            except BackupError:
                return

        self.late = asyncio.ensure_future(carry_out_late())
        self._plane.allowance_s += length_s - limit_s
        await self._plane.wait(limit_s)


class FaultyQmp(_FaultyClient[Qmp]):
    """The `Qmp` port of one connection; every command is a site of its own name.

    Args:
        slow_s: how long each reply is on its way.
    """

    # Nothing can be sent on it any more.
    _spent = False

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float
    ) -> Any:
        """As the port says."""

        def act(limit_s: float = timeout_s) -> Awaitable[Any]:
            return self._inner.execute(command, arguments, timeout_s=limit_s)

        return await self._send(command, act, timeout_s)

    async def execute_with_fd(
        self, command: str, arguments: Mapping[str, Any], fd: int, *, timeout_s: float
    ) -> Any:
        """As the port says; the descriptor travels with the message, however late it is read."""
        descriptors = self._machine.host.descriptors

        async def act(limit_s: float = timeout_s) -> Any:
            return await self._inner.execute_with_fd(command, arguments, fd, timeout_s=limit_s)

        was_read = False

        async def act_late(limit_s: float = timeout_s) -> Any:
            nonlocal was_read
            was_read = True
            try:
                return await self._inner.execute_with_fd(command, arguments, own, timeout_s=limit_s)
            finally:
                descriptors.close(own)

        if not self._plane.is_due(command, Kind.STALL):
            return await self._send(command, act, timeout_s)
        own = descriptors.duplicate(fd)
        try:
            return await self._send(command, act_late, timeout_s)
        finally:
            if not was_read and self.late is None:  # nobody waits for it any more
                descriptors.close(own)

    @asynccontextmanager
    async def events(self, *names: str) -> AsyncIterator[AsyncIterator[QmpEvent]]:
        """As the port says."""
        async with self._inner.events(*names) as events:
            yield events

    async def _send(self, command: str, act: Callable[..., Awaitable[Any]], limit_s: float) -> Any:
        if self._spent:
            raise QmpClosed("client closed connection")
        family = Family.QMP_BACKUP if command == "backup" else Family.QMP

        async def bend(fault: Fault, plain: Callable[[], Awaitable[Any]]) -> Any:
            return await self._bend(fault, command, act, limit_s)

        reply = await self._plane.call(command, family, act, bend=bend)
        if self._slow_s:
            await self._plane.wait(self._slow_s)
        return reply

    async def _bend(
        self, fault: Fault, command: str, act: Callable[..., Awaitable[Any]], limit_s: float
    ) -> Any:
        match fault.kind:
            case Kind.ERROR:
                text = f"simulated failure at {fault.site}#{fault.nth}"
                raise QmpCommandError(command=command, error_class="GenericError", description=text)
            case Kind.STALL:
                return await self._stall(length_of(fault), act, limit_s)
            case Kind.CLOSED_BEFORE:
                raise self._close()
            case Kind.JOB_FAILS | Kind.JOB_STALLS | Kind.QEMU_DIES_MIDWAY:
                self._bend_job(fault)
                return await act()
            case _:
                began_s = asyncio.get_running_loop().time()
                await act()
                return await self._lose_reply(fault, limit_s, began_s)

    async def _lose_reply(self, fault: Fault, limit_s: float, began_s: float) -> Any:
        if fault.kind is Kind.CLOSED_AFTER:
            raise self._close()
        if fault.kind is Kind.QEMU_DIES_AFTER:
            self._machine.end_process()
            raise self._close()
        await self._plane.wait(limit_s - (asyncio.get_running_loop().time() - began_s))
        self._spent = True
        raise QmpTimeout("got timeout")

    def _close(self) -> QmpClosed:
        self._spent = True
        return QmpClosed("client closed connection")

    async def _stall(
        self, length_s: float, act: Callable[..., Awaitable[Any]], limit_s: float
    ) -> Any:
        if length_s < limit_s:
            await self._plane.wait(length_s)
            return await act()

        self._spent = True
        await self._miss(length_s, act, limit_s)
        raise QmpTimeout("got timeout")

    def _bend_job(self, fault: Fault) -> None:
        if self._machine.run_state is None:
            return
        process = self._machine.process
        half_bytes = sum(disk.size_bytes for _, disk in process.block.disks()) // 2
        rules = process.script.backup
        match fault.kind:
            case Kind.JOB_FAILS:
                text = f"simulated failure at {fault.site}#{fault.nth}"
                rules = replace(rules, fail_at_bytes=half_bytes, fail_text=text)
            case Kind.JOB_STALLS:
                stall_s = length_of(fault)
                self._plane.allowance_s += stall_s
                rules = replace(rules, stall_at_bytes=half_bytes, stall_s=stall_s)
            case _:
                rules = replace(rules, die_at_bytes=half_bytes)
        process.script = replace(process.script, backup=rules)


class FaultyAgent(_FaultyClient[Agent]):
    """The `Agent` port of one connection.

    Args:
        slow_s: how long each reply is on its way.
    """

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float
    ) -> Any:
        """As the port says."""

        def act(limit_s: float = timeout_s) -> Awaitable[Any]:
            return self._inner.execute(command, arguments, timeout_s=limit_s)

        async def bend(fault: Fault, plain: Callable[[], Awaitable[Any]]) -> Any:
            return await self._bend(fault, command, act, timeout_s)

        if self.late is not None:
            raise AgentTimeout("got timeout")
        site = _AGENT_SITES.get(command, f"agent.{command}")
        reply = await self._plane.call(site, Family.AGENT, act, bend=bend)
        if self._slow_s:
            await self._plane.wait(self._slow_s)
        return reply

    async def _bend(
        self, fault: Fault, command: str, act: Callable[..., Awaitable[Any]], limit_s: float
    ) -> Any:
        length_s = length_of(fault)
        match fault.kind:
            case Kind.ERROR | Kind.ERROR_AFTER:
                if fault.kind is Kind.ERROR_AFTER:
                    await act()
                text = f"simulated failure at {fault.site}#{fault.nth}"
                raise AgentCommandError(error_class="GenericError", description=text)
            case Kind.STALL if length_s < limit_s:
                await self._plane.wait(length_s)
                return await act()
            case Kind.STALL:
                await self._miss(length_s, act, limit_s)
                raise AgentTimeout("got timeout")
            case Kind.AGENT_DIES:
                # It still answers the sync: what is sent after that waits until it is back.
                self._fall_silent(after="guest-sync-delimited", length_s=length_s)
            case Kind.AGENT_DIES_AFTER:
                self._fall_silent(after=command, length_s=length_s)
        self._plane.allowance_s += limit_s
        await act()
        await asyncio.sleep(limit_s)
        raise AgentTimeout("got timeout")

    def _fall_silent(self, *, after: str, length_s: float) -> None:
        if self._machine.run_state is None:
            return
        process = self._machine.process
        agent = process.agent
        assert agent is not None
        rules = agent.rules
        agent.rules = replace(rules, dies_after=after)

        def come_back() -> None:
            agent.rules = rules
            if not process.is_dead:
                agent.come_up()

        self._plane.allowance_s += length_s
        process.timebase.call_later(length_s, come_back)
