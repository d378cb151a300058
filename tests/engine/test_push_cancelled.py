"""A run that is cancelled while a reversal is being noted: the act was never begun."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from vzdump_qemu.engine.undo import UndoStack
from vzdump_qemu.events import Event
from vzdump_qemu.journal_ports import Reversal, ReversalKind
from vzsim.world.clock import SimulatedClock


class SlowJournal:
    """`ports.Journal` whose lines take until `written` is set."""

    def __init__(self) -> None:
        self.written = asyncio.Event()
        self.entries: list[int] = []

    def open_entries(self) -> Sequence[tuple[int, Reversal]]:
        return []

    async def note(self, reversal: Reversal) -> int:
        self.entries.append(7)
        await self.written.wait()
        return 7

    def strike(self, index: int) -> None:
        self.entries.remove(index)


async def test_note_of_a_cancelled_push_is_struck_and_its_act_not_undone() -> None:
    journal, told, acts = SlowJournal(), list[Event](), list[str]()
    undo = UndoStack(told.append, journal, SimulatedClock())

    async def act() -> None:
        acts.append("undone")

    push = asyncio.create_task(undo.push("x", act, Reversal(kind=ReversalKind.UNLOCK)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    push.cancel()
    await asyncio.sleep(0)
    journal.written.set()
    with pytest.raises(asyncio.CancelledError):
        await push
    await undo.unwind()
    assert (journal.entries, acts, told) == ([], [], [])
