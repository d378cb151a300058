"""An asyncio event loop in virtual time.

Owns the clock of a simulation: when every task waits, time jumps to the next timer. There are no
threads, sockets or wall clock in it; a program that would wait for ever is found at once, and the
order in which ready callbacks run is shuffled by a seed, within what asyncio lets programs rely
on: the callbacks of one task or future keep their order.
"""

from __future__ import annotations

import asyncio
import random
from asyncio import base_events
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from vzdump_qemu.units import NS_PER_S

_T = TypeVar("_T")
# One iteration runs a few callbacks; a run of an hour of simulated backup takes about 100,000.
ITERATION_COUNT_MAX = 5_000_000


class Deadlock(AssertionError):
    """Every task waits and no timer is set: the program would hang for ever."""


class _JumpingSelector:
    """Stands where a loop waits for files: instead of waiting, time jumps."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop

    def select(self, timeout_s: float | None) -> list[Any]:
        self._loop.jump(timeout_s)
        return []

    def close(self) -> None:
        """Nothing is held."""


class SimulatedLoop(base_events.BaseEventLoop):
    """Virtual time that starts at 0; `shuffle` orders what is ready at the same instant.

    Args:
        shuffle: source of scheduling order; None keeps first come, first served.
    """

    def __init__(self, shuffle: random.Random | None = None) -> None:
        super().__init__()
        self._now_ns = 0
        self._shuffle = shuffle
        self._selector = _JumpingSelector(self)
        self._iteration_count = 0
        self._observers: list[Callable[[], None]] = []
        # Timers closer together than this are due together; virtual time is exact.
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Virtual seconds since the start of the simulation."""
        return self._now_ns / NS_PER_S

    def time_ns(self) -> int:
        """Virtual nanoseconds since the start of the simulation."""
        return self._now_ns

    def observe(self, look: Callable[[], None]) -> None:
        """Have `look` called whenever nothing more happens at this instant, before time moves."""
        self._observers.append(look)

    def jump(self, timeout_s: float | None) -> None:
        """Called by the loop when it would wait: move time on, or tell that nothing moves."""
        self._iteration_count += 1
        if self._iteration_count > ITERATION_COUNT_MAX:
            raise Deadlock(f"no end after {ITERATION_COUNT_MAX} steps: tasks run in circles")
        if timeout_s is None:
            waiting = sorted(task.get_name() for task in asyncio.all_tasks(self))
            raise Deadlock(f"nothing can happen any more; waiting: {', '.join(waiting)}")
        if timeout_s > 0:
            for look in self._observers:
                look()
            self._now_ns += max(1, round(timeout_s * NS_PER_S))

    def _run_once(self) -> None:
        ready = self._ready  # type: ignore[attr-defined]
        if self._shuffle is not None and len(ready) > 1:
            self._shuffle_ready(ready)
        super()._run_once()  # type: ignore[misc]

    def _shuffle_ready(self, ready: Any) -> None:
        """Interleave the callbacks of different owners at random, each owner's in order."""
        assert self._shuffle is not None
        handles = list(ready)
        owners: dict[int, list[Any]] = {}
        order = []
        for handle in handles:
            owner = getattr(handle._callback, "__self__", None)
            key = id(owner) if isinstance(owner, asyncio.Task) else 0
            owners.setdefault(key, []).append(handle)
            order.append(key)
        self._shuffle.shuffle(order)
        taken = {key: iter(queue) for key, queue in owners.items()}
        ready.clear()
        ready.extend(next(taken[key]) for key in order)

    def _process_events(self, event_list: list[Any]) -> None:
        """No files, no file events."""

    def _write_to_self(self) -> None:
        """No other thread can wake this loop."""

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        """Refused: threads would bring back real time and chance."""
        raise AssertionError("a simulation has no threads")

    def close(self) -> None:
        """Close without touching executors or sockets, which do not exist here."""
        if not self.is_closed():
            self._closed = True
            self._ready.clear()  # type: ignore[attr-defined]
            self._scheduled.clear()  # type: ignore[attr-defined]


def run_simulated(main: Coroutine[Any, Any, _T], *, shuffle: random.Random | None = None) -> _T:
    """Run a coroutine to its end in virtual time; tasks it left are cancelled and awaited."""
    loop = SimulatedLoop(shuffle)
    try:
        asyncio.set_event_loop(loop)
        result = loop.run_until_complete(main)
        left = [task for task in asyncio.all_tasks(loop) if not task.done()]
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        return result
    finally:
        asyncio.set_event_loop(None)
        loop.close()
