"""The `Power` port of a VM known by its sockets: what a monitor alone can do.

Its process belongs to whoever started it: it is never started or ended here. Source: host
behaviour, section 7.4 (`resume`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NoReturn

from vzdump_qemu.errors import PowerError, QmpError
from vzdump_qemu.node.resuming import resume_from
from vzdump_qemu.ports import Qmp
from vzdump_qemu.qemu.timeouts import command_timeout_s

CONNECT_TIMEOUT_S = 10.0
_STATUS_TIMEOUT_S = 60.0


class SocketPower:
    """`ports.Power` by QMP alone.

    Args:
        connect: takes a limit in seconds.
    """

    def __init__(self, connect: Callable[[float], AbstractAsyncContextManager[Qmp]]) -> None:
        self._connect = connect

    async def start_paused(self) -> Sequence[str]:
        """Not possible."""
        self._refuse("started")

    async def start(self) -> Sequence[str]:
        """Not possible."""
        self._refuse("started")

    async def shut_down(self, *, timeout_s: float) -> Sequence[str]:
        """Not possible: nobody here could start it again."""
        self._refuse("stopped")

    async def stop(self) -> Sequence[str]:
        """Not possible."""
        self._refuse("stopped")

    async def suspend(self) -> Sequence[str]:
        """See `ports.Power.suspend`."""
        await self._execute("stop")
        return ()

    async def resume(self) -> Sequence[str]:
        """See `ports.Power.resume`."""
        status = await self._execute("query-status", timeout_s=_STATUS_TIMEOUT_S)
        run_state = status.get("status") if isinstance(status, dict) else None
        await resume_from(run_state, self._execute)
        return ()

    def _refuse(self, what: str) -> NoReturn:
        raise PowerError(
            f"a VM known only by its sockets cannot be {what}",
            hint="use --mode snapshot or suspend while the VM runs",
        )

    async def _execute(self, command: str, *, timeout_s: float | None = None) -> object:
        try:
            async with self._connect(CONNECT_TIMEOUT_S) as qmp:
                reply: object = await qmp.execute(
                    command, timeout_s=timeout_s or command_timeout_s(command)
                )
                return reply
        except QmpError as error:
            raise PowerError(str(error), hint=error.hint) from error
