"""A disk behind an NBD export: several connections, handed to whichever thread asks.

Owns how many connections there are and their end. Speaking on one is `nbd_connection`'s. QEMU
serves reads of one connection side by side; a second one lets a thread receive while another's
requests are worked on. Source: the public NBD protocol description (multi-conn).
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from vzdump_qemu.disk_ports import DiskOrigin, Extent, ExtentKind
from vzdump_qemu.errors import DiskReadError
from vzdump_qemu.formats.nbd import NbdExport
from vzdump_qemu.ports import Clock
from vzdump_qemu.qemu.nbd_connection import NbdConnection, NbdLimits
from vzdump_qemu.units import GIB

# A status request is answered in one go, and an image of many small extents takes the server's
# main loop with it: long enough that an empty disk costs nothing, short enough to be harmless.
_STATUS_BYTES_MAX: Final = GIB
_CONNECTION_COUNT_MAX: Final = 4
# A further connection is a help and no need: a server that takes one client leaves it waiting.
_FURTHER_HANDSHAKE_S: Final = 5.0

_T = TypeVar("_T")


class NbdDisk:
    """`vzdump_qemu.disk_ports.DiskReader` on an NBD export.

    Constructing it connects: it blocks, do it in a worker thread.

    Args:
        origin: with `nbd_socket` set.
        connection_count_max: how many connections there may be where the export allows it.

    Raises:
        DiskReadError: no server, no such export or bitmap, another size, no answer in time.
    """

    def __init__(
        self,
        origin: DiskOrigin,
        *,
        clock: Clock,
        limits: NbdLimits | None = None,
        connection_count_max: int = _CONNECTION_COUNT_MAX,
    ) -> None:
        self._origin = origin
        self._clock = clock
        self._limits = limits or NbdLimits()
        self._lock = threading.Lock()
        self._returned = threading.Condition(self._lock)
        self._idle: list[NbdConnection] = []
        self._all: list[NbdConnection] = []
        self._count_max = 1
        self._opened_count = 1
        self._is_ended = False
        self._first_error: DiskReadError | None = None
        with self._telling():
            try:
                first = self._open(self._limits)
                self._check_size(first.export)
            except DiskReadError:
                self.close()
                raise
        self.export = first.export
        if self.export.can_multi_conn:
            self._count_max = connection_count_max
        self._idle.append(first)

    @property
    def size_bytes(self) -> int:
        return self.export.size_bytes

    def extents(self, offset_bytes: int, length_bytes: int) -> Sequence[Extent]:
        """As the port says; at most 1 GiB at a time."""
        export = self.export
        length_bytes = min(length_bytes, _STATUS_BYTES_MAX, self.size_bytes - offset_bytes)
        if export.allocation_context_id is None and export.bitmap_context_id is None:
            return (Extent(offset_bytes, length_bytes, ExtentKind.DATA),)
        return self._with_connection(lambda one: one.extents(offset_bytes, length_bytes))

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """As the port says."""
        self._with_connection(lambda one: one.read_into(offset_bytes, buffer))

    def interrupt(self) -> None:
        """As the port says."""
        with self._lock:
            self._is_ended = True
            connections = list(self._all)
            self._returned.notify_all()
        for connection in connections:
            connection.interrupt()

    def close(self) -> None:
        """As the port says."""
        with self._lock:
            self._is_ended = True
            connections, self._all, self._idle = self._all, [], []
        for connection in connections:
            connection.close()

    def _with_connection(self, work: Callable[[NbdConnection], _T]) -> _T:
        with self._telling():
            connection = self._borrow()
            try:
                result = work(connection)
            except DiskReadError as error:
                # What this connection still receives is unknown, and others may wait for it.
                first = self._note_failure(error)
                self.interrupt()
                raise first from error
        with self._lock:
            self._idle.append(connection)
            self._returned.notify()
        return result

    def _borrow(self) -> NbdConnection:
        while True:
            with self._lock:
                self._returned.wait_for(
                    lambda: self._is_ended or self._idle or self._opened_count < self._count_max
                )
                if self._is_ended:
                    raise self._first_error or DiskReadError("reading was ended")
                if self._idle:
                    return self._idle.pop()
                self._opened_count += 1
            further = self._open_further()
            if further is not None:
                return further

    def _note_failure(self, error: DiskReadError) -> DiskReadError:
        """The first failure of any connection: the others break because of it."""
        with self._lock:
            if self._first_error is None and not self._is_ended:
                self._first_error = error
            return self._first_error or error

    def _open_further(self) -> NbdConnection | None:
        """One more connection, or None if there will be no more."""
        handshake_s = min(_FURTHER_HANDSHAKE_S, self._limits.handshake_s)
        limits = NbdLimits(handshake_s=handshake_s, answer_s=self._limits.answer_s)
        try:
            connection = self._open(limits)
        except DiskReadError:
            with self._lock:
                self._opened_count -= 1
                self._count_max = self._opened_count
            return None
        if connection.export != self.export:
            raise DiskReadError("its export was exchanged meanwhile")
        return connection

    def _open(self, limits: NbdLimits) -> NbdConnection:
        connection = NbdConnection(
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), clock=self._clock, limits=limits
        )
        with self._lock:
            is_ended = self._is_ended
            # Known before it is connected, so that an interruption reaches it.
            self._all.append(connection)
        if is_ended:
            raise DiskReadError("reading was ended")
        origin = self._origin
        connection.open(origin.nbd_socket, origin.export_name, bitmap_name=origin.bitmap_name)
        return connection

    def _check_size(self, export: NbdExport) -> None:
        if export.size_bytes != self._origin.size_bytes:
            raise DiskReadError(
                f"its export has {export.size_bytes} bytes instead of {self._origin.size_bytes}"
            )

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Say which disk it was."""
        try:
            yield
        except DiskReadError as error:
            raise DiskReadError(
                f"unable to read disk {self._origin.device_id} - {error.message}", hint=error.hint
            ) from error
