"""What makes a guest run again, by the state its QEMU says it is in.

Owns the choice of QMP commands; who asks for the state and who sends them is the caller's. Source:
host behaviour, section 7.4 (`resume`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable


async def resume_from(run_state: object, execute: Callable[[str], Awaitable[object]]) -> None:
    """Send what a guest in that run state needs; nothing to one that runs."""
    match run_state:
        case "running":
            return
        case "suspended":
            await execute("system_wakeup")
        case "shutdown":
            await execute("system_reset")
            await execute("cont")
        case _:
            await execute("cont")
