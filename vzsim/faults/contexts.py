"""What a tool holds while it is in a context at a site; the kernel leaves it for one that is dead.

Classes and no generators, nor a stack for one thing: a run makes dozens.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

from vzsim.faults.plane import Plane

_T = TypeVar("_T")
_R = TypeVar("_R")


class Way(Generic[_T]):
    """The way into a context: what the kernel leaves if the tool is killed."""

    def __init__(self) -> None:
        self._context: AbstractAsyncContextManager[_T] | None = None

    async def enter(self, context: AbstractAsyncContextManager[_T]) -> _T:
        """Enter the context, to be left by `aclose`."""
        entered = await context.__aenter__()
        self._context = context
        return entered

    async def aclose(self) -> None:
        """Leave it. Idempotent."""
        context, self._context = self._context, None
        if context is not None:
            await context.__aexit__(None, None, None)

    def pop_all(self) -> Way[_T]:
        """Another way that has what this one had."""
        other = Way[_T]()
        other._context, self._context = self._context, None
        return other


class Held(Generic[_T, _R]):
    """A context of the world's that the tool enters through a site.

    Args:
        make: the context; it is made when the call has passed.
        call: has the given act pass the site, and says what the tool gets.
    """

    def __init__(
        self,
        plane: Plane,
        make: Callable[[], AbstractAsyncContextManager[_T]],
        call: Callable[[Callable[[], Awaitable[_T]]], Awaitable[_R]],
    ) -> None:
        self._plane = plane
        self._make = make
        self._call = call
        self._way = Way[_T]()

    async def __aenter__(self) -> _R:
        self._plane.hold(self._way)
        try:
            return await self._call(self._enter)
        except BaseException:
            await self.__aexit__()
            raise

    async def __aexit__(self, *raised: Any) -> None:
        self._plane.release(self._way)
        await self._way.aclose()

    async def _enter(self) -> _T:
        return await self._way.enter(self._make())
