"""Undos: noted before the act, struck after their success, run last first and undisturbed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from vzdump_qemu import events
from vzdump_qemu.engine.undo import RETRY_PAUSES_S, UndoStack, run_shielded
from vzdump_qemu.errors import ConfigError, GuestError
from vzdump_qemu.journal_ports import Reversal, ReversalKind
from vzdump_qemu.units import NS_PER_S
from vzsim.kernel import run_simulated
from vzsim.world.clock import SimulatedClock
from vzsim.world.journal import SimulatedJournal

THAW = Reversal(kind=ReversalKind.THAW)
UNLOCK = Reversal(kind=ReversalKind.UNLOCK)
DETACH = Reversal(kind=ReversalKind.DETACH, names=("tpm",))


class FullJournal(SimulatedJournal):
    """A journal whose disk is full."""

    async def note(self, reversal: Reversal) -> int:
        raise ConfigError("unable to write the run's journal - No space left on device")


@dataclass
class Undoing:
    """A stack, its journal, and what the undos did."""

    journal: SimulatedJournal = field(default_factory=SimulatedJournal)
    done: list[str] = field(default_factory=list)
    told: list[events.Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stack = UndoStack(self.told.append, self.journal, SimulatedClock())

    def act(
        self, name: str, *, lasts_s: float = 0.0, error: Exception | None = None
    ) -> Callable[[], Awaitable[None]]:
        """An undo that takes its time, then succeeds or fails."""

        async def undo() -> None:
            await asyncio.sleep(lasts_s)
            if error is not None:
                raise error
            self.done.append(name)

        return undo

    def noted(self) -> list[Reversal]:
        return [reversal for _, reversal in self.journal.open_entries]

    def failures(self) -> list[tuple[str, str]]:
        return [(e.what, e.text) for e in self.told if isinstance(e, events.UndoFailed)]


@pytest.fixture
def undoing() -> Undoing:
    return Undoing()


def play(scene: Coroutine[Any, Any, None]) -> None:
    run_simulated(scene)


def test_reversal_is_noted_when_it_is_registered(undoing: Undoing) -> None:
    async def scene() -> None:
        await undoing.stack.push("thaw", undoing.act("thaw"), THAW)
        assert undoing.noted() == [THAW]
        assert undoing.done == []

    play(scene())


def test_reversal_that_cannot_be_noted_is_not_registered() -> None:
    undoing = Undoing(journal=FullJournal())

    async def scene() -> None:
        with pytest.raises(ConfigError, match="No space left"):
            await undoing.stack.push("thaw", undoing.act("thaw"), THAW)
        await undoing.stack.unwind()
        assert undoing.done == []

    play(scene())


def test_own_reversal_is_not_noted_and_runs(undoing: Undoing) -> None:
    async def scene() -> None:
        undoing.stack.push_own("close", undoing.act("close"))
        assert undoing.noted() == []
        await undoing.stack.unwind()
        assert undoing.done == ["close"]

    play(scene())


def test_undo_that_succeeded_is_struck_after_its_act_and_not_before(undoing: Undoing) -> None:
    seen: list[list[Reversal]] = []

    async def act() -> None:
        seen.append(undoing.noted())

    async def scene() -> None:
        handle = await undoing.stack.push("thaw", act, THAW)
        await handle.run()
        assert seen == [[THAW]]
        assert undoing.noted() == []

    play(scene())


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (GuestError("no answer"), "no answer"),
        (OSError(5, "Input/output error"), "[Errno 5] Input/output error"),
        (KeyError("UUID"), "KeyError: 'UUID'"),
    ],
    ids=["product", "system", "bug"],
)
def test_undo_that_failed_is_told_and_stays_noted(
    undoing: Undoing, error: Exception, text: str
) -> None:
    async def scene() -> None:
        handle = await undoing.stack.push("thaw the guest", undoing.act("", error=error), THAW)
        await handle.run()
        assert undoing.failures() == [("thaw the guest", text)]
        assert undoing.noted() == [THAW]

    play(scene())


def test_dismissed_undo_is_struck_and_never_runs(undoing: Undoing) -> None:
    async def scene() -> None:
        handle = await undoing.stack.push("thaw", undoing.act("thaw"), THAW)
        handle.dismiss()
        handle.dismiss()
        assert undoing.noted() == []
        await undoing.stack.unwind()
        assert undoing.done == []

    play(scene())


def test_failed_undo_of_something_that_ended_by_itself_is_struck(undoing: Undoing) -> None:
    async def scene() -> None:
        handle = await undoing.stack.push("t", undoing.act("", error=GuestError("no")), THAW)
        await handle.run()
        assert undoing.noted() == [THAW]
        handle.dismiss()
        assert undoing.noted() == []

    play(scene())


def test_undo_runs_once(undoing: Undoing) -> None:
    async def scene() -> None:
        handle = await undoing.stack.push("thaw", undoing.act("thaw"), THAW)
        await handle.run()
        await handle.run()
        await undoing.stack.unwind()
        assert undoing.done == ["thaw"]

    play(scene())


def test_unwinding_runs_last_first_and_goes_on_after_a_failure(undoing: Undoing) -> None:
    async def scene() -> None:
        push = undoing.stack.push
        await push("a", undoing.act("a"), UNLOCK)
        await push("b", undoing.act("b", error=GuestError("no")), THAW)
        undoing.stack.push_own("c", undoing.act("c"))
        await push("d", undoing.act("d"), UNLOCK)
        await undoing.stack.unwind()
        assert undoing.done == ["d", "c", "a"]
        assert undoing.noted() == [THAW]

    play(scene())


def test_undo_without_an_end_is_cut_off_at_its_deadline(undoing: Undoing) -> None:
    async def scene() -> None:
        clock = SimulatedClock()
        await undoing.stack.push("a", undoing.act("a"), UNLOCK)
        await undoing.stack.push("b", undoing.act("b", lasts_s=1e6), THAW, timeout_s=30.0)
        await undoing.stack.unwind()
        attempt_count = 1 + len(RETRY_PAUSES_S)
        assert clock.now_ns() == (30 * attempt_count + sum(RETRY_PAUSES_S)) * NS_PER_S
        assert undoing.failures() == [("b", "no end within 30 seconds")]
        assert undoing.done == ["a"]
        assert undoing.noted() == [THAW]

    play(scene())


@pytest.mark.parametrize("cancel_count", [1, 3])
def test_cancelling_during_an_undo_does_not_disturb_it_nor_the_next(
    undoing: Undoing, cancel_count: int
) -> None:
    async def scene() -> None:
        await undoing.stack.push("a", undoing.act("a", lasts_s=10), UNLOCK)
        await undoing.stack.push("b", undoing.act("b", lasts_s=10), THAW)
        task = asyncio.ensure_future(undoing.stack.unwind())
        for _ in range(cancel_count):
            await asyncio.sleep(1)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert undoing.done == ["b", "a"]
        assert undoing.noted() == []
        assert undoing.failures() == []

    play(scene())


def test_caller_that_was_cancelled_before_still_unwinds(undoing: Undoing) -> None:
    async def run() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await undoing.stack.unwind()

    async def scene() -> None:
        await undoing.stack.push("a", undoing.act("a", lasts_s=5), UNLOCK)
        task = asyncio.ensure_future(run())
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert undoing.done == ["a"]

    play(scene())


def test_shielded_act_that_fails_wins_over_the_cancellation() -> None:
    async def fail() -> None:
        await asyncio.sleep(5)
        raise GuestError("no answer")

    async def scene() -> None:
        task = asyncio.ensure_future(run_shielded(fail))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(GuestError, match="no answer"):
            await task

    play(scene())


class FailsTwice:
    """An undo that succeeds the third time."""

    def __init__(self, undoing: Undoing) -> None:
        self._undoing = undoing
        self.attempt_count = 0

    async def __call__(self) -> None:
        self.attempt_count += 1
        if self.attempt_count <= 2:
            raise GuestError("no answer")
        self._undoing.done.append("thaw")


def test_undo_that_failed_is_tried_again_and_told_once(undoing: Undoing) -> None:
    async def scene() -> None:
        await undoing.stack.push("thaw the guest", FailsTwice(undoing), THAW)
        await undoing.stack.unwind()
        assert undoing.done == ["thaw"]
        assert undoing.noted() == []
        assert undoing.failures() == [("thaw the guest", "no answer")]
        assert undoing.told[-1] == events.UndoSucceeded(what="thaw the guest")

    play(scene())


def test_lock_goes_after_what_succeeds_only_when_tried_again(undoing: Undoing) -> None:
    async def scene() -> None:
        await undoing.stack.push("unlock", undoing.act("unlock"), UNLOCK)
        await undoing.stack.push("thaw", FailsTwice(undoing), DETACH)
        await undoing.stack.unwind()
        assert undoing.done == ["thaw", "unlock"]

    play(scene())


@pytest.mark.parametrize(("kind", "done"), [(DETACH, []), (THAW, ["unlock"])])
def test_lock_stays_while_what_needs_it_stays_open(
    undoing: Undoing, kind: Reversal, done: list[str]
) -> None:
    async def scene() -> None:
        await undoing.stack.push("unlock", undoing.act("unlock"), UNLOCK)
        await undoing.stack.push("it", undoing.act("", error=GuestError("no")), kind)
        await undoing.stack.unwind()
        assert undoing.done == done
        assert undoing.noted()[-1] == kind

    play(scene())


def test_cancelling_between_two_attempts_ends_the_trying(undoing: Undoing) -> None:
    async def scene() -> None:
        attempts = FailsTwice(undoing)
        await undoing.stack.push("unlock", undoing.act("unlock"), UNLOCK)
        await undoing.stack.push("thaw", attempts, THAW)
        task = asyncio.ensure_future(undoing.stack.unwind())
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (attempts.attempt_count, undoing.done) == (2, ["unlock"])
        assert undoing.noted() == [THAW]

    play(scene())


def test_undo_that_hurts_the_guest_is_tried_beside_the_run(undoing: Undoing) -> None:
    async def scene() -> None:
        handle = await undoing.stack.push("thaw", FailsTwice(undoing), THAW)
        await handle.run()
        undoing.stack.persist(handle)
        await asyncio.sleep(3600)
        assert undoing.done == ["thaw"]
        assert undoing.noted() == []
        await undoing.stack.unwind()
        assert undoing.done == ["thaw"]

    play(scene())


def test_trying_beside_the_run_ends_with_it(undoing: Undoing) -> None:
    async def scene() -> None:
        error = GuestError("no")
        handle = await undoing.stack.push("thaw", undoing.act("", error=error), THAW)
        undoing.stack.persist(handle)
        await asyncio.sleep(100)
        await undoing.stack.unwind()
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1
        assert undoing.noted() == [THAW]

    play(scene())
