"""Fault sites of what is run: programs, and the operator's hook script.

Two wrappers around the `CommandRunner` port, one for each. A script's phases are sites of their
own, as ``hook.backup-start``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from vzsim.faults.kinds import Family, Kind
from vzsim.faults.plane import Plane, length_of
from vzsim.faults.script import Fault
from vzsim.world.commands import SimulatedCommands
from vzsim.world.hooks import HookEnd, HookSeen, SimulatedHooks


class FaultyCommands:
    """The `CommandRunner` port for programs."""

    def __init__(self, plane: Plane, inner: SimulatedCommands) -> None:
        self._plane = plane
        self._inner = inner

    def find(self, program: str) -> str | None:
        """As the port says."""
        return self._inner.find(program)

    async def run(
        self,
        argv: Sequence[str],
        *,
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> tuple[int, Sequence[str]]:
        """As the port says."""

        async def bend(fault: Fault, plain: Callable[[], Awaitable[Any]]) -> Any:
            return await _bend(self._plane, fault, plain)

        async def act() -> tuple[int, Sequence[str]]:
            return await self._inner.run(argv, pass_fds=pass_fds, environment=environment)

        return await self._plane.call("commands.run", Family.COMMAND, act, bend=bend)


class FaultyHooks:
    """The `CommandRunner` port for the script, and nothing else.

    Args:
        plane_of: of the VM that a call is about; 0 for the whole job.
        guest_stands: whether the guest of a VM that was found running is halted or off now.
    """

    def __init__(
        self,
        inner: SimulatedHooks,
        plane_of: Callable[[int], Plane],
        guest_stands: Callable[[int], bool],
    ) -> None:
        self._inner = inner
        self._plane_of = plane_of
        self._guest_stands = guest_stands

    def find(self, program: str) -> str | None:
        """As the port says."""
        return self._inner.find(program)

    async def run(
        self,
        argv: Sequence[str],
        *,
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> tuple[int, Sequence[str]]:
        """As the port says; who is cancelled ends the script."""
        words = tuple(argv[2:])
        vmid = int(words[1]) if len(words) > 1 else 0
        plane, now = self._plane_of(vmid), asyncio.get_running_loop().time
        seen: list[HookSeen] = []

        def begin() -> None:
            seen.append(
                HookSeen(
                    phase=argv[1],
                    words=words,
                    environment=dict(environment or {}),
                    began_s=now(),
                    guest_stood=bool(vmid) and self._guest_stands(vmid),
                )
            )
            self._inner.calls.append(seen[0])

        async def act() -> tuple[int, Sequence[str]]:
            if not seen:
                begin()
            return await self._inner.run(argv, pass_fds=pass_fds, environment=environment)

        async def bend(fault: Fault, plain: Callable[[], Awaitable[Any]]) -> Any:
            begin()
            return await _bend(plane, fault, plain)

        try:
            status, lines = await plane.call(f"hook.{argv[1]}", Family.HOOK, act, bend=bend)
        except asyncio.CancelledError:
            for call in seen:
                call.end, call.ended_s = HookEnd.ENDED, now()
            raise
        seen[0].end, seen[0].ended_s = (HookEnd.BADLY if status else HookEnd.WELL), now()
        return status, lines


async def _bend(plane: Plane, fault: Fault, plain: Callable[[], Awaitable[Any]]) -> Any:
    match fault.kind:
        case Kind.EXITS:
            return 1, (f"simulated failure at {fault.site}#{fault.nth}",)
        case Kind.KILLED:
            return -9, ()
        case Kind.HANGS:
            began_s = asyncio.get_running_loop().time()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                plane.allowance_s += asyncio.get_running_loop().time() - began_s
        case _:
            await plane.wait(length_of(fault))
            return await plain()
