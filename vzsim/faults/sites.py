"""The common shape of plain port calls as fault sites: a name in front, one class of error."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from vzdump_qemu.errors import BackupError
from vzsim.faults.kinds import Family
from vzsim.faults.plane import Plane
from vzsim.faults.script import Fault

_T = TypeVar("_T")


class Sites:
    """Calls of one port.

    Args:
        prefix: stands before the name of each call.
        error: class of what a refused call raises.
    """

    def __init__(self, plane: Plane, prefix: str, family: Family, error: type[BackupError]) -> None:
        self._plane = plane
        self._prefix = prefix
        self._family = family
        self._error = error

    def __call__(
        self,
        name: str,
        act: Callable[[], Awaitable[_T]],
        *,
        error: type[BackupError] | None = None,
        family: Family | None = None,
    ) -> Awaitable[_T]:
        async def bend(fault: Fault, plain: Callable[[], Awaitable[Any]]) -> Any:
            text = f"simulated failure at {fault.site}#{fault.nth}"
            return await self._plane.bend_plainly(fault, plain, (error or self._error)(text))

        site = f"{self._prefix}.{name}"
        return self._plane.call(site, family or self._family, act, bend=bend)
