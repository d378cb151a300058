"""A small simulated node for engine tests: one VM, its guest, and everything that was told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self

from vzdump_qemu import events
from vzdump_qemu.disk_ports import DiskOrigin, DiskReader
from vzdump_qemu.engine.attachments import RunDisk
from vzdump_qemu.engine.batch import back_up_all
from vzdump_qemu.engine.context import BatchResult, EnginePorts, RunResult
from vzdump_qemu.errors import DiskReadError
from vzdump_qemu.plan.options import BackupOptions, TargetOptions
from vzdump_qemu.stores.pbs.uploads import ClientUploads
from vzsim.fakeqmp.disks import DiskContent
from vzsim.fakeqmp.pbs_port import LoadLibrary
from vzsim.fakeqmp.run_state import RunState
from vzsim.fakeqmp.schema import Dialect
from vzsim.fakeqmp.script import GuestRules, Script
from vzsim.kernel import Chance, run_simulated
from vzsim.world.clock import SimulatedClock, SimulatedIds
from vzsim.world.commands import SimulatedCommands
from vzsim.world.files import SimulatedFiles
from vzsim.world.journal import SimulatedJournals
from vzsim.world.machine import MachineHost, SimulatedMachine, VmShape, memory_images
from vzsim.world.node import DUMP_DIRECTORY, SimulatedNode
from vzsim.world.packer import SimulatedPacker
from vzsim.world.pipes import Descriptors
from vzsim.world.restore import restore_disks
from vzsim.world.store import SimulatedStore

CONFIG = """\
agent: 1
name: web
scsi0: local:100/vm-100-disk-0.raw,size=8M
scsi1: local:100/vm-100-disk-1.raw,size=2097664
"""
DISKS = ("scsi0", "scsi1")
IMAGES = {
    "/var/lib/vz/images/100/vm-100-disk-0.raw": 8 << 20,
    "/var/lib/vz/images/100/vm-100-disk-1.raw": (2 << 20) + 512,
}


def _open_no_disk(origin: DiskOrigin) -> DiskReader:
    raise DiskReadError(f"no thread reads '{origin.device_id}' in virtual time")


class NotifierFake:
    """`JobNotifier` that keeps the event after which it was called, each time."""

    def __init__(self) -> None:
        self.told: list[events.Event] = []
        self.calls: list[events.Event] = []
        self.takes_s = 0.0

    async def job_ended(self) -> None:
        self.calls += self.told[-1:]
        await asyncio.sleep(self.takes_s)


@dataclass
class World:
    """Everything a test may arrange before, and look at after, a run."""

    config: str = CONFIG
    images: dict[str, int] = field(default_factory=lambda: dict(IMAGES))
    script: Script = field(default_factory=Script)
    options: BackupOptions = field(
        default_factory=lambda: BackupOptions(compressor=("zstd",), archive_extension=".zst")
    )
    state: RunState | None = RunState.RUNNING
    has_agent: bool = True
    shutdown_s: float = 2.0
    start_error: str = ""
    dialect: Dialect = Dialect.PVE
    seed: int = 1
    arrange: Callable[[World], None] = lambda world: None
    meanwhile: Callable[[World], Awaitable[None]] | None = None
    cancel_on: type[events.Event] | None = None
    load_pbs_library: LoadLibrary | None = None
    told: list[events.Event] = field(default_factory=list)
    notifier: NotifierFake = field(default_factory=NotifierFake)
    commands: SimulatedCommands = field(default_factory=SimulatedCommands)
    hooks: SimulatedCommands = field(default_factory=SimulatedCommands)
    qmp_log: list[str] = field(default_factory=list)

    node: SimulatedNode = field(init=False)
    store: SimulatedStore = field(init=False)
    files: SimulatedFiles = field(init=False)
    packer: SimulatedPacker = field(init=False)
    machine: SimulatedMachine = field(init=False)
    host: MachineHost = field(init=False)
    ports: EnginePorts = field(init=False, repr=False)
    clock: SimulatedClock = field(default_factory=SimulatedClock)
    journals: SimulatedJournals = field(default_factory=SimulatedJournals)

    def _build(self) -> None:
        chance = Chance(self.seed)
        self.files = SimulatedFiles()
        descriptors = Descriptors()
        images = memory_images(self.images, chance.of("disks").stream())
        self.node = SimulatedNode(self.files, images)
        self.store = SimulatedStore(self.files, descriptors)
        self.host = MachineHost(
            files=self.files,
            descriptors=descriptors,
            images=images,
            stream=chance.of("qemu").stream(),
        )
        guest = replace(self.script.guest, keep_point_in_time="kept")
        shape = VmShape(
            vmid=100,
            disks=tuple(
                (f"drive-scsi{index}", path) for index, path in enumerate(sorted(self.images))
            ),
            has_agent=self.has_agent,
            script=replace(self.script, guest=guest),
            shutdown_s=self.shutdown_s,
            start_error=self.start_error,
            dialect=self.dialect,
        )
        self.packer = SimulatedPacker(self.host.sockets, images)
        self.machine = SimulatedMachine(shape, self.host)
        self.machine.load_pbs_library = self.load_pbs_library
        self.node.machines[100] = self.machine
        self.node.configs[100] = self.config.encode()
        if self.state is not None:
            self.machine.boot(RunState.RUNNING)
            if self.state is RunState.PAUSED:
                self.machine.process.control.stop()
            self._log_commands()
        self.arrange(self)

    def _log_commands(self) -> None:
        process = self.machine.process
        carry_out = process.carry_out

        def logged(monitor: Any, name: str, arguments: Any) -> Any:
            self.qmp_log.append(name)
            return carry_out(monitor, name, arguments)

        process.carry_out = logged  # type: ignore[method-assign]

    def _emit(self, event: events.Event) -> None:
        self.told.append(event)
        self.notifier.told.append(event)
        if self.cancel_on is not None and isinstance(event, self.cancel_on):
            self.cancel()

    def cancel(self) -> None:
        """As a signal to the tool does."""
        self._task.cancel()

    def freeze_by_another(self) -> None:
        """The guest's file systems are frozen, and not by the run."""
        agent = self.machine.process.agent
        assert agent is not None
        agent.frozen_count = 1

    def engine_ports(self) -> EnginePorts:
        """What the engine is handed; once everything is built."""
        return EnginePorts(
            node=self.node,
            store=self.store,
            packer=self.packer,
            pbs=ClientUploads(clock=self.clock, open_nbd=_open_no_disk),
            journals=self.journals,
            commands=self.commands,
            hooks=self.hooks,
            clock=self.clock,
            ids=SimulatedIds(Chance(self.seed).of("tool").stream()),
            emit=self._emit,
            notifier=self.notifier,
        )

    def play(self, scene: Callable[[Self], Awaitable[None]]) -> None:
        """Let a scene of one's own, instead of a job, happen in virtual time."""

        async def played() -> None:
            await self._begin()
            await scene(self)

        run_simulated(played())

    async def _begin(self) -> None:
        self._build()
        await asyncio.sleep(1)  # the guest and its agent are up
        self.ports = self.engine_ports()

    async def run_disks(self) -> list[RunDisk]:
        """All disks of the VM, as a run knows them."""
        return [
            RunDisk(
                key=key,
                device_id=f"drive-{key}",
                facts=await self.node.storages.describe(f"local:100/vm-100-disk-{index}.raw"),
            )
            for index, key in enumerate(DISKS)
        ]

    async def _main(self) -> BatchResult | None:
        await self._begin()
        self._task = asyncio.ensure_future(back_up_all(self.ports, self.options, [100]))
        others = []
        if self.meanwhile is not None:
            others.append(asyncio.ensure_future(self.meanwhile(self)))
        try:
            return await self._task
        except asyncio.CancelledError:
            return None
        finally:
            await asyncio.gather(*others)
            await asyncio.sleep(700)  # late replies and lost requests come to light

    def run(self) -> RunResult | None:
        """Back the VM up; its result, or None if the job was cancelled or did not begin."""
        batch = run_simulated(self._main())
        self.batch = batch
        return batch.runs[0] if batch is not None and batch.runs else None

    def names(self) -> list[str]:
        """Names of all events told, in order."""
        return [type(event).__name__ for event in self.told]

    def told_of(self, kind: type[Any]) -> list[Any]:
        """All events of one kind."""
        return [event for event in self.told if isinstance(event, kind)]

    def archives(self) -> list[str]:
        """Files in the dump directory."""
        return sorted(path for path in self.files.files if path.startswith(DUMP_DIRECTORY))

    def restored(self) -> dict[str, DiskContent]:
        """Disks in the one archive there is."""
        (path,) = self.archives()
        return restore_disks(self.files.read(path))

    def assert_nothing_left(self) -> None:
        """No lock, job, descriptor, process, temporary file, handle, frozen guest."""
        assert self.node.lock_of(100) == ""
        assert self.journals.journals == {}
        assert self.host.descriptors.open_count() == 0
        assert self.store.live_compressor_count == 0
        assert self.machine.alive_handle_count == 0
        assert [path for path in self.files.files if not path.endswith(".vma.zst")] == []
        assert [path for path in self.files.directories if path.endswith(".tmp")] == []
        if self.machine.run_state is not None:
            process = self.machine.process
            assert process.backup.query().get("status") != "active"
            assert process.agent is None or not process.agent.is_frozen

    def assert_failed_clean(self, result: RunResult | None, text: str) -> None:
        """The run failed with that first cause, and left only its log."""
        assert result is not None and result.error is not None
        assert text in str(result.error)
        assert self.archives() == []
        self.assert_nothing_left()

    def assert_good(self, result: RunResult | None) -> None:
        """One whole archive of the disks as they were at the point in time."""
        assert result is not None
        assert result.error is None, result.error
        assert self.restored() == self.host.points_in_time
        self.assert_nothing_left()


STDOUT = TargetOptions(to_stdout=True)
QUIET_GUEST = GuestRules()
