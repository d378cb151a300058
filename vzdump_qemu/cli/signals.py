"""Signals that ask a job to stop: the first cancels it in order, later ones hurry that.

Owns the handlers while a job runs. SIGPIPE stays ignored, or a QEMU that dies while we write to
its socket would end the whole job; a reader of our own output that goes away reaches
`Interruption.request` by `Console` instead. Source: host behaviour, section 1.13.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)


class Interruption:
    """Cancels one task.

    What the task did is undone to its end however often it is cancelled; but what cannot be undone
    at once is then no longer tried again and again: it stays in the journal, for the guardian.
    """

    def __init__(self, task: asyncio.Task[object]) -> None:
        self._task = task
        self._is_closed = False

    def request(self) -> None:
        """Cancel the task, or hurry it if it was cancelled before."""
        if not self._is_closed:
            self._task.cancel()

    def close(self) -> None:
        """The task has ended what could be cancelled: later requests change nothing."""
        self._is_closed = True


@contextmanager
def cancelled_by_signals() -> Iterator[Interruption]:
    """Let the stop signals cancel the current task, until the block ends."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    interruption = Interruption(task)
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, interruption.request)
    try:
        yield interruption
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Let the stop signals raise KeyboardInterrupt in a verb without an event loop.

    The first one; later ones are ignored, so that they do not disturb the undo.
    """

    def interrupt(_number: int, _frame: object) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = [(number, signal.getsignal(number)) for number in STOP_SIGNALS]
    for number in STOP_SIGNALS:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
