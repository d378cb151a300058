"""QEMU's own client library, made to fit a host that shares its monitors with others.

Owns what `qemu.qmp` leaves open for us: request ids that no other client uses, a negotiation
that copes with replies meant for an earlier client, a descriptor in the very message of its
command, events in bounded memory, and closing at once. Its public face, limits and errors are
left to `qmp_connection`. Source: host behaviour, sections 6.2 and 6.3; failure modes 2 to 14.

Importing this module loads `qemu.qmp`; import it only when a monitor is really needed.
"""

from __future__ import annotations

import array
import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any

from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, QMPClient, QMPError, Runstate
from qemu.qmp.message import Message
from qemu.qmp.qmp_client import NegotiationError

from vzdump_qemu.ports import QmpEvent

__all__ = ["ConnectError", "EventQueue", "ExecInterruptedError", "ExecuteError", "MonitorClient",
           "QMPError"]  # fmt: skip

# `query-named-block-nodes` of a VM with long backing chains reaches some MiB.
REPLY_BYTES_MAX = 32 * 1024 * 1024
# Under a flood the newest events are kept: whatever ends a job comes last.
EVENT_COUNT_MAX = 4096
# Events and stray replies that may come before the reply to the negotiation.
STRAY_COUNT_MAX = 1000


class EventQueue:
    """Events of some names, oldest first; the oldest are dropped once the queue is full."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._events: deque[QmpEvent] = deque(maxlen=EVENT_COUNT_MAX)
        self._changed = asyncio.Event()
        self._ended = False

    def offer(self, message: Mapping[str, Any]) -> None:
        """Keep the event if its name is one of ours."""
        name = message.get("event")
        if not isinstance(name, str) or name not in self._names:
            return
        data = message.get("data")
        self._events.append(QmpEvent(name=name, data=data if isinstance(data, Mapping) else {}))
        self._changed.set()

    def end(self) -> None:
        """No more events will come."""
        self._ended = True
        self._changed.set()

    async def stream(self) -> AsyncIterator[QmpEvent]:
        """Events as they come, until the connection ends."""
        while True:
            while self._events:
                yield self._events.popleft()
            if self._ended:
                return
            self._changed.clear()
            await self._changed.wait()


class MonitorClient(QMPClient):  # type: ignore[misc]  # the library comes without types for us
    """One connection; see the module docstring for what differs from its base.

    Args:
        id_prefix: must differ between all clients of a monitor, also over time: QEMU delivers a
            late reply to whoever is connected by then.
    """

    def __init__(self, *, id_prefix: str) -> None:
        super().__init__(None, REPLY_BYTES_MAX)
        self._id_prefix = id_prefix
        self._queues: list[EventQueue] = []
        self._fds: dict[str, int] = {}

    async def connect_stream(self, stream: socket.socket) -> None:
        """Greet and negotiate over a connected socket. Raises ConnectError."""
        try:
            await self.connect(stream)
        except AssertionError:
            # The library takes for granted that no session ends within its first turn of the
            # event loop. One that does is closed like any other, at its first command.
            pass

    def add_queue(self, queue: EventQueue) -> None:
        """Feed that queue from now on."""
        self._queues.append(queue)
        if self.runstate != Runstate.RUNNING:
            queue.end()

    def remove_queue(self, queue: EventQueue) -> None:
        """Stop feeding it."""
        self._queues.remove(queue)

    async def execute_with_fd(self, command: str, arguments: Mapping[str, Any], fd: int) -> Any:
        """As `execute`, with one descriptor that travels in the message's own `sendmsg`."""
        # The id is known before sending: no other task runs until the message is queued.
        self._fds[f"{self._id_prefix}{self._execute_id}"] = fd
        try:
            return await self.execute(command, arguments)
        finally:
            self._fds.clear()

    def abort(self) -> None:
        """Drop the connection without flushing; a stuck peer cannot delay this."""
        if self._writer is not None:
            self._writer.transport.abort()

    def _get_exec_id(self) -> str:
        exec_id = f"{self._id_prefix}{self._execute_id}"
        self._execute_id += 1
        return exec_id

    async def _negotiate(self) -> None:
        """Ask for no capability, and skip whatever an earlier client left on the way to us."""
        request = self.make_execute_msg("qmp_capabilities")
        request["id"] = self._get_exec_id()
        await self._send(request)
        for _ in range(STRAY_COUNT_MAX):
            reply = await self._recv()
            if reply.get("id") != request["id"]:
                continue
            error = reply.get("error")
            # An earlier client that vanished half way may have negotiated for us already.
            if "return" in reply or (
                isinstance(error, Mapping) and error.get("class") == "CommandNotFound"
            ):
                return
            raise NegotiationError("negotiation failed", ValueError(str(error)))
        raise NegotiationError("negotiation failed", ValueError("no reply among stray messages"))

    def _do_send(self, msg: Message) -> None:
        # QEMU needs no end of line, but whoever reads line by line does.
        data = bytes(msg) + b"\n"
        fd = self._fds.pop(str(msg.get("id")), None)
        if fd is None:
            self._writer.write(data)
            return
        # QEMU keeps a descriptor for the command of the same read: sent apart from it, another
        # message in between would lose it. asyncio has no sendmsg, so its socket is used.
        connection: socket.socket = self._writer.transport.get_extra_info("socket")._sock
        sent_bytes = connection.sendmsg(
            [data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        )
        if sent_bytes < len(data):
            self._writer.write(data[sent_bytes:])

    async def _event_dispatch(self, msg: Message) -> None:
        # The library's own listeners keep every event for ever; ours are bounded.
        for queue in self._queues:
            queue.offer(msg)

    async def _bh_disconnect(self) -> None:
        try:
            await super()._bh_disconnect()
        finally:
            for queue in self._queues:
                queue.end()
