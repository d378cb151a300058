"""The freeze window: freeze, the command that fixes the point in time, thaw. Nothing else.

Owns whether a guest is frozen, the waiting for slow guests, and that a thaw follows every freeze
that was sent, whatever its answer. Source: host behaviour, section 6.6; failure modes 15-25, 89.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeAlias, TypeVar

from vzdump_qemu import events
from vzdump_qemu.engine.context import EnginePorts
from vzdump_qemu.engine.run_state import GuestLook, look_at_guest
from vzdump_qemu.engine.undo import UndoStack
from vzdump_qemu.errors import AgentCommandError, GuestError
from vzdump_qemu.events import Consistency, FreezeSkip
from vzdump_qemu.journal_ports import Reversal, ReversalKind
from vzdump_qemu.ports import Agent, Machine
from vzdump_qemu.units import NS_PER_S

PING_TIMEOUT_S = 3.0
STATUS_TIMEOUT_S = 5.0
FREEZE_TIMEOUT_S = 600.0
# After this long the status is asked on the same channel. An agent that is busy freezing answers
# it behind the freeze; one that was killed and started anew has forgotten the freeze it was asked
# for, and tells at once whether the guest is frozen.
FREEZE_ANSWER_S = 60.0
# A guest may need an hour to flush; its status is asked five times, ten minutes each.
STATUS_AFTER_FREEZE_TIMEOUT_S = 600.0
STATUS_AFTER_FREEZE_COUNT = 5
# Windows guests were seen to take 54 s for a thaw.
THAW_TIMEOUT_S = 180.0
# What does not help twice is tried again and again beside the run: a job must not wait for it.
THAW_ATTEMPT_COUNT_MAX = 2
THAW_PAUSE_S = 1.0
# How soon QEMU is asked meanwhile whether the guest is on at all, and how often in the end.
OFF_PAUSE_S = 5.0
OFF_PAUSE_S_MAX = 60.0
LOOK_TIMEOUT_S = 2.0
# All attempts with their pauses; the undo stack must not cut them short.
THAW_DEADLINE_S = THAW_ATTEMPT_COUNT_MAX * (2 * THAW_TIMEOUT_S + THAW_PAUSE_S)

_T = TypeVar("_T")
StartJob: TypeAlias = Callable[[], Awaitable[str]]
"""Fixes the point in time and returns the job's uuid."""


class _GuestSilent(GuestError):
    """Nobody is there who could answer."""

    def __init__(self, message: str, *, is_off: bool) -> None:
        super().__init__(message)
        self.is_off = is_off


class FreezeWindow:
    """Freezes, starts, thaws; afterwards tells what was reached.

    Args:
        guest_silent: returns once the guest is off or halted inside the window, else never.

    Attributes:
        consistency: FROZEN only after the agent froze something and thawed it again: a guest
            that thaws by itself tells nobody.
        freeze_window_s: from sending freeze to the thaw reply; None if nothing was sent.
    """

    def __init__(
        self, ports: EnginePorts, machine: Machine, guest_silent: Callable[[], Awaitable[GuestLook]]
    ) -> None:
        self._ports = ports
        self._machine = machine
        self._guest_silent = guest_silent
        self._has_frozen = False
        self._silence: asyncio.Future[GuestLook] | None = None
        self._connection = AsyncExitStack()
        self._agent: Agent | None = None
        self._sent_ns = 0
        self._waited_ns = 0
        self._is_refused = False
        self.consistency = Consistency.CRASH
        self.freeze_window_s: float | None = None

    async def start_unfrozen(self, start: StartJob) -> str:
        """Fix the point in time without asking the guest; return the job's uuid."""
        self._ports.emit(events.JobStartIssued())
        return await start()

    async def start_frozen(self, start: StartJob, undo: UndoStack) -> str:
        """Fix the point in time while the guest's file systems are frozen, if it has an agent.

        A failed freeze is told and the backup goes on; the thaw is sent all the same, because
        the guest may have frozen after all. The agent stays connected over the whole window:
        connecting costs time that the guest would be frozen.
        """
        async with self._connection:
            if not await self._is_willing():
                return await self.start_unfrozen(start)
            thaw = await undo.push(
                "thaw the guest",
                self._thaw,
                Reversal(kind=ReversalKind.THAW),
                timeout_s=THAW_DEADLINE_S,
            )
            self._silence = asyncio.ensure_future(self._guest_silent())
            try:
                await self._freeze()
                self._ports.emit(events.JobStartIssued())
                return await self._timed(start())
            finally:
                if self._is_refused:
                    thaw.dismiss()
                await thaw.run()
                self._silence.cancel()
                self._silence = None
                undo.persist(thaw)

    async def _connect(self, timeout_s: float) -> Agent:
        # The channel serves one client: the old connection goes before a new one can be heard.
        await self._connection.aclose()
        self._agent = await self._connection.enter_async_context(
            self._machine.connect_agent(timeout_s=timeout_s)
        )
        return self._agent

    async def _is_willing(self) -> bool:
        emit = self._ports.emit
        try:
            # Connecting makes a sync round trip: a freeze is never left lying in the channel of
            # a guest that does not listen now and would carry it out later.
            agent = await self._connect(PING_TIMEOUT_S)
            await agent.execute("guest-ping", timeout_s=PING_TIMEOUT_S)
        except GuestError:
            emit(events.FreezeSkipped(reason=FreezeSkip.NOT_RUNNING))
            return False
        try:
            status = await agent.execute("guest-fsfreeze-status", timeout_s=STATUS_TIMEOUT_S)
        except AgentCommandError as error:
            emit(events.Warned(text=f"unable to check guest fs freeze status - {error}"))
            return True
        except GuestError as error:
            # It may be somebody's frozen guest, whose thaw would not be ours to send.
            emit(events.Warned(text=f"unable to check guest fs freeze status - {error}"))
            emit(events.FreezeSkipped(reason=FreezeSkip.NOT_RUNNING))
            return False
        if status == "frozen":
            emit(events.FreezeSkipped(reason=FreezeSkip.ALREADY_FROZEN))
            return False
        return True

    async def _timed(self, reply: Awaitable[_T]) -> _T:
        begun_ns = self._ports.clock.now_ns()
        try:
            return await reply
        finally:
            self._waited_ns += self._ports.clock.now_ns() - begun_ns

    async def _freeze(self) -> None:
        assert self._agent is not None
        self._ports.emit(events.FreezeIssued())
        self._sent_ns = self._ports.clock.now_ns()
        try:
            status = await self._timed(self._unless_silent(self._ask_to_freeze(self._agent)))
        except AgentCommandError as error:
            self._tell_failure(f"unable to freeze guest fs - {error.description}")
        except _GuestSilent as error:
            self._tell_failure(f"unable to freeze guest fs - {error}")
        except GuestError:
            await self._timed(self._await_late_freeze())
        else:
            self._take_status(status)

    async def _ask_to_freeze(self, agent: Agent) -> str:
        """Freeze, and return the status that the guest has then."""
        try:
            await agent.execute("guest-fsfreeze-freeze", timeout_s=FREEZE_ANSWER_S)
            return "frozen"
        except AgentCommandError as error:
            # A command that the agent does not carry out (disabled, or frozen by somebody whose
            # thaw is not ours to send) froze nothing; any other error may come after the hooks.
            self._is_refused = error.error_class == "CommandNotFound"
            raise
        except GuestError:
            rest_s = FREEZE_TIMEOUT_S - FREEZE_ANSWER_S
            return str(await agent.execute("guest-fsfreeze-status", timeout_s=rest_s))

    def _take_status(self, status: str) -> None:
        if status == "frozen":
            self._has_frozen = True
        else:
            self._tell_failure(f"unable to freeze guest fs - unexpected status '{status}'")

    def _tell_failure(self, text: str) -> None:
        self._ports.emit(events.FreezeFailed(text=text))

    async def _await_late_freeze(self) -> None:
        """No answer to the freeze: ask for the status, ten minutes at a time."""
        for asked_count in range(STATUS_AFTER_FREEZE_COUNT):
            minutes_left = 10 * (STATUS_AFTER_FREEZE_COUNT - asked_count)
            self._ports.emit(events.FreezeStillWaiting(minutes_left=minutes_left))
            try:
                status = await self._unless_silent(self._ask_status(STATUS_AFTER_FREEZE_TIMEOUT_S))
            except AgentCommandError as error:
                self._tell_failure(f"unable to freeze guest fs - {error.description}")
                return
            except _GuestSilent as error:
                self._tell_failure(f"unable to freeze guest fs - {error}")
                return
            except GuestError:
                continue
            self._take_status(status)
            return
        self._tell_failure(
            "querying status after freezing guest fs failed - timeout after 60 minutes"
        )

    async def _ask_status(self, timeout_s: float) -> str:
        begun_ns = self._ports.clock.now_ns()
        try:
            agent = await self._connect(timeout_s)
            return str(await agent.execute("guest-fsfreeze-status", timeout_s=timeout_s))
        except AgentCommandError:
            raise
        except GuestError:
            # A channel that fails at once must not turn ten minutes of patience into none.
            spent_s = (self._ports.clock.now_ns() - begun_ns) / NS_PER_S
            await self._ports.clock.sleep(max(0.0, min(THAW_PAUSE_S, timeout_s - spent_s)))
            raise

    async def _thaw(self) -> None:
        """Thaw until the guest is known to be thawed; bounded."""
        self._ports.emit(events.ThawIssued())
        thawed = False
        try:
            for attempt_count in range(1, THAW_ATTEMPT_COUNT_MAX + 1):
                if attempt_count > 1:
                    self._ports.emit(events.ThawRetried(attempt_count=attempt_count))
                thawed = await self._timed(self._try_thaw_unless_silent())
                if thawed:
                    break
                await self._ports.clock.sleep(THAW_PAUSE_S)
            ended_ns = self._ports.clock.now_ns()
        finally:
            await self._connection.aclose()
        if not thawed:
            text = "the guest's file systems may still be frozen: thaw them inside the guest"
            raise GuestError(text)
        window_ns = ended_ns - self._sent_ns
        self.freeze_window_s = window_ns / NS_PER_S
        self._ports.emit(
            events.FreezeWindowClosed(
                freeze_window_s=self.freeze_window_s,
                own_s=max(0, window_ns - self._waited_ns) / NS_PER_S,
            )
        )

    async def _try_thaw_unless_silent(self) -> bool:
        """One attempt; a guest that powered off is not frozen, and never answers."""
        try:
            if await self._unless_silent(self._try_thaw()):
                return True
            await self._refuse_mute_guest()
        except _GuestSilent as error:
            if error.is_off:
                return True
            raise
        return False

    async def _unless_silent(self, answer: Coroutine[Any, Any, _T]) -> _T:
        """Wait for the guest's answer; raise _GuestSilent if it cannot come."""
        waiting = asyncio.ensure_future(answer)
        watched: set[asyncio.Future[Any]] = {waiting}
        if self._silence is not None:
            watched.add(self._silence)
        pause_s = OFF_PAUSE_S
        try:
            while not waiting.done():
                await asyncio.wait(watched, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
                if waiting.done():
                    break
                await self._refuse_mute_guest()
                pause_s = min(2 * pause_s, OFF_PAUSE_S_MAX)
            return waiting.result()
        finally:
            waiting.cancel()

    async def _refuse_mute_guest(self) -> None:
        """Raise if the guest cannot answer, as far as that can be told."""
        if self._silence is not None:
            # Inside the window the monitor is not free to be asked, but tells by itself.
            look = self._silence.result() if self._silence.done() else GuestLook.CANNOT_TELL
            if not await self._machine.is_running():
                look = GuestLook.OFF
        else:
            look = await look_at_guest(self._machine, timeout_s=LOOK_TIMEOUT_S)
        if look is GuestLook.OFF:
            raise _GuestSilent("the guest has powered off", is_off=True)
        if look is GuestLook.HALTED:
            raise _GuestSilent("the guest stands still and cannot answer", is_off=False)

    async def _try_thaw(self) -> bool:
        try:
            agent = self._agent or await self._connect(THAW_TIMEOUT_S)
            thawed_count = await agent.execute("guest-fsfreeze-thaw", timeout_s=THAW_TIMEOUT_S)
            if thawed_count and self._has_frozen:
                self.consistency = Consistency.FROZEN
            elif self._has_frozen:
                # The guest was reset, or thawed by itself, before we said so.
                text = "the guest was not frozen any more when the backup started"
                self._ports.emit(events.Warned(text=text))
            return True
        except GuestError as error:
            self._ports.emit(events.ThawFailed(text=str(error)))
        # A guest that thawed by itself (its own time limit) answers thaw with an error: the
        # data stands for a point in time after that, so it is worth no more than a crash.
        self._agent = None
        try:
            agent = await self._connect(STATUS_TIMEOUT_S)
            status = await agent.execute("guest-fsfreeze-status", timeout_s=STATUS_TIMEOUT_S)
        except GuestError:
            return False
        return bool(status == "thawed")
