"""One simulated VM of a simulated node: its QEMU process, its power, its disks and its guest.

The `Machine` and `Power` ports over `vzsim.fakeqmp`, in memory and in virtual time.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from vzdump_qemu.errors import AgentUnreachable, PowerError, QmpUnreachable
from vzdump_qemu.ports import Agent, Qmp
from vzsim.fakeqmp.disks import Disk, DiskContent, MemoryDisk, content_of
from vzsim.fakeqmp.guest import Guest
from vzsim.fakeqmp.machine import Machine as QemuMachine
from vzsim.fakeqmp.machine import MachineConfig, ProcessEnd
from vzsim.fakeqmp.outside import Sink
from vzsim.fakeqmp.pbs_port import LoadLibrary
from vzsim.fakeqmp.run_state import RunState
from vzsim.fakeqmp.schema import Dialect
from vzsim.fakeqmp.script import Script
from vzsim.kernel import Chance
from vzsim.world.channels import OneClient, open_agent, open_qmp
from vzsim.world.clock import EPOCH_S
from vzsim.world.files import SimulatedFiles
from vzsim.world.packer import SimulatedSockets, SocketStorage
from vzsim.world.pipes import Descriptors
from vzsim.world.watched import WatchedQemu, Watcher

# What disks hold are pieces of it: making up bytes takes longer than backing them up.
_NOISE_PLACE_COUNT = 1 << 20
_NOISE = Chance(0).of("noise").stream().randbytes(_NOISE_PLACE_COUNT + 4096)
POLL_S = 0.1
RUNTIME_DIRECTORY = "/var/run/qemu-server"


class LoopTimebase:
    """Virtual time for the machine."""

    def now_s(self) -> float:
        """Seconds since the epoch."""
        return EPOCH_S + asyncio.get_running_loop().time()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call once, in virtual time."""
        return asyncio.get_running_loop().call_later(delay_s, callback)


@dataclass(slots=True, kw_only=True)
class MachineHost:
    """What a simulated QEMU reaches of its node: files, descriptors, disk images."""

    files: SimulatedFiles
    descriptors: Descriptors
    images: dict[str, Disk]
    stream: random.Random
    points_in_time: dict[str, DiskContent] = field(default_factory=dict)
    sockets: SimulatedSockets = field(init=False)

    def __post_init__(self) -> None:
        self.sockets = SimulatedSockets(self.files)
        self.files.make_directories(RUNTIME_DIRECTORY)

    def new_uuid(self) -> uuid.UUID:
        """From the seed."""
        return uuid.UUID(int=self.stream.getrandbits(128), version=4)

    def read_file(self, path: str) -> bytes:
        """A file of the node."""
        return self.files.read(path)

    def open_disk(self, path: str, *, format_name: str, read_only: bool) -> Disk:
        """A disk image of the node."""
        if path not in self.images:
            raise FileNotFoundError(2, "No such file or directory", path)
        return self.images[path]

    def open_target(self, path: str) -> Sink:
        """Not offered: targets are descriptors here."""
        raise OSError(30, "Read-only file system", path)

    def remove_target(self, path: str) -> None:
        """Nothing was made."""

    def fd_sink(self, fd: int, *, keep_open: bool) -> Sink:
        """The pipe behind a descriptor that was passed."""
        return _OwnedSink(self.descriptors, self.descriptors.duplicate(fd) if keep_open else fd)

    def close_fd(self, fd: int) -> None:
        """Close QEMU's own descriptor."""
        self.descriptors.close(fd)

    def keep_disk(self, directory: str, device_id: str, disk: Disk) -> None:
        """Remember the disk as it is at this instant."""
        self.points_in_time[device_id] = content_of(disk)


class _OwnedSink:
    """A write end that is QEMU's to close."""

    def __init__(self, descriptors: Descriptors, fd: int) -> None:
        self._descriptors = descriptors
        self._fd = fd
        self._sink = descriptors.sink(fd)

    def write(self, data: memoryview) -> int:
        return self._sink.write(data)

    def when_writable(self, callback: Callable[[], None]) -> None:
        self._sink.when_writable(callback)

    def close(self) -> None:
        self._descriptors.close(self._fd)


class GuestListener(Protocol):
    """What runs in the guest, told what is done to it."""

    def freezes(self) -> None:
        """The agent is about to freeze the file systems."""

    def shuts_down(self) -> None:
        """The guest is about to switch itself off."""

    def restarts(self) -> None:
        """The guest was reset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmShape:
    """What a simulated VM is made of.

    Attributes:
        disks: device id and image path, in the order of the command line.
        has_agent: an agent channel exists.
        shutdown_s: how long the guest takes to power off; negative: it never does.
        start_error: QEMU refuses to start with this text.
        empty_drives: device ids of drives without a medium.
        no_shutdown: the process outlives its guest's power-off.
    """

    vmid: int
    disks: tuple[tuple[str, str], ...]
    has_agent: bool = True
    script: Script = field(default_factory=Script)
    dialect: Dialect = Dialect.PVE
    shutdown_s: float = 2.0
    start_error: str = ""
    empty_drives: tuple[str, ...] = ()
    no_shutdown: bool = True

    @property
    def is_odd(self) -> bool:
        """A QEMU of this shape has to be started anew to be as it should."""
        script = self.script
        is_plain = self.no_shutdown and self.dialect is Dialect.PVE
        return bool(not is_plain or self.empty_drives or script.command or script.event)


class SimulatedPower:
    """The `Power` port."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self._machine = machine

    async def start_paused(self) -> Sequence[str]:
        """QEMU with stopped processors."""
        self._machine.boot(RunState.PRELAUNCH)
        return ()

    async def start(self) -> Sequence[str]:
        """QEMU with a running guest."""
        self._machine.boot(RunState.RUNNING)
        return ()

    async def shut_down(self, *, timeout_s: float) -> Sequence[str]:
        """The guest powers off, or the time is over."""
        shutdown_s = self._machine.shape.shutdown_s
        if shutdown_s < 0 or shutdown_s > timeout_s:
            await asyncio.sleep(timeout_s)
            raise PowerError(
                f"command 'qm shutdown {self._machine.vmid} --skiplock --keepActive "
                f"--timeout {timeout_s:.0f}' failed: exit code 255"
            )
        await asyncio.sleep(shutdown_s)
        if self._machine.run_state is RunState.RUNNING:
            self._machine.process.control.guest_powers_off()
        self._machine.end_process()
        return ()

    async def stop(self) -> Sequence[str]:
        """End the process."""
        self._machine.end_process()
        return ()

    async def suspend(self) -> Sequence[str]:
        """Stop the processors."""
        self._require_process()
        self._machine.process.control.stop()
        return ()

    async def resume(self) -> Sequence[str]:
        """Let the processors run."""
        self._require_process()
        self._machine.process.control.cont()
        return ()

    def _require_process(self) -> None:
        if self._machine.run_state is None:
            raise PowerError(f"VM {self._machine.vmid} not running")


class SimulatedMachine:
    """The `Machine` port.

    Attributes:
        living: the QEMU, if one lives; `process` is the same for those who know that it does.
        booted: every QEMU there was, in order.
    """

    def __init__(self, shape: VmShape, host: MachineHost) -> None:
        self.shape = shape
        self.host = host
        self.power = SimulatedPower(self)
        self.alive_handle_count = 0
        self.guest: Guest | None = None
        self.watcher: Watcher | None = None
        self.guest_listener: GuestListener | None = None
        self.load_pbs_library: LoadLibrary | None = None
        self.living: QemuMachine | None = None
        self.booted: list[QemuMachine] = []
        self._storage: SocketStorage | None = None
        self._monitor_turn = OneClient()
        self._agent_turn = OneClient()
        self._sync_ids = itertools.count(1)

    @property
    def vmid(self) -> int:
        return self.shape.vmid

    @property
    def private_directory(self) -> str:
        """As the port says."""
        return f"{RUNTIME_DIRECTORY}/{self.vmid}.nbd"

    @property
    def boot_count(self) -> int:
        """How often a QEMU was started."""
        return len(self.booted)

    @property
    def disk_names(self) -> frozenset[str]:
        """Device ids of the VM's own disks."""
        return frozenset(name for name, _ in self.shape.disks)

    @property
    def process(self) -> QemuMachine:
        """The living QEMU; only ask while it lives."""
        assert self.living is not None, "no QEMU lives"
        return self.living

    @property
    def run_state(self) -> RunState | None:
        """State of the living QEMU, or None."""
        return None if self.living is None else self.living.control.state

    def boot(self, state: RunState) -> None:
        """Start a QEMU process. Raises PowerError."""
        if self.shape.start_error:
            raise PowerError(f"start failed: {self.shape.start_error}")
        if self.living is not None:
            raise PowerError(f"VM {self.vmid} already running")
        config = MachineConfig(
            dialect=self.shape.dialect,
            name=str(self.vmid),
            initial_state=state,
            no_shutdown=self.shape.no_shutdown,
            agent_port_id="agent0" if self.shape.has_agent else None,
        )
        self._storage = SocketStorage(self.host.sockets, self.host.images)
        process = WatchedQemu(
            config,
            storage=self._storage,
            load_pbs_library=self.load_pbs_library,
            watcher=self.watcher,
            script=self.shape.script,
            timebase=LoopTimebase(),
            host=self.host,
            on_end=self._ended,
        )
        for device_id, path in self.shape.disks:
            disk = self.host.open_disk(path, format_name="raw", read_only=False)
            process.block.add_disk(device_id, disk)
        for device_id in self.shape.empty_drives:
            process.block.add_drive({"id": device_id, "media": "cdrom"})
        process.add_monitor()
        if self.guest_listener is not None:
            process.on_guest_freeze = self.guest_listener.freezes
        self.living = process
        self.booted.append(process)
        process.start()
        self.guest = Guest(process)
        self.guest.start()

    def end_process(self) -> None:
        """The process is gone."""
        if self.living is not None:
            self.living.die("")

    def _ended(self, end: ProcessEnd) -> None:
        process, self.living = self.living, None
        if self._storage is not None:
            self._storage.end()
        if process is not None:
            for monitor in process.monitors:
                monitor.hang_up()

    async def has_backup_job(self) -> bool:
        """As the port says."""
        return self.shape.dialect is Dialect.PVE

    async def is_running(self) -> bool:
        """Whether a QEMU lives."""
        return self.living is not None

    def connect_qmp(self, *, timeout_s: float) -> AbstractAsyncContextManager[Qmp]:
        """As the port says."""
        if self.living is None:
            raise QmpUnreachable(f"VM {self.vmid} not running")
        return open_qmp(
            self.living.monitors[0],
            self._monitor_turn,
            timeout_s=timeout_s,
            duplicate_fd=self.host.descriptors.duplicate,
        )

    def connect_agent(self, *, timeout_s: float) -> AbstractAsyncContextManager[Agent]:
        """As the port says."""
        if self.living is None or self.living.agent is None:
            raise AgentUnreachable("no agent socket")
        return open_agent(
            self.living.agent,
            self._agent_turn,
            timeout_s=timeout_s,
            sync_ids=lambda: next(self._sync_ids),
        )

    @asynccontextmanager
    async def keep_alive(self) -> AsyncIterator[None]:
        """Counts the handles that are held."""
        self.alive_handle_count += 1
        try:
            yield
        finally:
            self.alive_handle_count -= 1


def memory_images(sizes: dict[str, int], stream: random.Random) -> dict[str, Disk]:
    """Disk images with seeded content: about half data, half holes.

    Args:
        sizes: bytes per image path, multiples of 512.
    """
    images: dict[str, Disk] = {}
    for path, size_bytes in sizes.items():
        disk = MemoryDisk(size_bytes=size_bytes)
        for offset in range(0, size_bytes, 65536):
            if stream.random() < 0.5:
                at = int(stream.random() * _NOISE_PLACE_COUNT)
                disk.write(offset, _NOISE[at : at + min(4096, size_bytes - offset)])
        images[path] = disk
    return images
