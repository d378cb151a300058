"""What QEMU says of its guest: running, halted, off; asked for, or told by its events.

Owns the questions; what follows from the answers is left to `power`, `freeze` and `recovery`.
Source: host behaviour, sections 7.3 and 7.4.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType

from vzdump_qemu.errors import QmpError
from vzdump_qemu.ports import Machine, Qmp, QmpEvent

CONNECT_TIMEOUT_S = 60.0
STATUS_TIMEOUT_S = 60.0
PAUSED_STATES = frozenset({"paused", "prelaunch"})
# What sleeps or failed is nobody's pause, but answers as little.
_STILL_STATES = PAUSED_STATES | {
    *("suspended", "guest-panicked", "internal-error", "io-error", "watchdog", "debug"),
    "postmigrate",
}


class GuestLook(enum.Enum):
    """What can be expected of a guest."""

    RUNS = "runs"
    HALTED = "halted"
    OFF = "off"
    CANNOT_TELL = "cannot tell"


HALT_EVENTS: Mapping[str, GuestLook] = MappingProxyType(
    {"SHUTDOWN": GuestLook.OFF, "STOP": GuestLook.HALTED, "SUSPEND": GuestLook.HALTED}
)


async def ask_run_state(qmp: Qmp, timeout_s: float) -> str:
    """QMP run state on a connection that is there. Raises QmpError."""
    reply = await qmp.execute("query-status", timeout_s=timeout_s)
    return str(reply.get("status", "")) if isinstance(reply, Mapping) else ""


async def query_run_state(machine: Machine) -> str:
    """QMP run state, e.g. ``running``. Raises QmpError."""
    async with machine.connect_qmp(timeout_s=CONNECT_TIMEOUT_S) as qmp:
        return await ask_run_state(qmp, STATUS_TIMEOUT_S)


async def look_at_guest(machine: Machine, *, timeout_s: float) -> GuestLook:
    """Whether a guest can answer its agent; CANNOT_TELL if QEMU does not say so in time."""
    if not await machine.is_running():
        return GuestLook.OFF
    try:
        async with machine.connect_qmp(timeout_s=timeout_s) as qmp:
            run_state = await ask_run_state(qmp, timeout_s)
    except QmpError:
        return GuestLook.CANNOT_TELL
    if run_state == "shutdown":
        return GuestLook.OFF
    return GuestLook.HALTED if run_state in _STILL_STATES else GuestLook.RUNS


async def wait_for_silence(halts: AsyncIterator[QmpEvent] | None) -> GuestLook:
    """Return once QEMU tells that its guest cannot answer any more: OFF or HALTED.

    Args:
        halts: its events of `HALT_EVENTS`; None where nobody tells.
    """
    if halts is not None:
        async for event in halts:
            return HALT_EVENTS[event.name]
    await asyncio.Event().wait()
    raise AssertionError("nobody sets that")
