"""The plane between a system under test and its world: every port call passes here, as a site.

Owns counting the sites, which fault is due where, the tool's death, and what the faults cost (so
that budgets can be held against it). How a call bends under a fault of its own family is left to
the wrappers. Nothing here knows a particular tool.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from vzdump_qemu.errors import BackupError
from vzsim.event_log import EventLog, Lane
from vzsim.faults.kinds import ACTS, KILLS, LENGTHS_S, Family, Kind
from vzsim.faults.script import Fault, FaultScript
from vzsim.world.files import PartialWrite

_T = TypeVar("_T")
Bend = Callable[[Fault, Callable[[], Awaitable[Any]]], Awaitable[Any]]
# A round trip to another process takes time, or a window full of them would look instant.
_LATENCIES_S: Mapping[Family, float] = MappingProxyType(
    {Family.QMP: 0.001, Family.QMP_BACKUP: 0.001, Family.AGENT: 0.002}
)
_ERRNOS: Mapping[Kind, int] = MappingProxyType(
    {
        Kind.EIO: errno.EIO,
        Kind.ENOSPC: errno.ENOSPC,
        Kind.EXDEV: errno.EXDEV,
        Kind.EROFS: errno.EROFS,
        Kind.EDQUOT: errno.EDQUOT,
    }
)
_AFTER = frozenset({Kind.CANCEL_TOOL_AFTER, Kind.KILL_TOOL_AFTER})


class Closing(Protocol):
    """What can be closed; an `AsyncExitStack` is one."""

    async def aclose(self) -> None: ...


class ToolKilled(BaseException):
    """Thrown into what is left of a killed tool when its simulation ends."""


def length_of(fault: Fault) -> float:
    """Length of a fault in seconds; the kind's default where none is written."""
    return fault.length_s or LENGTHS_S.get(fault.kind, (0.0,))[0]


class Plane:
    """All sites of one simulated run.

    Attributes:
        visit_counts: uses per site, and `families` which family each belongs to.
        triggered: faults that happened.
        allowance_s: time that faults made the tool wait; budgets are wider by that much.
        actors: what others do, per kind; they get the length in seconds.

    Args:
        prefix: stands before the names of all sites (``recovery.``).
    """

    def __init__(self, script: FaultScript, log: EventLog, *, prefix: str = "") -> None:
        self._log = log
        self._prefix = prefix
        self._due: dict[tuple[str, int], list[Fault]] = {}
        for fault in script.faults:
            self._due.setdefault((fault.site, fault.nth), []).append(fault)
        self._blocked: list[asyncio.Future[None]] = []
        self._background: set[asyncio.Task[Any]] = set()
        self._held: list[Closing] = []
        self._ended = False
        self.visit_counts: dict[str, int] = {}
        self.families: dict[str, Family] = {}
        self.triggered: list[Fault] = []
        self.allowance_s = 0.0
        self.is_dead = False
        self.tool: asyncio.Task[Any] | None = None
        self.actors: Mapping[Kind, Callable[[float], None]] = {}
        self.on_kill: list[Callable[[], None]] = []

    # -- life of the tool ----------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL: the tool never moves again; the kernel closes what it held."""
        if self.is_dead:
            return
        self._log.tell(Lane.FAULT, "the tool is dead")
        self.die()

    def die(self) -> None:
        """What a kill means at these sites."""
        self.is_dead = True
        for act in self.on_kill:
            act()
        for closing in self._held:
            self.spawn(closing.aclose())

    def end(self) -> None:
        """This tool's time is over: what is left of a killed one ends at its next step."""
        self._ended = True
        for future in self._blocked:
            if not future.done():
                future.set_exception(ToolKilled())
        self._blocked.clear()

    def hold(self, closing: Closing) -> None:
        """Something of the tool's that the kernel closes when the tool is killed."""
        self._held.append(closing)

    def release(self, closing: Closing) -> None:
        """The tool closed it itself."""
        if closing in self._held:
            self._held.remove(closing)

    def spawn(self, work: Any) -> None:
        """Have the world do something on its own time."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # -- sites ---------------------------------------------------------------------------------

    async def call(
        self,
        site: str,
        family: Family,
        act: Callable[[], Awaitable[_T]],
        *,
        bend: Bend | None = None,
    ) -> _T:
        """Let one port call pass; its faults happen to it.

        Args:
            act: the call itself.
            bend: carries out the call under a fault of its own family.
        """
        if self.is_dead or self._ended:
            await self._wait_if_dead()
        name, faults = self._visit(site, family)
        own = None
        late = None
        for fault in faults:
            if fault.kind in _AFTER:
                late = fault
            elif fault.kind in ACTS:
                await self._act(fault)
            else:
                own = fault
        if family in _LATENCIES_S:
            await asyncio.sleep(_LATENCIES_S[family])
        try:
            if own is None or bend is None:
                result = await act()
            else:
                self._trigger(own)
                result = await bend(own, act)
        except (BackupError, OSError) as error:
            await self._wait_if_dead()
            self._log.tell(Lane.TOOL, f"{name} failed: {type(error).__name__}: {error}")
            raise
        if self.is_dead or self._ended:
            await self._wait_if_dead()
        self._log.tell(Lane.TOOL, f"{name} done")
        if late is not None:
            await self._act(late)
        return result

    async def attend(
        self, site: str, family: Family, act: Callable[[], Awaitable[_T]], *, bend: Bend
    ) -> _T:
        """As `call` for what another process does that the tool has asked: it outlives the tool."""
        name, faults = self._visit(site, family)
        own = late = None
        for fault in faults:
            if fault.kind in _AFTER:
                late = fault
            elif fault.kind in ACTS:
                await self._act_beside(fault)
            else:
                own = fault
        self._log.tell(Lane.TOOL, f"{name} asked")
        if own is None:
            result = await act()
        else:
            self._trigger(own)
            result = await bend(own, act)
        if late is not None:
            await self._act_beside(late)
        return result

    def is_due(self, site: str, kind: Kind) -> bool:
        """Whether the next use of that site meets a fault of that kind."""
        site = self._prefix + site
        due = self._due.get((site, self.visit_counts.get(site, 0) + 1), [])
        return any(fault.kind is kind for fault in due)

    def call_now(self, site: str, family: Family, *, path: str = "") -> Fault | None:
        """As `call` for something that does not wait: the due fault of its own, if any.

        Raises: OSError for the kinds of a file system.
        """
        name, faults = self._visit(site, family)
        self._log.tell(Lane.FILES, f"{name} {path}".rstrip())
        for fault in faults:
            self._trigger(fault)
            match fault.kind:
                case Kind.PARTIAL:
                    raise PartialWrite(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
                case Kind.POWER_LOSS:
                    self._lose_power(fault)
                    # In the middle of a call that does not wait: nothing after it is done.
                    raise ToolKilled
                case kind if kind in _ERRNOS:
                    raise OSError(_ERRNOS[kind], os.strerror(_ERRNOS[kind]), path)
                case _:
                    return fault
        return None

    async def bend_plainly(
        self,
        fault: Fault,
        act: Callable[[], Awaitable[_T]],
        error: BackupError,
        *,
        outlives: bool = False,
    ) -> _T:
        """The kinds that every ordinary call can have.

        Args:
            outlives: a process of its own carries it out, even if the tool is killed meanwhile.
        """
        if fault.kind is Kind.ERROR:
            raise error
        if fault.kind is Kind.ERROR_AFTER:
            await act()
            raise error
        await self.wait(length_of(fault))
        if not outlives and (self.is_dead or self._ended):
            await self._wait_if_dead()
        return await act()

    async def wait(self, seconds: float) -> None:
        """Keep the tool waiting; budgets grow by as much."""
        self.allowance_s += seconds
        await asyncio.sleep(seconds)

    def _visit(self, site: str, family: Family) -> tuple[str, list[Fault]]:
        site = self._prefix + site
        count = self.visit_counts.get(site, 0) + 1
        self.visit_counts[site] = count
        if count == 1:
            self.families[site] = family
        faults = self._due.pop((site, count), []) if self._due else []
        return f"{site}#{count}", faults

    def _trigger(self, fault: Fault) -> None:
        self.triggered.append(fault)
        self._log.tell(Lane.FAULT, fault.render())

    async def _act(self, fault: Fault) -> None:
        self._trigger(fault)
        match fault.kind:
            case Kind.CANCEL_TOOL | Kind.CANCEL_TOOL_AFTER:
                assert self.tool is not None
                self.tool.cancel()
                # The signal is noticed wherever the tool waits: here.
                await asyncio.sleep(0)
            case Kind.KILL_TOOL | Kind.KILL_TOOL_AFTER:
                self.kill()
                await self._wait_if_dead()
            case Kind.POWER_LOSS:
                self._lose_power(fault)
                await self._wait_if_dead()
            case _:
                self.actors[fault.kind](length_of(fault))

    async def _act_beside(self, fault: Fault) -> None:
        """As `_act` by somebody who is not the tool."""
        if fault.kind not in KILLS:
            await self._act(fault)
            return
        self._trigger(fault)
        if fault.kind is Kind.POWER_LOSS:
            self._lose_power(fault)
        else:
            self.kill()

    def _lose_power(self, fault: Fault) -> None:
        self.actors[fault.kind](length_of(fault))
        self.kill()

    async def _wait_if_dead(self) -> None:
        if self._ended:
            raise ToolKilled
        if self.is_dead:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._blocked.append(future)
            await future
