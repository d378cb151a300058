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
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from heapq import heapify, heappop, heappush
from typing import Any, TypeVar

from vzdump_qemu.units import NS_PER_S

_T = TypeVar("_T")
# One iteration runs a few callbacks; a run of an hour of simulated backup takes about 100,000.
ITERATION_COUNT_MAX = 5_000_000
# Cancelled timers are left where they are until there are this many, and most are cancelled.
_TIMER_COUNT_UNTIDY = 100


class Deadlock(AssertionError):
    """Every task waits and no timer is set: the program would hang for ever."""


class _NoSelector:
    """Stands where a loop keeps what waits for files."""

    def close(self) -> None:
        """Nothing is held."""


class _Handle(asyncio.Handle):
    """As asyncio's, made in one step: a simulation makes millions of them."""

    __slots__ = ()

    # Only a loop in debug mode sets them.
    _repr = None
    _source_traceback = None

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: Context | None,
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False


class _TimerHandle(asyncio.TimerHandle):
    """As `_Handle`, for a moment to come."""

    __slots__ = ()

    _loop: SimulatedLoop
    _repr = None
    _source_traceback = None

    def __init__(
        self,
        when_s: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: SimulatedLoop,
        context: Context | None,
    ) -> None:
        self._when = when_s
        self._scheduled = True
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False

    def cancel(self) -> None:
        """As asyncio says, in one step."""
        if not self._cancelled:
            self._cancelled = True
            # Lets go of what they hold, as asyncio does.
            self._callback = self._args = None  # type: ignore[assignment]
            if self._scheduled:
                self._loop._timer_cancelled_count += 1


class SimulatedLoop(base_events.BaseEventLoop):
    """Virtual time that starts at 0; `shuffle` orders what is ready at the same instant.

    Args:
        shuffle: source of scheduling order; None keeps first come, first served.
    """

    _ready: deque[asyncio.Handle]
    _stopping: bool
    _closed: bool
    _timer_cancelled_count: int

    def __init__(self, shuffle: random.Random | None = None) -> None:
        super().__init__()
        self._now_ns = 0
        self._now_s = 0.0
        self._shuffle = shuffle
        self._selector = _NoSelector()
        self._iteration_count = 0
        self._observers: list[Callable[[], None]] = []
        # A heap. Numbers first: they are compared without a call into Python. Of the same instant
        # the one that was asked for first comes first.
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timer_count = 0
        # Timers closer together than this are due together; virtual time is exact.
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Virtual seconds since the start of the simulation."""
        return self._now_s

    def time_ns(self) -> int:
        """Virtual nanoseconds since the start of the simulation."""
        return self._now_ns

    def observe(self, look: Callable[[], None]) -> None:
        """Have `look` called whenever nothing more happens at this instant, before time moves.

        It may set timers, but no earlier than now.
        """
        self._observers.append(look)

    # Every future and task asks; never, without a call into Python.
    get_debug = staticmethod(bool)
    # Nobody asks which asynchronous generators were begun.
    _asyncgen_firstiter_hook = staticmethod(bool)

    def create_future(self) -> asyncio.Future[Any]:
        """As asyncio says."""
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self,
        coro: Generator[Any, None, _T] | Coroutine[Any, Any, _T],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[_T]:
        """As asyncio says, in one step."""
        if self._closed:
            raise RuntimeError("Event loop is closed")
        return asyncio.Task(coro, loop=self, name=name, context=context)

    # -- what is to be called ------------------------------------------------------------------

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """As asyncio says."""
        if self._closed:
            raise RuntimeError("Event loop is closed")
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """As asyncio says."""
        if self._closed:
            raise RuntimeError("Event loop is closed")
        when_s = self._now_s + delay
        handle = _TimerHandle(when_s, callback, args, self, context)
        self._timer_count += 1
        heappush(self._timers, (when_s, self._timer_count, handle))
        return handle

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """As asyncio says."""
        if self._closed:
            raise RuntimeError("Event loop is closed")
        handle = _TimerHandle(when, callback, args, self, context)
        self._timer_count += 1
        heappush(self._timers, (when, self._timer_count, handle))
        return handle

    # -- one step ------------------------------------------------------------------------------

    def _run_once(self) -> None:
        """Move time on if nothing is ready, then call what is; again and again until it stops."""
        ready, shuffle = self._ready, self._shuffle
        while True:
            self._iteration_count += 1
            if self._iteration_count > ITERATION_COUNT_MAX:
                raise Deadlock(f"no end after {ITERATION_COUNT_MAX} steps: tasks run in circles")
            if ready:
                if shuffle is not None and len(ready) > 1:
                    _mix(ready, shuffle)
            elif not self._stopping:
                self._jump()
            timers, due_s = self._timers, self._now_s + self._clock_resolution
            while timers and timers[0][0] < due_s:
                timer = heappop(timers)[2]
                timer._scheduled = False  # type: ignore[attr-defined]
                if timer._cancelled:
                    self._timer_cancelled_count -= 1
                else:
                    ready.append(timer)
            # What these calls make ready is for the next step.
            for _ in range(len(ready)):
                handle = ready.popleft()
                if not handle._cancelled:
                    try:
                        # As the handle would call it itself, one call less deep.
                        handle._context.run(handle._callback, *handle._args)  # type: ignore[attr-defined]
                    except (SystemExit, KeyboardInterrupt):
                        raise
                    except BaseException as error:
                        self._tell_failure(handle, error)
            if self._stopping:
                return

    def _tell_failure(self, handle: asyncio.Handle, error: BaseException) -> None:
        """A callback failed."""
        text = f"Exception in callback {handle!r}"
        self.call_exception_handler({"message": text, "exception": error, "handle": handle})

    def _jump(self) -> None:
        """Move time on to the next timer, or tell that nothing moves."""
        timers = self._tidy_timers()
        if timers and timers[0][0] > self._now_s:
            for look in self._observers:
                look()
            # They may have asked for an earlier call, or for none at this instant.
            if timers[0][2]._cancelled:
                timers = self._tidy_timers()
        if not timers:
            waiting = sorted(task.get_name() for task in asyncio.all_tasks(self))
            raise Deadlock(f"nothing can happen any more; waiting: {', '.join(waiting)}")
        wait_s = timers[0][0] - self._now_s
        if wait_s > 0:
            self._now_ns += round(wait_s * NS_PER_S) or 1
            self._now_s = self._now_ns / NS_PER_S

    def _tidy_timers(self) -> list[tuple[float, int, asyncio.TimerHandle]]:
        """The timers, with one on top that still holds."""
        timers = self._timers
        if timers and (timers[0][2]._cancelled or len(timers) > _TIMER_COUNT_UNTIDY):
            self._drop_cancelled_timers()
        return self._timers

    def _drop_cancelled_timers(self) -> None:
        timers = self._timers
        count = len(timers)
        if count > _TIMER_COUNT_UNTIDY and self._timer_cancelled_count > count / 2:
            for _, _, handle in timers:
                handle._scheduled = not handle._cancelled  # type: ignore[attr-defined]
            self._timers = [entry for entry in timers if not entry[2]._cancelled]
            heapify(self._timers)
            self._timer_cancelled_count = 0
            return
        while timers and timers[0][2]._cancelled:
            self._timer_cancelled_count -= 1
            heappop(timers)[2]._scheduled = False  # type: ignore[attr-defined]

    # -- what a loop of files and threads has --------------------------------------------------

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
            self._ready.clear()
            self._timers.clear()
            self._observers.clear()


def _owner_of(handle: asyncio.Handle) -> object:
    """The task that a callback belongs to; what belongs to none is one party."""
    owner = getattr(handle._callback, "__self__", None)  # type: ignore[attr-defined]
    return owner if isinstance(owner, asyncio.Task) else None


def _mix(ready: deque[asyncio.Handle], stream: random.Random) -> None:
    """Interleave the callbacks of different owners at random, each owner's in order."""
    if len(ready) == 2:  # most often
        if stream.random() < 0.5 and _owner_of(ready[0]) is not _owner_of(ready[1]):
            ready.rotate()
        return
    owners: dict[object, deque[asyncio.Handle]] = {}
    order = []
    for handle in ready:
        owner = _owner_of(handle)
        queue = owners.get(owner)
        if queue is None:
            owners[owner] = queue = deque()
        queue.append(handle)
        order.append(queue)
    order.sort(key=lambda queue: stream.random())
    ready.clear()
    ready.extend(queue.popleft() for queue in order)


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
