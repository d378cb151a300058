"""Reversals of a run: noted before the act, run last first, whatever happened.

Owns the order and the protection of undos: each is in the run's journal before the act it
reverses, runs once, under its own deadline, and is not disturbed by a cancelled caller. What an
undo does is left to whoever registers it; what a dead process left is put back by `recovery`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from vzdump_qemu.errors import BackupError
from vzdump_qemu.events import Emit, UndoFailed
from vzdump_qemu.ports import Journal, Reversal

UNDO_TIMEOUT_S = 120.0
"""Default limit of one undo; longer than any single command it sends, short for an operator."""


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


@dataclass(slots=True)
class UndoHandle:
    """One registered reversal."""

    what: str
    _act: Callable[[], Awaitable[None]]
    _timeout_s: float
    _emit: Emit
    _strike: Callable[[], None]
    _open: bool = field(default=True)

    def dismiss(self) -> None:
        """The act it would reverse has ended by itself: nothing is left to undo."""
        if self._open:
            self._open = False
            self._strike()

    async def run(self) -> None:
        """Reverse now, once; a failure is told, not raised. Survives cancellation."""
        if not self._open:
            return
        self._open = False
        await run_shielded(self._run_bounded)

    async def _run_bounded(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._act()
            # A failed one stays in the journal: the next run tries it again.
            self._strike()
        except TimeoutError:
            text = f"no end within {self._timeout_s:g} seconds"
            self._emit(UndoFailed(what=self.what, text=text))
        except (BackupError, OSError) as error:
            self._emit(UndoFailed(what=self.what, text=str(error)))
        except Exception as error:
            # The remaining undos matter more than this one's bug; it is told with its kind.
            self._emit(UndoFailed(what=self.what, text=f"{type(error).__name__}: {error}"))


class UndoStack:
    """The open reversals of one run, or of a part of it."""

    __slots__ = ("_emit", "_handles", "_journal")

    def __init__(self, emit: Emit, journal: Journal) -> None:
        self._emit = emit
        self._journal = journal
        self._handles: list[UndoHandle] = []

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
            noted.append(self._add(what, act, timeout_s, lambda: self._journal.strike(index)))

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
        return self._add(what, act, timeout_s, _nothing)

    def _add(
        self,
        what: str,
        act: Callable[[], Awaitable[None]],
        timeout_s: float,
        strike: Callable[[], None],
    ) -> UndoHandle:
        handle = UndoHandle(what, act, timeout_s, self._emit, strike)
        self._handles.append(handle)
        return handle

    async def unwind(self) -> None:
        """Run what is still open, last registered first. Cancellation is raised at the end."""
        was_cancelled = False
        while self._handles:
            try:
                await self._handles.pop().run()
            except asyncio.CancelledError:
                was_cancelled = True
        if was_cancelled:
            raise asyncio.CancelledError


def _nothing() -> None:
    return
