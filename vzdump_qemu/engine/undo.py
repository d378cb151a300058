"""Reversals of a run: noted before the act, run last first, whatever happened.

Owns the order and the protection of undos: each is in the run's journal before the act it
reverses, succeeds once, under its own deadline, is tried again when it failed, and is not
disturbed by a cancelled caller. What an undo does is left to whoever registers it; what a process
left open at its end or death is put back by `recovery`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from vzdump_qemu.errors import BackupError
from vzdump_qemu.events import Emit, UndoFailed, UndoSucceeded
from vzdump_qemu.journal_ports import Journal, Reversal, ReversalKind
from vzdump_qemu.ports import Clock

UNDO_TIMEOUT_S = 120.0
"""Default limit of one undo; longer than any single command it sends, short for an operator."""
# A monitor held by another client, a storage that hiccups: most of what fails once succeeds soon.
# What does not is left to the guardian, which has the time.
RETRY_PAUSES_S = (1.0, 5.0, 20.0)
# While the run goes on for hours: how often something that hurts the guest is tried again.
PERSISTENT_PAUSE_S = 10.0


async def run_shielded(act: Callable[[], Awaitable[None]]) -> None:
    """Run an act to its end even if the caller is cancelled meanwhile.

    The act's own error wins; without one a cancellation that came in between is raised at the
    end, once.
    """
    inner = asyncio.ensure_future(act())
    was_cancelled = False
    while not inner.done():
        try:
            await asyncio.shield(inner)
        except asyncio.CancelledError:
            if inner.cancelled():
                raise
            was_cancelled = True
        except BaseException:
            break
    inner.result()
    if was_cancelled:
        raise asyncio.CancelledError


@dataclass(slots=True, kw_only=True)
class UndoHandle:
    """One registered reversal.

    Attributes:
        kind: None for what ends with this process anyway.
    """

    what: str
    kind: ReversalKind | None
    _act: Callable[[], Awaitable[None]]
    _timeout_s: float
    _emit: Emit
    _strike: Callable[[], None]
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _told_text: str = ""
    is_open: bool = True

    def dismiss(self) -> None:
        """The act it would reverse has ended by itself: nothing is left to undo."""
        if self.is_open:
            self.is_open = False
            self._strike()

    async def run(self) -> None:
        """Reverse now, unless that is done; a failure is told, not raised, and leaves it open.

        Survives cancellation.
        """
        if self.is_open:
            await run_shielded(self._run_bounded)

    async def _run_bounded(self) -> None:
        async with self._turn:
            if not self.is_open:
                return
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._act()
            except TimeoutError:
                self._tell(f"no end within {self._timeout_s:g} seconds")
                return
            except (BackupError, OSError) as error:
                self._tell(str(error))
                return
            except Exception as error:
                # The remaining undos matter more than this one's bug; it is told with its kind.
                self._tell(f"{type(error).__name__}: {error}")
                return
            self.dismiss()
            if self._told_text:
                self._emit(UndoSucceeded(what=self.what))

    def _tell(self, text: str) -> None:
        if text != self._told_text:
            self._told_text = text
            self._emit(UndoFailed(what=self.what, text=text))


class UndoStack:
    """The open reversals of one run, or of a part of it."""

    __slots__ = ("_clock", "_emit", "_handles", "_journal", "_persisting")

    def __init__(self, emit: Emit, journal: Journal, clock: Clock) -> None:
        self._emit = emit
        self._journal = journal
        self._clock = clock
        self._handles: list[UndoHandle] = []
        self._persisting: list[asyncio.Task[None]] = []

    async def push(
        self,
        what: str,
        act: Callable[[], Awaitable[None]],
        reversal: Reversal,
        *,
        timeout_s: float = UNDO_TIMEOUT_S,
    ) -> UndoHandle:
        """Register a reversal, durably; do so before an act that can half succeed.

        Args:
            what: the thing reversed, in the operator's words (``thaw the guest``).
            act: idempotent; gets at most `timeout_s`.
            reversal: the same for whoever finds the journal after our death.
        """
        noted: list[UndoHandle] = []

        async def note() -> None:
            index = await self._journal.note(reversal)
            handle = UndoHandle(
                what=what,
                kind=reversal.kind,
                _act=act,
                _timeout_s=timeout_s,
                _emit=self._emit,
                _strike=lambda: self._journal.strike(index),
            )
            self._handles.append(handle)
            noted.append(handle)

        try:
            # Given up half way, the line would be on disk and nobody would strike it.
            await run_shielded(note)
        except asyncio.CancelledError:
            # The act itself will not be begun.
            for handle in noted:
                handle.dismiss()
            raise
        return noted[0]

    def push_own(
        self, what: str, act: Callable[[], Awaitable[None]], *, timeout_s: float = UNDO_TIMEOUT_S
    ) -> UndoHandle:
        """Register the reversal of something that ends with this process anyway."""
        handle = UndoHandle(
            what=what,
            kind=None,
            _act=act,
            _timeout_s=timeout_s,
            _emit=self._emit,
            _strike=_nothing,
        )
        self._handles.append(handle)
        return handle

    def persist(self, handle: UndoHandle) -> None:
        """Go on trying a failed reversal that hurts the guest, while the run does its work."""

        async def keep_trying() -> None:
            while handle.is_open:
                await self._clock.sleep(PERSISTENT_PAUSE_S)
                await handle.run()

        if handle.is_open:
            self._persisting.append(asyncio.ensure_future(keep_trying()))

    async def unwind(self) -> None:
        """Run what is still open, last registered first; what fails is tried again, bounded.

        Cancellation is raised at the end; it also ends the trying again. What stays open then is
        in the journal.
        """
        was_cancelled = False
        for task in self._persisting:
            task.cancel()
        rounds: list[float] = [0.0, *RETRY_PAUSES_S]
        while rounds:
            pause_s = rounds.pop(0)
            try:
                if pause_s:
                    await self._clock.sleep(pause_s)
            except asyncio.CancelledError:
                was_cancelled = True
                rounds.clear()
            was_cancelled |= await self._run_round()
            if not any(handle.is_open for handle in self._handles):
                break
        self._handles.clear()
        if was_cancelled:
            raise asyncio.CancelledError

    async def _run_round(self) -> bool:
        """One attempt at everything that is open; return whether the caller was cancelled."""
        was_cancelled = False
        for handle in reversed([handle for handle in self._handles if handle.is_open]):
            if handle.kind is not None and self._is_open_any(handle.kind.waits_for):
                continue  # whoever puts those back does this as well
            try:
                await handle.run()
            except asyncio.CancelledError:
                was_cancelled = True
        return was_cancelled

    def _is_open_any(self, kinds: frozenset[ReversalKind]) -> bool:
        return any(handle.is_open and handle.kind in kinds for handle in self._handles)


def _nothing() -> None:
    return
