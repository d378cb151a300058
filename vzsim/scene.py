"""One simulated node as a scenario describes it, with everybody in it who is not the tool.

Owns the world of a run: building it, watching it, what operators and guests do in it, and its
healing. Running a tool in it and judging is left to `vzsim.simulation`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from vzsim.event_log import EventLog, Lane
from vzsim.evidence import Observed, Rest
from vzsim.fakeqmp.run_state import RunState
from vzsim.fakeqmp.script import GuestRules, Script
from vzsim.faults import Kind
from vzsim.kernel import Chance, SimulatedLoop
from vzsim.scenario import Scenario
from vzsim.world.clock import SimulatedClock
from vzsim.world.commands import SimulatedCommands
from vzsim.world.files import SimulatedFiles
from vzsim.world.journal import SimulatedJournals
from vzsim.world.machine import MachineHost, SimulatedMachine, VmShape, memory_images
from vzsim.world.node import DUMP_DIRECTORY, SimulatedNode
from vzsim.world.pipes import Descriptors, SimulatedPipe
from vzsim.world.store import CompressorRules, SimulatedStore
from vzsim.world.writer import GuestWriter

VMID = 100
SECRET = "hunter2hunter2"
_IMAGE_FOLDER = "/var/lib/vz/images"
_TPM_PATH = f"{_IMAGE_FOLDER}/{VMID}/vm-{VMID}-tpm.raw"
_QUIET_EVENTS = frozenset({"JOB_STATUS_CHANGE"})
_OBEDIENT_SHUTDOWN_S = 2.0
_QUIET_COMMANDS = frozenset({"qmp_capabilities"})
_FOREIGN_JOB_BYTES_PER_S = 16384


class Scene:
    """The world of one run."""

    def __init__(self, scenario: Scenario, seed: int, loop: SimulatedLoop) -> None:
        chance = Chance(seed)
        self.scenario = scenario
        self.loop = loop
        self.log = EventLog(loop.time_ns)
        self.observed = Observed()
        self.files = SimulatedFiles()
        self.clock = SimulatedClock()
        self.commands = SimulatedCommands()
        self.journals = SimulatedJournals()
        descriptors = Descriptors()
        sizes = {
            f"{_IMAGE_FOLDER}/{VMID}/vm-{VMID}-disk-{index}.raw": size_bytes
            for index, size_bytes in enumerate(scenario.disks)
        }
        extra = {_TPM_PATH: scenario.tpm_bytes} if scenario.tpm_bytes else {}
        images = memory_images({**sizes, **extra}, chance.of("disks").stream())
        self._own_images = frozenset(images)
        self.node = SimulatedNode(self.files, images)
        self.store = SimulatedStore(self.files, descriptors)
        self.host = MachineHost(
            files=self.files,
            descriptors=descriptors,
            images=images,
            stream=chance.of("qemu").stream(),
        )
        self.machine = SimulatedMachine(
            VmShape(
                vmid=VMID,
                disks=tuple((f"drive-scsi{at}", path) for at, path in enumerate(sizes)),
                has_agent=scenario.has_agent,
                script=Script(
                    agent=scenario.agent,
                    backup=scenario.backup,
                    guest=GuestRules(keep_point_in_time="kept"),
                ),
                shutdown_s=scenario.shutdown_s,
            ),
            self.host,
        )
        self.machine.watcher = self
        self.writer = GuestWriter(
            self.machine,
            writes_per_s=scenario.guest_writes_per_s,
            stream=chance.of("guest").stream(),
        )
        self.node.machines[VMID] = self.machine
        self.node.configs[VMID] = self._config()
        self.older: dict[str, bytes] = {}
        self._others_act = False
        self._foreign_job = False
        self._foreign_reader: asyncio.Task[None] | None = None

    def _config(self) -> bytes:
        lines = [f"lock: {self.scenario.lock}"] if self.scenario.lock else []
        lines += ["agent: 1", f"cipassword: {SECRET}", "name: web"]
        lines += [
            f"scsi{index}: local:{VMID}/vm-{VMID}-disk-{index}.raw,size={size_bytes}"
            for index, size_bytes in enumerate(self.scenario.disks)
        ]
        if self.scenario.tpm_bytes:
            lines.append(f"tpmstate0: local:{VMID}/vm-{VMID}-tpm.raw,size=4M,version=v2.0")
        return "".join(line + "\n" for line in lines).encode()

    async def begin(self) -> None:
        """Everything is up as the scenario says."""
        for index in range(self.scenario.older_archives):
            path = f"{DUMP_DIRECTORY}/vzdump-qemu-{VMID}-2025_12_0{index + 1}-03_04_05.vma.zst"
            self.files.create(path)
            self.files.append(path, f"older archive {index}".encode())
            self.older[path] = self.files.read(path)
        if self.scenario.state != "stopped":
            self.machine.boot(RunState.RUNNING)
            if self.scenario.state == "paused":
                self.machine.process.control.stop()
        if self.scenario.foreign_job:
            await self._start_foreign_job()
        await asyncio.sleep(1)

    async def _start_foreign_job(self) -> None:
        """Another tool backs this VM up already, to a place of its own."""
        process = self.machine.process
        pipe = SimulatedPipe()
        fd = self.host.descriptors.open(pipe)
        self.files.create("/var/tmp/other.conf")
        self._others_act = True
        process.script = _with_pace(process.script, _FOREIGN_JOB_BYTES_PER_S)
        async with self.machine.connect_qmp(timeout_s=5) as qmp:
            await qmp.execute_with_fd("getfd", {"fdname": "other"}, fd, timeout_s=5)
            self.host.descriptors.close(fd)
            await qmp.execute(
                "backup",
                {"backup-file": "/dev/fdname/other", "devlist": "drive-scsi0"},
                timeout_s=5,
            )
        self._others_act = False
        self._foreign_job = True
        self.files.unlink("/var/tmp/other.conf")
        self._foreign_reader = asyncio.ensure_future(_read_all(pipe))

    # -- watching ------------------------------------------------------------------------------

    def look(self) -> None:
        """Notice what holds at this instant."""
        now_s = self.loop.time()
        machine = self.machine
        state = machine.run_state
        agent = machine.process.agent if state is not None else None
        # A guest that stands still anyway misses nothing by being frozen, and cannot be thawed.
        frozen = agent is not None and agent.is_frozen and state is RunState.RUNNING
        if self.observed.frozen.look(holds=frozen, now_s=now_s):
            self.log.tell(Lane.GUEST, "frozen" if frozen else "thawed")
        halted = state is not RunState.RUNNING
        if self.observed.halted.look(holds=halted, now_s=now_s):
            self.log.tell(Lane.GUEST, f"stands still ({_name(state)})" if halted else "runs")

    def command_came(self, name: str, arguments: Mapping[str, Any]) -> None:
        """A QMP command is about to be carried out."""
        self.look()
        if name not in _QUIET_COMMANDS:
            self.log.tell(Lane.QEMU, f"obeys {name}")
        if name == "backup":
            self.writer.hurry()
        if name in ("backup-cancel", "block-job-cancel") and not self._others_act:
            run = self.machine.process.backup.run
            if run is not None and self._foreign_job:
                self.observed.foreign_harms.append(f"{name} was sent to another's job")

    def command_ended(self, name: str, outcome: Any) -> None:
        """Nothing to note."""

    def event_was_sent(self, name: str, data: Mapping[str, Any]) -> None:
        """QEMU spoke."""
        if name not in _QUIET_EVENTS:
            self.log.tell(Lane.AGENT if name.startswith("VSERPORT") else Lane.QEMU, name)

    def point_in_time_came(self) -> None:
        """A job fixed what it stands for."""
        agent = self.machine.process.agent
        if not self._others_act:
            self.observed.point_in_time_count += 1
            self.observed.was_frozen_at_point_in_time = agent is not None and agent.is_frozen

    def tell(self, line: str) -> None:
        """A line of the tool's own log."""
        self.log.tell(Lane.TOOL, line)
        self.observed.public_lines.append(line)

    # -- others --------------------------------------------------------------------------------

    def actors(self) -> dict[Kind, Callable[[float], None]]:
        """What others do at a moment that a fault script names."""
        return {
            Kind.PAUSE_VM: self._pause,
            Kind.START_VM: self._start,
            Kind.CANCEL_JOB: self._cancel_job,
            Kind.QEMU_DIES: self._qemu_dies,
            Kind.GUEST_POWERS_OFF: self._power_off,
            Kind.GUEST_RESETS: self._reset,
            Kind.CLOCK_BACK: self._set_clock_back,
        }

    def _pause(self, length_s: float) -> None:
        if self.machine.run_state is RunState.RUNNING:
            self.machine.process.control.stop()
            self.observed.operator_paused = True

    def _start(self, length_s: float) -> None:
        match self.machine.run_state:
            case None:
                self.machine.boot(RunState.RUNNING)
                self.observed.operator_started = True
            case RunState.PAUSED | RunState.PRELAUNCH:
                self.machine.process.control.cont()
                self.observed.operator_started = True

    def _cancel_job(self, length_s: float) -> None:
        if self.machine.run_state is not None:
            self.machine.process.backup.cancel()

    def _qemu_dies(self, length_s: float) -> None:
        if self.machine.run_state is not None:
            self.machine.end_process()

    def _power_off(self, length_s: float) -> None:
        if self.machine.run_state is RunState.RUNNING:
            self.machine.process.control.guest_powers_off()
            self.observed.guest_went_off = True

    def _reset(self, length_s: float) -> None:
        if self.machine.run_state is RunState.RUNNING:
            self.machine.process.control.guest_resets()

    def _set_clock_back(self, length_s: float) -> None:
        self.clock.skew_s -= length_s

    # -- rest ----------------------------------------------------------------------------------

    def collect(self) -> Rest:
        """Everything that is there now."""
        state = self.machine.run_state
        process = self.machine.process if state is not None else None
        run = process.backup.run if process is not None else None
        nodes = [name for name, _ in process.block.disks()] if process is not None else []
        agent = process.agent if process is not None else None
        lock = self.node.lock_of(VMID)
        foreign_count = int(run is not None and self._foreign_job)
        return Rest(
            files={path: bytes(file.content) for path, file in sorted(self.files.files.items())},
            directories=tuple(sorted(self.files.directories)),
            lock="" if lock == self.scenario.lock else lock,
            foreign_lock=lock,
            open_descriptor_count=self.host.descriptors.open_count() - foreign_count,
            live_compressor_count=self.store.live_compressor_count,
            alive_handle_count=self.machine.alive_handle_count,
            run_state="" if state is None else state.value,
            is_frozen=agent is not None and agent.is_frozen,
            can_thaw=agent is not None and agent.is_up and state is RunState.RUNNING,
            active_job="backup" if run is not None and not self._foreign_job else "",
            extra_nodes=tuple(sorted(set(nodes) - self.machine.disk_names)),
            extra_images=tuple(sorted(set(self.host.images) - self._own_images)),
            recorded_fleecing=tuple(self.node.fleecing_records.get(VMID, ())),
            stdout=bytes(self.store.stdout),
            journalled=tuple(
                " ".join((reversal.kind.value, *reversal.names))
                for journal in self.journals.journals.values()
                for _, reversal in journal.open_entries
            ),
        )

    async def heal(self) -> None:
        """What a good operator would do: everything works again, nothing is cleaned up."""
        self.files.fault = lambda operation, path: None
        self.store.compressor = CompressorRules()
        self.store.stdout.clear()
        if self.scenario.shutdown_s < 0:
            self.machine.shape = replace(self.machine.shape, shutdown_s=_OBEDIENT_SHUTDOWN_S)
        if self.node.lock_of(VMID):
            config = self.node.configs[VMID]
            self.node.configs[VMID] = config.partition(b"\n")[2]
        wants = self.scenario.state
        if self.machine.run_state is RunState.SHUTDOWN:
            self.machine.end_process()
        if wants == "stopped":
            self.machine.end_process()
        elif self.machine.run_state is None:
            self.machine.boot(RunState.RUNNING)
        if self.machine.run_state is not None:
            process = self.machine.process
            process.script = self.machine.shape.script
            if process.agent is not None:
                process.agent.frozen_count = 0
            if self._foreign_job:
                process.backup.cancel()
                self._foreign_job = False
            if wants == "paused":
                process.control.stop()
            else:
                process.control.cont()
        self.observed = Observed(writes=self.writer.record)
        await asyncio.sleep(5)


def _name(state: RunState | None) -> str:
    return "off" if state is None else state.value


def _with_pace(script: Script, bytes_per_s: int) -> Script:
    return replace(script, backup=replace(script.backup, bytes_per_s=bytes_per_s))


async def _read_all(pipe: SimulatedPipe) -> None:
    while await pipe.read(1 << 20):
        pass
