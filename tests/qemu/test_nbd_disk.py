"""Reading exports over real UNIX sockets, from a server that keeps the protocol and from others."""

from __future__ import annotations

import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.nbd_peer import (
    DISCONNECT,
    READ,
    ToldServer,
    chunk,
    memory_export,
    receive_request,
    serving,
)
from vzdump_qemu.disk_ports import DiskOrigin, Extent, ExtentKind
from vzdump_qemu.errors import DiskReadError
from vzdump_qemu.qemu.nbd_connection import NbdLimits
from vzdump_qemu.qemu.nbd_disk import NbdDisk
from vzdump_qemu.stores.system import SystemClock
from vzdump_qemu.units import MIB, NS_PER_S
from vzsim.fakeqmp.bitmaps import Bitmap

_PATTERN = bytes(range(1, 252)) * 16710
_SHORT = NbdLimits(handshake_s=0.05, answer_s=0.05)
# Only a hanging test gets this far.
_PATIENT = NbdLimits(handshake_s=20, answer_s=20)


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory) / "n"


def _open(
    path: Path, size_bytes: int, *, bitmap: str = "", limits: NbdLimits = _PATIENT
) -> NbdDisk:
    origin = DiskOrigin(
        device_id="drive-scsi0",
        size_bytes=size_bytes,
        nbd_socket=str(path),
        export_name="d",
        bitmap_name=bitmap,
    )
    return NbdDisk(origin, clock=SystemClock(), limits=limits)


def _read(disk: NbdDisk, offset: int, length: int) -> bytes:
    buffer = bytearray(b"\xee" * length)
    disk.read_into(offset, memoryview(buffer))
    return bytes(buffer)


def test_disk_is_read_in_requests_of_any_length_and_place(path: Path) -> None:
    content = _PATTERN + bytes(-len(_PATTERN) % 512)
    with serving(path, memory_export(content)):
        disk = _open(path, len(content))
        assert disk.size_bytes == len(content)
        for offset, length in ((0, len(content)), (1, 3), (700001, 2 * MIB + 5)):
            assert _read(disk, offset, length) == content[offset : offset + length]
        disk.close()


def test_extents_tell_zeroes_and_what_did_not_change(path: Path) -> None:
    content = _PATTERN[:65536] + bytes(3 * 65536) + _PATTERN[:65536]
    bitmap = Bitmap(name="inc", size_bytes=len(content), dirty={0, 1, 2})
    with serving(path, memory_export(content, bitmaps=[bitmap])):
        disk = _open(path, len(content))
        assert list(disk.extents(0, len(content))) == [
            Extent(0, 65536, ExtentKind.DATA),
            Extent(65536, 3 * 65536, ExtentKind.ZERO),
            Extent(4 * 65536, 65536, ExtentKind.DATA),
        ]
        disk.close()
        disk = _open(path, len(content), bitmap="inc")
        assert list(disk.extents(65536, len(content))) == [
            Extent(65536, 2 * 65536, ExtentKind.ZERO),
            Extent(3 * 65536, 2 * 65536, ExtentKind.UNCHANGED),
        ]
        disk.close()


def test_threads_read_at_once_over_connections_of_their_own(path: Path) -> None:
    export = memory_export(_PATTERN + bytes(-len(_PATTERN) % 512))
    with serving(path, export):
        disk = _open(path, export.disk.size_bytes)
        meeting = threading.Barrier(3)
        found: list[bytes] = []

        def read(index: int) -> None:
            meeting.wait(20)
            found.append(_read(disk, index * MIB, MIB))

        threads = [threading.Thread(target=read, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert sorted(found) == sorted(_PATTERN[i * MIB : (i + 1) * MIB] for i in range(3))
        assert 1 <= export.clients_seen <= 3
        disk.close()


def test_export_of_another_size_is_refused(path: Path) -> None:
    with (
        serving(path, memory_export(bytes(1024))),
        pytest.raises(DiskReadError, match="drive-scsi0 - its export has 1024 bytes instead of 51"),
    ):
        _open(path, 512)


def test_missing_server_is_told(path: Path) -> None:
    with pytest.raises(DiskReadError, match=r"cannot connect to .* No such file"):
        _open(path, 512)


def test_read_error_of_the_disk_is_told_with_its_name(path: Path) -> None:
    export = memory_export(bytes(4096))

    def fail(offset_bytes: int, length_bytes: int) -> bytes:
        raise OSError(5, "broken")

    export.disk.read = fail  # type: ignore[method-assign]
    with serving(path, export):
        disk = _open(path, 4096)
        with pytest.raises(DiskReadError, match="unable to read disk drive-scsi0 - Input/output"):
            _read(disk, 0, 4096)
        # Nobody waits for a connection that will not come back, and the first cause is told.
        with pytest.raises(DiskReadError, match="Input/output"):
            _read(disk, 0, 4096)
        disk.close()


def _holes(connection: socket.socket) -> None:
    """Two reads at once: answered crosswise, in parts, with holes."""
    _, cookie, offset, length = receive_request(connection)
    _, other, other_offset, other_length = receive_request(connection)
    half = length // 2
    connection.sendall(
        chunk(other, 2, struct.pack(">QI", other_offset, other_length))
        + chunk(cookie, 1, struct.pack(">Q", offset + half) + b"b" * half, last=False)
        + chunk(cookie, 2, struct.pack(">QI", offset, half), last=False)
        + chunk(cookie, 0)
    )


def test_hole_chunks_and_replies_out_of_order_fill_the_buffer(path: Path) -> None:
    with ToldServer(path, _holes, size_bytes=2 * MIB):
        disk = _open(path, 2 * MIB)
        assert _read(disk, 0, MIB) == bytes(MIB // 4) + b"b" * (MIB // 4) + bytes(MIB // 2)
        disk.close()


def _simple(connection: socket.socket) -> None:
    _, cookie, offset, length = receive_request(connection)
    connection.sendall(struct.pack(">IIQ", 0x67446698, 0, cookie) + bytes([offset % 251]) * length)
    _, cookie, _, _ = receive_request(connection)
    connection.sendall(struct.pack(">IIQ", 0x67446698, 5, cookie))


def test_server_of_simple_replies_is_read_without_extents(path: Path) -> None:
    with ToldServer(path, _simple, size_bytes=MIB, structured=False):
        disk = _open(path, MIB)
        assert list(disk.extents(0, MIB)) == [Extent(0, MIB, ExtentKind.DATA)]
        assert _read(disk, 512, 4) == bytes([512 % 251]) * 4
        with pytest.raises(DiskReadError, match="Input/output error"):
            _read(disk, 0, 4)
        disk.close()


def _silence(connection: socket.socket) -> None:
    connection.recv(1 << 20)


def _answer(*parts: bytes) -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        _, cookie, _, _ = receive_request(connection)
        for part in parts:
            connection.sendall(part.replace(b"<COOKIE>", struct.pack(">Q", cookie)))
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1 << 20)

    return serve


def _raw_chunk(kind: int, length: int, payload: bytes = b"", *, last: int = 1) -> bytes:
    return (
        struct.pack(">IHH", 0x668E33EF, last, kind) + b"<COOKIE>" + struct.pack(">I", length)
    ) + payload


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (_raw_chunk(1, 8 + 4096, bytes(8) + bytes(1000)), "closed the connection"),
        (_raw_chunk(1, 1 << 31), "announced a data chunk"),
        (_raw_chunk(1, 8 + 4096, struct.pack(">Q", 4096)), "not asked for"),
        (_raw_chunk(2, 12, struct.pack(">QI", 0, 1 << 20)), "not asked for"),
        (_raw_chunk(0, 0), "before all of it"),
        (_raw_chunk(5, 12, bytes(12)), "sent a chunk BLOCK_STATUS"),
        (_raw_chunk(0, 7, bytes(7)), "sent a chunk NONE"),
        (_raw_chunk(0x8001, 1 << 30), "announced an error of"),
        (_raw_chunk(0x8001, 9, struct.pack(">IH", 22, 3) + b"bad"), r"Invalid argument \(bad\)"),
        (chunk(77, 0), "request that was not made"),
        (b"\0" * 16, "something else than a reply"),
        (b"", "closed the connection"),
    ],
)
def test_broken_reply_ends_in_a_read_error(path: Path, answer: bytes, reason: str) -> None:
    with ToldServer(path, _answer(answer), size_bytes=65536):
        disk = _open(path, 65536)
        with pytest.raises(DiskReadError, match=reason):
            _read(disk, 0, 4096)
        disk.close()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (_raw_chunk(5, 1 << 31), "announced a block status"),
        (_raw_chunk(5, 12, struct.pack(">III", 9, 512, 0)), "left a context out"),
        (_raw_chunk(5, 12, struct.pack(">III", 7, 0, 0)), "empty extent"),
        (_raw_chunk(5, 12, struct.pack(">III", 7, 512, 0), last=0) * 2, "context twice"),
        (_raw_chunk(0x8001, 6, struct.pack(">IH", 95, 0)), "not supported"),
        (struct.pack(">II", 0x67446698, 22) + b"<COOKIE>", "Invalid argument"),
    ],
)
def test_broken_block_status_ends_in_a_read_error(path: Path, answer: bytes, reason: str) -> None:
    with ToldServer(path, _answer(answer), size_bytes=65536):
        disk = _open(path, 65536)
        with pytest.raises(DiskReadError, match=reason):
            disk.extents(0, 65536)
        disk.close()


@pytest.mark.parametrize("negotiates", [True, False])
def test_stalled_server_ends_in_a_read_error_in_time(path: Path, negotiates: bool) -> None:
    with (
        ToldServer(path, _silence, size_bytes=4096, negotiates=negotiates),
        pytest.raises(DiskReadError, match="does not answer in time"),
    ):
        _read(_open(path, 4096, limits=_SHORT), 0, 4096)


def test_server_that_stalls_amid_data_ends_in_a_read_error_in_time(path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        _, cookie, _, _ = receive_request(connection)
        connection.sendall(chunk(cookie, 1, bytes(8 + 4096))[:-1])
        connection.recv(1)

    with ToldServer(path, serve, size_bytes=4096):
        disk = _open(path, 4096, limits=_SHORT)
        with pytest.raises(DiskReadError, match="does not answer in time"):
            _read(disk, 0, 4096)
        disk.close()


def test_server_that_trickles_is_held_to_the_limit_of_the_whole_call(path: Path) -> None:
    class LeapingClock(SystemClock):
        leap_ns = 0

        def now_ns(self) -> int:
            self.leap_ns += 10 * NS_PER_S
            return super().now_ns() + self.leap_ns

    content = bytes(4 * MIB)
    with serving(path, memory_export(content)):
        origin = DiskOrigin(
            device_id="d", size_bytes=len(content), nbd_socket=str(path), export_name="d"
        )
        disk = NbdDisk(origin, clock=LeapingClock(), limits=_PATIENT)
        # Each of the eight replies is quick enough by itself.
        with pytest.raises(DiskReadError, match="does not answer in time"):
            _read(disk, 0, len(content))
        disk.close()


def test_interrupted_read_ends_and_later_ones_do_at_once(path: Path) -> None:
    asked = threading.Event()

    def serve(connection: socket.socket) -> None:
        command, *_ = receive_request(connection)
        assert command == READ
        asked.set()
        connection.recv(1)

    with ToldServer(path, serve, size_bytes=4096):
        disk = _open(path, 4096)
        failures: list[DiskReadError] = []

        def read() -> None:
            try:
                _read(disk, 0, 4096)
            except DiskReadError as error:
                failures.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        assert asked.wait(20)
        disk.interrupt()
        thread.join(20)
        assert "closed the connection" in failures[0].message
        with pytest.raises(DiskReadError, match="reading was ended"):
            disk.extents(0, 4096)
        disk.close()
        disk.close()


def test_server_that_takes_one_client_is_read_by_two_threads(path: Path) -> None:
    # It promises more connections and lets the second one wait, as qemu-nbd does by default.
    first = threading.Lock()

    def serve(connection: socket.socket) -> None:
        while True:
            command, cookie, offset, length = receive_request(connection)
            if command == DISCONNECT:
                return
            connection.sendall(chunk(cookie, 2, struct.pack(">QI", offset, length)))

    class OneClient(ToldServer):
        def _run(self, connection: socket.socket) -> None:
            if first.acquire(blocking=False):
                super()._run(connection)

    with OneClient(path, serve, size_bytes=8 * MIB):
        disk = _open(path, 8 * MIB, limits=NbdLimits(handshake_s=0.05, answer_s=20))
        found: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: found.append(_read(disk, 0, 8 * MIB))) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert [len(each) for each in found] == [8 * MIB] * 3
        disk.close()
