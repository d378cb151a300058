"""What is one of every VM that is found behind two sockets: its monitor and its guest's agent.

Owns connecting to them in this process's name; where they lie, and all else of a machine, is each
kind of node's own.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from vzdump_qemu.ports import Agent, Qmp
from vzdump_qemu.qemu.agent_connection import connect_agent
from vzdump_qemu.qemu.qmp_connection import connect_qmp
from vzdump_qemu.qemu.request_ids import RequestIds


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSockets:
    """Paths of one VM's sockets, and the numbers that this process asks under."""

    vmid: int
    qmp_path: str
    agent_path: str
    request_ids: RequestIds

    def connect_qmp(self, *, timeout_s: float) -> AbstractAsyncContextManager[Qmp]:
        """See `ports.Machine.connect_qmp`."""
        return connect_qmp(
            self.qmp_path, vmid=self.vmid, timeout_s=timeout_s, request_ids=self.request_ids
        )

    def connect_agent(self, *, timeout_s: float) -> AbstractAsyncContextManager[Agent]:
        """See `ports.Machine.connect_agent`."""
        return connect_agent(
            self.agent_path, vmid=self.vmid, timeout_s=timeout_s, request_ids=self.request_ids
        )


class SocketedMachine:
    """The part of `ports.Machine` that needs the sockets alone."""

    def __init__(self, sockets: VmSockets) -> None:
        self._sockets = sockets

    @property
    def vmid(self) -> int:
        return self._sockets.vmid

    def connect_qmp(self, *, timeout_s: float) -> AbstractAsyncContextManager[Qmp]:
        """See `ports.Machine.connect_qmp`."""
        return self._sockets.connect_qmp(timeout_s=timeout_s)

    def connect_agent(self, *, timeout_s: float) -> AbstractAsyncContextManager[Agent]:
        """See `ports.Machine.connect_agent`."""
        return self._sockets.connect_agent(timeout_s=timeout_s)
