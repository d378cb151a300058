"""One connection to an NBD export on a UNIX socket, for a thread that may block.

Owns: the socket, its time limits, sending requests ahead of their replies, and receiving data
where it is wanted. What the bytes mean is left to `vzdump_qemu.formats.nbd`, how many connections
there are to `vzdump_qemu.qemu.nbd_disk`. Source: the public NBD protocol description.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np

from vzdump_qemu.disk_ports import Extent
from vzdump_qemu.errors import DiskReadError
from vzdump_qemu.formats import nbd
from vzdump_qemu.formats.nbd import layout
from vzdump_qemu.ports import Clock
from vzdump_qemu.qemu.unix_socket import connect_to_path
from vzdump_qemu.units import KIB, NS_PER_S

# Longer ones make the server allocate more and let less overlap; shorter ones cost calls.
_READ_BYTES_MAX: Final = 512 * KIB
# What QEMU works on at a time for one client.
_READ_COUNT_MAX: Final = 16
_SOCKET_BUFFER_BYTES: Final = 4096 * KIB
_TIMEVAL_STRUCT: Final = struct.Struct("@ll")
_STATUS_COOKIE: Final = 0xB10C


@dataclass(frozen=True, slots=True, kw_only=True)
class NbdLimits:
    """How long a server may take.

    Attributes:
        handshake_s: connecting and negotiating, per message.
        answer_s: one call of `read_into` or `extents`; long, because a storage that
            stalls for a minute or two and comes back is no reason to lose a backup.
    """

    handshake_s: float = 30.0
    answer_s: float = 300.0


class NbdConnection:
    """A negotiated connection. Not for two threads at once, `interrupt` excepted.

    After any error the connection is of no use any more but to be closed.

    Attributes:
        export: what the server said.

    Args:
        connection: a new blocking socket; owned from now on.
    """

    def __init__(self, connection: socket.socket, *, clock: Clock, limits: NbdLimits) -> None:
        self._socket = connection
        self._clock = clock
        self._limits = limits
        self._deadline_ns = 0
        self._front = memoryview(bytearray(layout.REPLY_FRONT_BYTES))
        self._small = memoryview(bytearray(layout.TEXT_BYTES_MAX))
        self.export: nbd.NbdExport

    def open(self, socket_path: str, export_name: str, *, bitmap_name: str) -> None:
        """Connect and negotiate.

        Raises:
            DiskReadError: no server, no such export or bitmap, or no answer in time.
        """
        handshake = nbd.NbdHandshake(export_name, bitmap_name=bitmap_name)
        self._set_timeout(self._limits.handshake_s)
        try:
            # A larger buffer needs fewer wake-ups; the kernel cuts it down to what it allows.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER_BYTES)
            connect_to_path(self._socket, socket_path)
        except OSError as error:
            raise DiskReadError(f"cannot connect to '{socket_path}' - {error.strerror}") from error
        while handshake.export is None:
            raw = bytearray(handshake.needed_bytes)
            self._begin_call(self._limits.handshake_s)
            self._receive(memoryview(raw))
            outgoing = handshake.give(bytes(raw))
            if outgoing:
                self._send(outgoing)
        self.export = handshake.export
        self._set_timeout(self._limits.answer_s)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """As the port `DiskReader` says."""
        self._begin_call(self._limits.answer_s)
        step = min(_READ_BYTES_MAX, self.export.request_bytes_max)
        group_bytes = step * _READ_COUNT_MAX
        for begin in range(0, len(buffer), group_bytes):
            self._read_group(
                offset_bytes + begin, buffer[begin : begin + group_bytes], request_bytes=step
            )

    def extents(self, offset_bytes: int, length_bytes: int) -> Sequence[Extent]:
        """As the port `DiskReader` says, where the server serves any context."""
        self._begin_call(self._limits.answer_s)
        self._send(nbd.encode_block_status(_STATUS_COOKIE, offset_bytes, length_bytes))
        found: dict[int, nbd.StatusRuns] = {}
        while True:
            front = self._receive_front()
            if front.cookie != _STATUS_COOKIE:
                raise DiskReadError("NBD server answered a request that was not made")
            if front.chunk_type is None:
                raise nbd.server_error(front.error)
            payload_bytes = self._receive_number()
            if front.chunk_type == layout.ChunkType.BLOCK_STATUS:
                nbd.check_status_length(payload_bytes)
                payload = bytearray(payload_bytes)
                self._receive(memoryview(payload))
                context_id, runs = nbd.decode_status(payload)
                if context_id in found or len(found) > 1:
                    raise DiskReadError("NBD server told the status of a context twice")
                found[context_id] = runs
            else:
                self._receive_empty_or_error(front.chunk_type, payload_bytes)
            if front.is_last:
                break
        return nbd.merge_status(
            offset_bytes,
            length_bytes,
            found,
            allocation_context_id=self.export.allocation_context_id,
            bitmap_context_id=self.export.bitmap_context_id,
        )

    def interrupt(self) -> None:
        """Let whoever waits in a call see the end of the connection. For any thread."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Say farewell, if there is room for it, and close. Idempotent."""
        with suppress(OSError):
            self._socket.send(nbd.encode_disconnect(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        self._socket.close()

    def _read_group(self, offset_bytes: int, buffer: memoryview, *, request_bytes: int) -> None:
        pending: dict[int, tuple[nbd.PendingRead, memoryview]] = {}
        requests = []
        for begin in range(0, len(buffer), request_bytes):
            part = buffer[begin : begin + request_bytes]
            cookie = offset_bytes + begin
            pending[cookie] = nbd.PendingRead(cookie, len(part)), part
            requests.append(
                nbd.encode_read(cookie, cookie, len(part), in_one_chunk=self.export.can_df)
            )
        self._send(b"".join(requests))
        while pending:
            front = self._receive_front()
            if front.cookie not in pending:
                raise DiskReadError("NBD server answered a request that was not made")
            read, part = pending[front.cookie]
            if front.chunk_type is None:
                if front.error:
                    raise nbd.server_error(front.error)
                self._receive(part)
                del pending[front.cookie]
                continue
            self._take_chunk(front.chunk_type, read, part)
            if front.is_last:
                read.check_whole()
                del pending[front.cookie]

    def _take_chunk(self, chunk_type: int, read: nbd.PendingRead, part: memoryview) -> None:
        payload_bytes = self._receive_number()
        if chunk_type == layout.ChunkType.DATA:
            nbd.check_data_length(payload_bytes, read)
            place = self._small[: layout.OFFSET_STRUCT.size]
            self._receive(place)
            at, count = read.take_data(payload_bytes, layout.OFFSET_STRUCT.unpack(place)[0])
            self._receive(part[at : at + count])
        elif chunk_type == layout.ChunkType.HOLE:
            nbd.check_hole_length(payload_bytes)
            at, count = read.take_hole(self._receive_small(payload_bytes))
            np.frombuffer(part, dtype=np.uint8)[at : at + count] = 0
        else:
            self._receive_empty_or_error(chunk_type, payload_bytes)

    def _receive_empty_or_error(self, chunk_type: int, payload_bytes: int) -> None:
        if chunk_type & layout.CHUNK_ERROR_FLAG:
            nbd.check_error_length(payload_bytes)
            payload = bytearray(payload_bytes)
            self._receive(memoryview(payload))
            raise nbd.decode_error(payload)
        if chunk_type != layout.ChunkType.NONE or payload_bytes:
            raise DiskReadError(f"NBD server sent a chunk {nbd.chunk_name(chunk_type)}")

    def _receive_front(self) -> nbd.ReplyFront:
        self._receive(self._front)
        # The kernel limits each receiving; a server that trickles would never meet that limit.
        if self._clock.now_ns() >= self._deadline_ns:
            raise _late()
        return nbd.decode_reply_front(
            bytes(self._front), structured=self.export.has_structured_replies
        )

    def _receive_number(self) -> int:
        number: int = layout.NUMBER_STRUCT.unpack(self._receive_small(layout.NUMBER_STRUCT.size))[0]
        return number

    def _receive_small(self, count: int) -> bytes:
        part = self._small[:count]
        self._receive(part)
        return bytes(part)

    def _begin_call(self, timeout_s: float) -> None:
        self._deadline_ns = self._clock.now_ns() + int(timeout_s * NS_PER_S)

    def _set_timeout(self, timeout_s: float) -> None:
        # The kernel's own limit keeps the socket blocking, so that one call fills a whole buffer.
        seconds, rest_s = divmod(timeout_s, 1)
        timeout = _TIMEVAL_STRUCT.pack(int(seconds), max(int(rest_s * 1_000_000), 1))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, timeout)

    def _receive(self, part: memoryview) -> None:
        """Fill a buffer, in one call as a rule. Raises DiskReadError."""
        while True:
            try:
                count = self._socket.recv_into(part, len(part), socket.MSG_WAITALL)
            except BlockingIOError:
                raise _late() from None
            except OSError as error:
                raise _broken(error) from error
            if count == len(part):
                return
            if not count:
                raise DiskReadError("NBD server closed the connection")
            # A signal or the time limit cut it short, or the server has just gone.
            if self._clock.now_ns() >= self._deadline_ns:
                raise _late()
            part = part[count:]

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except BlockingIOError:
            raise _late() from None
        except OSError as error:
            raise _broken(error) from error


def _late() -> DiskReadError:
    return DiskReadError(
        "NBD server does not answer in time", hint="look at the storage that the disk lies on"
    )


def _broken(error: OSError) -> DiskReadError:
    return DiskReadError(f"NBD connection broke - {error.strerror}")
