"""Power on a PVE node: the platform's own ``qm``, and its library for what ``qm`` cannot do.

Owns command lines and error texts; how the platform does it is its own business. Source: host
behaviour, section 7.4.
"""

from __future__ import annotations

from collections.abc import Sequence

from vzdump_qemu.errors import PowerError
from vzdump_qemu.node.bridge import PveBridge
from vzdump_qemu.ports import CommandRunner

# The platform waits by memory size, hugepages and passthrough; this only catches a hang.
_START_TIMEOUT_S = 1800.0
# Quit 60 s and its wait, SIGTERM 10 s, SIGKILL, and the lock before it.
_STOP_TIMEOUT_S = 200.0


class QmPower:
    """`ports.Power` for one VM of a PVE node."""

    def __init__(self, vmid: int, *, commands: CommandRunner, bridge: PveBridge) -> None:
        self._vmid = vmid
        self._commands = commands
        self._bridge = bridge

    async def start_paused(self) -> Sequence[str]:
        """See `ports.Power.start_paused`."""
        return await self._call("vm_start_paused", _START_TIMEOUT_S)

    async def stop(self) -> Sequence[str]:
        """See `ports.Power.stop`."""
        return await self._call("vm_stop", _STOP_TIMEOUT_S)

    async def start(self) -> Sequence[str]:
        """See `ports.Power.start`."""
        return await self._run("start", "--skiplock")

    async def shut_down(self, *, timeout_s: float) -> Sequence[str]:
        """See `ports.Power.shut_down`."""
        return await self._run(
            "shutdown", "--skiplock", "--keepActive", "--timeout", str(int(timeout_s))
        )

    async def suspend(self) -> Sequence[str]:
        """See `ports.Power.suspend`."""
        return await self._run("suspend", "--skiplock")

    async def resume(self) -> Sequence[str]:
        """See `ports.Power.resume`."""
        return await self._run("resume", "--skiplock")

    async def _call(self, method: str, timeout_s: float) -> Sequence[str]:
        reply = await self._bridge.call(
            method, {"vmid": self._vmid}, timeout_s=timeout_s, error_type=PowerError
        )
        return reply.lines

    async def _run(self, verb: str, *options: str) -> Sequence[str]:
        argv = ["qm", verb, str(self._vmid), *options]
        status, lines = await self._commands.run(argv)
        if status == 0:
            return lines
        ending = f"got signal {-status}" if status < 0 else f"exit code {status}"
        raise PowerError(
            f"command '{' '.join(argv)}' failed: {ending}", hint=lines[-1] if lines else ""
        )
