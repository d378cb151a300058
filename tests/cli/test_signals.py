"""Signals cancel a job, and hurry it."""

import asyncio
import os
import signal

import pytest

from vzdump_qemu.cli.signals import STOP_SIGNALS, cancelled_by_signals, interrupted_by_signals
from vzdump_qemu.engine.undo import run_shielded


class Job:
    """Works until cancelled, then undoes for three rounds of the event loop, as runs do."""

    def __init__(self) -> None:
        self.undone_count = 0

    async def run(self, number: signal.Signals) -> None:
        with cancelled_by_signals():
            try:
                os.kill(os.getpid(), number)
                await asyncio.Event().wait()
            finally:
                await run_shielded(lambda: self._undo(number))

    async def _undo(self, number: signal.Signals) -> None:
        for _ in range(3):
            os.kill(os.getpid(), number)
            await asyncio.sleep(0)
            self.undone_count += 1


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
async def test_signal_cancels_and_later_ones_leave_the_undo_alone(number: signal.Signals) -> None:
    job = Job()
    task = asyncio.create_task(job.run(number))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert job.undone_count == 3


async def test_request_cancels_like_a_signal() -> None:
    async def run() -> None:
        with cancelled_by_signals() as interruption:
            interruption.request()
            interruption.request()
            await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(run())


async def test_request_after_the_end_changes_nothing() -> None:
    with cancelled_by_signals() as interruption:
        interruption.close()
        interruption.request()
        await asyncio.sleep(0)


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_signal_interrupts_a_plain_verb_once(number: signal.Signals) -> None:
    before = [signal.getsignal(other) for other in STOP_SIGNALS]
    undone = False
    with pytest.raises(KeyboardInterrupt), interrupted_by_signals():
        try:
            os.kill(os.getpid(), number)
        finally:
            for other in STOP_SIGNALS:
                os.kill(os.getpid(), other)
            undone = True
    assert undone
    assert [signal.getsignal(other) for other in STOP_SIGNALS] == before
