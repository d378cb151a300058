"""The simulated subjects of the contract: in memory and virtual time, and behind real sockets."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import struct
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tests.contract.selection import Offer
from tests.contract.subject import DISK_BYTES, Channel, Closed, Feature, Silence, Subject
from vzsim.fakeqmp.host import LoopTimebase, RealHost
from vzsim.fakeqmp.machine import Machine, ProcessEnd
from vzsim.fakeqmp.memory import MemoryHost, VirtualTimebase
from vzsim.fakeqmp.monitor import Monitor
from vzsim.fakeqmp.outside import Host, Timebase
from vzsim.fakeqmp.real_storage import RealStorage
from vzsim.fakeqmp.schema import Dialect
from vzsim.fakeqmp.script import Script
from vzsim.fakeqmp.server import ChannelServer, serve_monitor
from vzsim.fakeqmp.storage_host import MemoryStorage, StorageHost
from vzsim.launch import attach_disks, plan_launch
from vzsim.launch_daemon import carry_out, plan_daemon

_MONITOR_COUNT = 2
_START_S = 10.0
_FDS_MAX = 16

MACHINE_FEATURES = frozenset((Feature.MACHINE,))
DAEMON_FEATURES = frozenset((Feature.DAEMON, Feature.OOB))
SOCKET_FEATURES = frozenset((Feature.BACKLOG, Feature.REAL_FILES))


def disk_options(path: str, *, dashes: str = "-") -> list[str]:
    """The disk that every subject begins with."""
    option = f"{dashes}blockdev"
    return [
        *(option, f"driver=file,node-name=file0,filename={path}"),
        *(option, "driver=raw,node-name=disk0,file=file0"),
    ]


def guest_options(path: str) -> list[str]:
    """Command line of a machine with that disk, as the real program takes it too."""
    return [
        *("-nodefaults", "-S", "-no-shutdown", "-name", "vm"),
        *("-display", "none", "-machine", "q35", "-accel", "tcg", "-m", "32"),
        *disk_options(path),
        *("-device", "virtio-scsi-pci,id=scsihw0"),
        *("-device", "scsi-hd,drive=disk0,id=scsi0,bus=scsihw0.0"),
    ]


def build_machine(
    dialect: Dialect,
    image: str,
    *,
    timebase: Timebase,
    host: Host,
    storage: StorageHost,
    on_end: Callable[[ProcessEnd], None],
) -> Machine:
    """A simulated machine or storage daemon as its command line says."""
    if dialect is Dialect.STORAGE_DAEMON:
        daemon_plan = plan_daemon(disk_options(image, dashes="--"))
        config = daemon_plan.machine_config()
    else:
        plan = plan_launch([*guest_options(image), "-vzsim", f"dialect={dialect.value}"])
        config = plan.machine_config()
    machine = Machine(
        config, script=Script(), timebase=timebase, host=host, storage=storage, on_end=on_end
    )
    if dialect is Dialect.STORAGE_DAEMON:
        carry_out(machine, daemon_plan)
    else:
        attach_disks(machine, plan)
    for _ in range(_MONITOR_COUNT):
        machine.add_monitor()
    machine.start()
    return machine


def features_of(dialect: Dialect) -> frozenset[Feature]:
    """What a simulated program of that dialect shows."""
    if dialect is Dialect.STORAGE_DAEMON:
        return DAEMON_FEATURES
    return MACHINE_FEATURES | ({Feature.OOB} if dialect is Dialect.UPSTREAM else set())


# -- in memory -------------------------------------------------------------------------------------


class _MemoryChannel:
    def __init__(self, subject: MemorySubject, monitor: Monitor) -> None:
        self._subject = subject
        self._monitor = monitor
        self._lines: deque[bytes] = deque()
        self._is_closed = False
        subject.channels.append(self)
        monitor.connect(self._take, self.hang_up)

    def _take(self, data: bytes) -> None:
        self._lines.extend(data.splitlines())

    def hang_up(self) -> None:
        self._is_closed = True

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        self._monitor.receive(data, fds)

    def receive_line(self, timeout_s: float) -> bytes:
        timebase = self._subject.timebase
        deadline_s = timebase.now_s() + timeout_s
        while not self._lines:
            due_s = timebase.next_deadline_s()
            if self._is_closed:
                raise Closed
            if due_s is None or due_s > deadline_s:
                timebase.advance_to(deadline_s)
                if not self._lines:
                    raise Silence
                break
            timebase.advance_to(due_s)
        return self._lines.popleft()

    def close(self) -> None:
        self._monitor.disconnect()


class MemorySubject:
    """A simulated program without sockets, files and real time."""

    def __init__(self, name: str, dialect: Dialect) -> None:
        self.name = name
        self.features = features_of(dialect)
        self.timebase = VirtualTimebase()
        self.channels: list[_MemoryChannel] = []
        self._host = MemoryHost()
        self.add_image("disk0.raw")
        self.machine = build_machine(
            dialect,
            "/disk0.raw",
            timebase=self.timebase,
            host=self._host,
            storage=MemoryStorage(self._host.disks),
            on_end=self._ended,
        )

    def _ended(self, _end: ProcessEnd) -> None:
        for channel in self.channels:
            channel.hang_up()

    def open_monitor(self, index: int = 0) -> Channel:
        return _MemoryChannel(self, self.machine.monitors[index])

    def add_image(self, name: str, *, size_bytes: int = DISK_BYTES, kind: str = "raw") -> str:
        path = f"/{name}"
        self._host.add_disk(path, size_bytes).write(0, bytes(size_bytes))
        if kind == "raw":
            self._host.raw_paths.add(path)
        return path

    def new_path(self, name: str) -> str:
        return f"/{name}"


@contextlib.contextmanager
def memory_subject(name: str, dialect: Dialect) -> Iterator[Subject]:
    """A simulated program in memory."""
    yield MemorySubject(name, dialect)


# -- behind sockets --------------------------------------------------------------------------------


class SocketChannel:
    """A real UNIX socket."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._received = b""

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds[:_FDS_MAX]))]
        if fds:
            self._socket.sendmsg([data], rights)
        else:
            self._socket.sendall(data)

    def receive_line(self, timeout_s: float) -> bytes:
        self._socket.settimeout(timeout_s)
        while b"\n" not in self._received:
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                raise Silence from None
            except ConnectionError:
                raise Closed from None
            if not data:
                raise Closed
            self._received += data
        line, self._received = self._received.split(b"\n", 1)
        return line.rstrip(b"\r")

    def close(self) -> None:
        self._socket.close()


class FileSubject:
    """What subjects with real files and sockets below one folder have in common."""

    def __init__(self, name: str, features: frozenset[Feature], directory: Path) -> None:
        self.name = name
        self.features = features
        self._directory = directory
        self._channels: list[SocketChannel] = []
        self.add_image("disk0.raw")

    def monitor_path(self, index: int) -> str:
        """Where a monitor listens."""
        return str(self._directory / f"qmp{index}.sock")

    def open_monitor(self, index: int = 0) -> Channel:
        channel = SocketChannel(self.monitor_path(index))
        self._channels.append(channel)
        return channel

    def add_image(self, name: str, *, size_bytes: int = DISK_BYTES, kind: str = "raw") -> str:
        path = self.new_path(name)
        with open(path, "wb") as file:
            if kind == "qcow2":
                file.write(_empty_qcow2(size_bytes))
            else:
                file.truncate(size_bytes)
        return path

    def new_path(self, name: str) -> str:
        return str(self._directory / name)

    def close(self) -> None:
        """Close every channel."""
        for channel in self._channels:
            channel.close()


def _empty_qcow2(size_bytes: int) -> bytes:
    """A qcow2 image (version 3) of four pieces: header, counts in two, first-level map."""
    piece = 1 << 16
    map_entries = max(1, size_bytes // (piece * (piece // 8)))
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        *(b"QFI\xfb", 3, 0, 0, 16, size_bytes, 0, map_entries, 3 * piece),
        *(piece, 1, 0, 0, 0, 0, 0, 4, 104),
    )
    counts = struct.pack(">4H", 1, 1, 1, 1)
    parts = (header, struct.pack(">Q", 2 * piece), counts, b"")
    return b"".join(part.ljust(piece, b"\0") for part in parts)


class _Served:
    """A machine with its sockets on a loop in a thread of its own."""

    def __init__(self, subject: FileSubject, dialect: Dialect) -> None:
        self._subject, self._dialect = subject, dialect
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._machine: Machine | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(_START_S)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[ProcessEnd] = loop.create_future()
        self._loop = loop
        self._machine = build_machine(
            self._dialect,
            self._subject.new_path("disk0.raw"),
            timebase=LoopTimebase(loop),
            host=RealHost(loop),
            storage=RealStorage(loop),
            on_end=ended.set_result,
        )
        servers: list[ChannelServer] = [
            serve_monitor(self._subject.monitor_path(index), monitor, loop)
            for index, monitor in enumerate(self._machine.monitors)
        ]
        self._ready.set()
        await ended
        for server in servers:
            server.close()

    def end(self) -> None:
        assert self._loop is not None
        assert self._machine is not None
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._machine.die, "SIGKILL")
        self._thread.join(_START_S)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def socket_subject(name: str, dialect: Dialect) -> Iterator[Subject]:
    """A simulated program behind real UNIX sockets, with real image files."""
    # Socket paths are short by nature; pytest's own directories are not.
    with tempfile.TemporaryDirectory(prefix="vzc-", dir=_short_directory()) as directory:
        subject = FileSubject(name, features_of(dialect) | SOCKET_FEATURES, Path(directory))
        served = _Served(subject, dialect)
        try:
            yield subject
        finally:
            subject.close()
            served.end()


def _short_directory() -> str:
    return "/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir()


def _offer(dialect: Dialect, *, in_memory: bool) -> tuple[str, Offer]:
    if in_memory:
        name = f"memory-{dialect.value}"
        return name, Offer(features_of(dialect), partial(memory_subject, name, dialect))
    name = f"sockets-{dialect.value}"
    features = features_of(dialect) | SOCKET_FEATURES
    return name, Offer(features, partial(socket_subject, name, dialect))


FAKES = dict(_offer(dialect, in_memory=where) for where in (True, False) for dialect in Dialect)
