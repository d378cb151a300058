"""The `Qmp` port over a real monitor socket.

Owns limits, error classes and texts of monitor connections; the protocol is `qemu.qmp`, adapted
in `qmp_transport` (loaded at the first connection only). QEMU serves one client per monitor:
callers close a connection as soon as their commands are done. Source: host behaviour, 6.1–6.3.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from vzdump_qemu.errors import QmpClosed, QmpCommandError, QmpTimeout, QmpUnreachable
from vzdump_qemu.ports import Qmp, QmpEvent
from vzdump_qemu.qemu.request_ids import RequestIds
from vzdump_qemu.qemu.unix_socket import SocketBusy, connect_unix_socket

if TYPE_CHECKING:
    from vzdump_qemu.qemu.qmp_transport import MonitorClient

_RETRY_INTERVAL_S = 0.1
_BUSY_HINT = "another client may hold the monitor: QEMU serves one at a time"
_GONE = "client closed connection"


class QmpConnection:
    """One negotiated connection; made by `connect_qmp`."""

    def __init__(self, client: MonitorClient, *, vmid: int) -> None:
        self._client = client
        self._vmid = vmid
        self._gave_up = False
        self._end_reason = ""

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float
    ) -> Any:
        """See `ports.Qmp.execute`.

        After a QmpTimeout this connection takes no further command (QmpUnreachable): QEMU works
        one off after the other, so the next would only wait behind the lost one.
        """
        return await self._run(command, arguments, fd=None, timeout_s=timeout_s)

    async def execute_with_fd(
        self, command: str, arguments: Mapping[str, Any], fd: int, *, timeout_s: float
    ) -> Any:
        """See `ports.Qmp.execute_with_fd`; the caller keeps its own copy of the descriptor."""
        return await self._run(command, arguments, fd=fd, timeout_s=timeout_s)

    def events(self, *names: str) -> AbstractAsyncContextManager[AsyncIterator[QmpEvent]]:
        """See `ports.Qmp.events`; iterating ends with QmpClosed when the connection does."""
        return self._listen(frozenset(names))

    async def close(self) -> None:
        """Drop the connection; idempotent, never waits for the peer."""
        from vzdump_qemu.qemu.qmp_transport import QMPError

        self._client.abort()
        # Whatever ended the reader earlier is raised here once more.
        try:
            await self._client.disconnect()
        except ValueError:
            self._end_reason = "reply too long"
        except (QMPError, EOFError, OSError):
            self._end_reason = _GONE

    async def _run(
        self, command: str, arguments: Mapping[str, Any] | None, *, fd: int | None, timeout_s: float
    ) -> Any:
        from vzdump_qemu.qemu.qmp_transport import ExecuteError, QMPError

        if self._gave_up:
            raise QmpUnreachable(f"{self._failed(command)} - an earlier command got no reply")
        try:
            async with asyncio.timeout(timeout_s):
                if fd is not None:
                    return await self._client.execute_with_fd(command, arguments or {}, fd)
                return await self._client.execute(command, arguments)
        except TimeoutError as error:
            self._gave_up = True
            raise QmpTimeout(f"{self._failed(command)} - got timeout") from error
        except ExecuteError as error:
            raise QmpCommandError(
                command=command, error_class=error.error_class, description=str(error)
            ) from error
        except QMPError as error:
            self._gave_up = True
            await self.close()
            reason = self._end_reason or _GONE
            raise QmpClosed(f"{self._failed(command)} - {reason}") from error

    def _failed(self, command: str) -> str:
        return f"VM {self._vmid} qmp command '{command}' failed"

    @asynccontextmanager
    async def _listen(self, names: frozenset[str]) -> AsyncIterator[AsyncIterator[QmpEvent]]:
        from vzdump_qemu.qemu.qmp_transport import EventQueue

        queue = EventQueue(names)

        async def until_closed() -> AsyncIterator[QmpEvent]:
            async for event in queue.stream():
                yield event
            raise QmpClosed(f"VM {self._vmid} qmp socket - {_GONE}")

        self._client.add_queue(queue)
        try:
            yield until_closed()
        finally:
            self._client.remove_queue(queue)


@asynccontextmanager
async def connect_qmp(
    path: str, *, vmid: int, timeout_s: float, request_ids: RequestIds
) -> AsyncIterator[Qmp]:
    """Connect and negotiate within `timeout_s`; the connection closes on leaving.

    Raises:
        QmpUnreachable: no socket, no listener, no greeting in time, or a failed negotiation.
    Source: host behaviour 6.1 and 6.2; failure modes 1, 2, 3 and 10.
    """
    connection = await _open(path, vmid=vmid, timeout_s=timeout_s, request_ids=request_ids)
    try:
        yield connection
    finally:
        await connection.close()


async def _open(
    path: str, *, vmid: int, timeout_s: float, request_ids: RequestIds
) -> QmpConnection:
    from vzdump_qemu.qemu.qmp_transport import ConnectError, MonitorClient

    prefix = f"unable to connect to VM {vmid} qmp socket"
    client = MonitorClient(id_prefix=request_ids.next_qmp_prefix())
    try:
        async with asyncio.timeout(timeout_s):
            stream = await connect_unix_socket(
                path,
                retry_interval_s=_RETRY_INTERVAL_S,
                retry_count_max=max(int(timeout_s / _RETRY_INTERVAL_S), 10),
            )
            try:
                await client.connect_stream(stream)
            except BaseException:
                # Closing twice is harmless; not at all would keep our place in the queue.
                with suppress(OSError):
                    stream.close()
                raise
    except TimeoutError as error:
        raise QmpUnreachable(
            f"{prefix} - no greeting within {timeout_s:g} s", hint=_BUSY_HINT
        ) from error
    except SocketBusy as error:
        raise QmpUnreachable(f"{prefix} - {error}", hint=_BUSY_HINT) from error
    except ConnectError as error:
        reason = _GONE if isinstance(error.exc, (EOFError, OSError)) else str(error.exc)
        raise QmpUnreachable(f"{prefix} - {reason}") from error
    except FileNotFoundError as error:
        raise QmpUnreachable("unable to open monitor socket", hint=path) from error
    except OSError as error:
        raise QmpUnreachable(f"{prefix} - {error.strerror or error}", hint=path) from error
    return QmpConnection(client, vmid=vmid)
