"""One simulated node as a scenario describes it, with everybody in it who is not the tool.

Owns the world of a run: building it, watching it, what operators and guests do in it, and its
healing. Running a tool in it and judging is left to `vzsim.single_trial`.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vzdump_qemu.units import MIB
from vzsim.event_log import EventLog, Lane
from vzsim.evidence import Evidence, Observed, Rest
from vzsim.fakeqmp.disks import Disk, DiskContent, content_of
from vzsim.fakeqmp.machine import Machine
from vzsim.fakeqmp.run_state import RunState
from vzsim.fakeqmp.schema import Dialect
from vzsim.fakeqmp.script import AgentRules, BackupRules, GuestRules, Script
from vzsim.faults import Kind
from vzsim.kernel import Chance, SimulatedLoop
from vzsim.others import Others
from vzsim.scenario import Scenario
from vzsim.world.clock import SimulatedClock
from vzsim.world.commands import SimulatedCommands
from vzsim.world.files import SimulatedFiles
from vzsim.world.hooks import SimulatedHooks
from vzsim.world.journal import SimulatedJournals
from vzsim.world.machine import MachineHost, SimulatedMachine, VmShape, memory_images
from vzsim.world.node import DUMP_DIRECTORY, PROTECTED_SUFFIX, SimulatedNode
from vzsim.world.packer import SimulatedPacker
from vzsim.world.pipes import Descriptors
from vzsim.world.store import CompressorRules, SimulatedStore
from vzsim.world.writer import GuestWriter

if TYPE_CHECKING:
    from vzsim.world.backup_server import SimulatedBackupServer

VMID = 100
SECRET = "hunter2hunter2"
_IMAGE_FOLDER = "/var/lib/vz/images"
# A storage that allocates in such steps has more room than the EFI variables need.
_EFI_VOLUME_BYTES = 4 * MIB
_LOCK_PATIENCE_S = 600.0
_QUIET_EVENTS = frozenset({"JOB_STATUS_CHANGE"})
# Room for everything, should the target have been full.
_ROOMY_BYTES = 1 << 50
# From here a VM comes back only by being started anew.
_DEAD_ENDS = (RunState.SHUTDOWN, RunState.GUEST_PANICKED, RunState.POSTMIGRATE)
_QUIET_COMMANDS = frozenset({"qmp_capabilities"})
_VM_IN_PATH = re.compile(r"(?:-qemu-|/vm-|/vzdumptmp[0-9]+_)([0-9]+)|/([0-9]+)(?:\.nbd)?(?:/|\Z)")
# What changes a VM; only who holds its lock may do so.
_CHANGES = frozenset(
    {
        "backup",
        "backup-cancel",
        "blockdev-add",
        "blockdev-del",
        "closefd",
        "cont",
        "getfd",
        "human-monitor-command",
        "quit",
        "stop",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What the VMs of one node share, each of them in a scene of its own."""

    files: SimulatedFiles = field(default_factory=SimulatedFiles)
    clock: SimulatedClock = field(default_factory=SimulatedClock)
    commands: SimulatedCommands = field(default_factory=SimulatedCommands)
    hooks: SimulatedHooks = field(default_factory=SimulatedHooks)


class Scene:
    """The world of one run: one VM, and the node around it.

    Args:
        common: of a node with more VMs; None for a node with this one only.
    """

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        loop: SimulatedLoop,
        *,
        vmid: int = VMID,
        common: Common | None = None,
    ) -> None:
        chance = Chance(seed) if common is None else Chance(seed).of(f"vm{vmid}")
        self.vmid = vmid
        self.scenario = scenario
        self.loop = loop
        self.log = EventLog(loop.time_ns)
        self.observed = Observed()
        self._is_alone = common is None
        common = common or Common()
        self.files = common.files
        self.clock = common.clock
        self.commands = common.commands
        self.hooks = common.hooks
        self.journals = SimulatedJournals()
        descriptors = Descriptors()
        folder = f"{_IMAGE_FOLDER}/{vmid}"
        self.tpm_path = f"{folder}/vm-{vmid}-tpm.raw"
        self._efi_path = f"{folder}/vm-{vmid}-efi.raw"
        self._disk_paths: dict[str, str] = {}
        images = self._make_images(folder, chance.of("disks").stream())
        self._own_images = frozenset(images)
        self.node = SimulatedNode(self.files, images)
        self.node.storages.volume_bytes[self._efi_path] = _EFI_VOLUME_BYTES
        self.node.storages.fleecing_bytes = scenario.fleecing_bytes
        self.store = self._make_store(descriptors)
        self.host = MachineHost(
            files=self.files,
            descriptors=descriptors,
            images=images,
            stream=chance.of("qemu").stream(),
        )
        self.packer = SimulatedPacker(self.host.sockets, images)
        self.machine = SimulatedMachine(self._shape(), self.host)
        self.machine.watcher = self
        self.writer = GuestWriter(
            self.machine,
            writes_per_s=scenario.guest_writes_per_s,
            stream=chance.of("guest").stream(),
        )
        self.node.machines[vmid] = self.machine
        self.node.configs[vmid] = self._config()
        self.server: SimulatedBackupServer | None = None
        if scenario.options.get("storage"):
            self.server = self._add_server(chance.of("server").stream())
        self._own_files = frozenset(self.files.files)
        self.older: dict[str, bytes] = {}
        self.older_marks: dict[str, str] = {}
        self.others = Others(self, chance.of("power").stream())

    def _make_store(self, descriptors: Descriptors) -> SimulatedStore:
        scenario = self.scenario
        store = SimulatedStore(self.files, descriptors)
        store.compressor = scenario.compressor
        if scenario.pipe_bytes:
            store.pipe_bytes = scenario.pipe_bytes
        if scenario.target_bytes:
            self.files.capacity_bytes = scenario.target_bytes
        return store

    def _make_images(self, folder: str, stream: random.Random) -> dict[str, Disk]:
        """The disks of the VM, by path; those that QEMU has are noted by their device ids."""
        scenario = self.scenario
        sizes = {
            f"{folder}/vm-{self.vmid}-disk-{index}.raw": size_bytes
            for index, size_bytes in enumerate(scenario.disks)
        }
        self._disk_paths = {f"drive-scsi{at}": path for at, path in enumerate(sizes)}
        if scenario.tpm_bytes:
            sizes[self.tpm_path] = scenario.tpm_bytes
        if scenario.efi_bytes:
            sizes[self._efi_path] = scenario.efi_bytes
            self._disk_paths["drive-efidisk0"] = self._efi_path
        return memory_images(sizes, stream)

    def _add_server(self, stream: random.Random) -> SimulatedBackupServer:
        # Not every world has one, and HTTP/2 takes its time to be loaded.
        from vzsim.pbs_client import memory_library
        from vzsim.world.backup_server import STORAGE_ID, SimulatedBackupServer

        server = SimulatedBackupServer(stream, secret=SECRET, vmid=self.vmid)
        target = server.target(self.files, is_encrypted=self.scenario.is_encrypted)
        self.node.storages.servers[STORAGE_ID] = target
        self.machine.load_pbs_library = lambda: memory_library(
            server, clock=self.clock, chance=stream.randbytes
        )
        return server

    def _shape(self) -> VmShape:
        scenario = self.scenario
        empty = tuple(f"drive-{key}" for key in scenario.empty_disks)
        absent = {*empty, *(f"drive-{key}" for key in scenario.missing_disks)}
        return VmShape(
            vmid=self.vmid,
            disks=tuple(entry for entry in self._disk_paths.items() if entry[0] not in absent),
            empty_drives=empty,
            has_agent=scenario.has_agent,
            script=Script(
                command=scenario.command,
                event=scenario.event,
                agent=scenario.agent,
                backup=scenario.backup,
                guest=GuestRules(keep_point_in_time="kept"),
            ),
            dialect=scenario.dialect,
            no_shutdown=scenario.no_shutdown,
            shutdown_s=scenario.shutdown_s,
        )

    def _config(self) -> bytes:
        vmid = self.vmid
        lines = [f"lock: {self.scenario.lock}"] if self.scenario.lock else []
        lines += ["agent: 1", f"cipassword: {SECRET}", "name: web"]
        lines += [
            f"scsi{index}: local:{vmid}/vm-{vmid}-disk-{index}.raw,size={size_bytes}"
            for index, size_bytes in enumerate(self.scenario.disks)
        ]
        if self.scenario.efi_bytes:
            lines.append(f"efidisk0: local:{vmid}/vm-{vmid}-efi.raw,efitype=4m,size=4M")
        if self.scenario.tpm_bytes:
            lines.append(f"tpmstate0: local:{vmid}/vm-{vmid}-tpm.raw,size=4M,version=v2.0")
        return "".join(line + "\n" for line in lines).encode()

    async def begin(self) -> None:
        """Everything is up as the scenario says."""
        names = [f"2025_12_0{index + 1}-03_04_05" for index in range(self.scenario.older_archives)]
        for index, name in enumerate([*names, *self.scenario.older_names]):
            path = f"{DUMP_DIRECTORY}/vzdump-qemu-{self.vmid}-{name}.vma.zst"
            self.files.create(path)
            self.files.append(path, f"older archive {index}".encode())
            self.older[path] = self.files.read(path)
            if index < self.scenario.protected_archives:
                self.files.create(path + PROTECTED_SUFFIX)
                self.older[path + PROTECTED_SUFFIX] = b""
        self.files.settle()
        self._boot()
        self.others.begin()
        # A guest that was at work before anybody came.
        self.writer.start()
        await asyncio.sleep(1)

    def _boot(self) -> None:
        """The VM as the scenario says."""
        match self.scenario.state:
            case "stopped":
                return
            case "postmigrate":
                self.machine.boot(RunState.POSTMIGRATE)
                return
        self.machine.boot(RunState.RUNNING)
        control = self.machine.process.control
        if self.scenario.state == "paused":
            control.stop()
        elif self.scenario.state == "suspended":
            control.guest_suspends()

    # -- watching ------------------------------------------------------------------------------

    def look(self) -> None:
        """Notice what holds at this instant."""
        observed, process = self.observed, self.machine.living
        state = None if process is None else process.control.state
        halted = state is not RunState.RUNNING
        agent = None if halted or process is None else process.agent
        # A guest that stands still anyway misses nothing by being frozen, and cannot be thawed.
        frozen = agent is not None and agent.frozen_count > 0
        # (Time and again there is nothing new: then it takes no call.)
        was_halted = observed.halted.since_s is not None
        if halted is was_halted and frozen is (observed.frozen.since_s is not None):
            return
        now_s = self.loop.time()
        if observed.frozen.look(holds=frozen, now_s=now_s):
            self.log.tell(Lane.GUEST, "frozen" if frozen else "thawed")
        if observed.halted.look(holds=halted, now_s=now_s):
            self.log.tell(Lane.GUEST, f"stands still ({_name(state)})" if halted else "runs")

    def command_came(self, name: str, arguments: Mapping[str, Any]) -> None:
        """A QMP command is about to be carried out."""
        self.look()
        if name not in _QUIET_COMMANDS:
            self.log.tell(Lane.QEMU, f"obeys {name}")
        if name in ("backup", "blockdev-reopen"):
            self.writer.hurry()
        if name in _CHANGES and self._was_unlocked() and not self.others.is_acting:
            self.observed.unlocked_acts.append(name)
        if name == "query-backup":
            self.others.note_query()
        if name in ("backup-cancel", "block-job-cancel"):
            self.others.note_cancel(name)

    def _was_unlocked(self) -> bool:
        """The tool had the VM's lock and gave it back, without long patience with a deaf QEMU.

        Its operator has to get at such a VM; what the tool still has inside bears its own names.
        """
        lock_log, held_s = self.node.lock_log, self.node.lock_held_s
        return bool(lock_log) and lock_log[-1].startswith("unlock") and held_s < _LOCK_PATIENCE_S

    def active_job(self) -> str:
        """The tool's own backup job, if one is active now."""
        run = self.machine.process.backup.run if self.machine.run_state is not None else None
        return "backup" if run is not None and not self.others.has_foreign_job else ""

    def event_was_sent(self, name: str, data: Mapping[str, Any]) -> None:
        """QEMU spoke."""
        if name not in _QUIET_EVENTS:
            self.log.tell(Lane.AGENT if name.startswith("VSERPORT") else Lane.QEMU, name)
        if name == "RESET":
            self.writer.restarts()
        elif name == "SHUTDOWN" and data.get("guest"):
            self.writer.shuts_down()

    def point_in_time_came(self) -> None:
        """A job fixed what it stands for."""
        agent = self.machine.process.agent
        if not self.others.is_acting:
            self.observed.point_in_time_count += 1
            self.observed.was_frozen_at_point_in_time = agent is not None and agent.is_frozen
            self.observed.guest_mark = self.writer.mark()

    def tell(self, line: str) -> None:
        """A line of the tool's own log."""
        self.log.tell(Lane.TOOL, line)
        self.observed.public_lines.append(line)

    def guest_stands(self, vmid: int) -> bool:
        """Whether the guest was found running and does not run now."""
        return self.scenario.state == "running" and self.machine.run_state is not RunState.RUNNING

    def actors(self) -> dict[Kind, Callable[[float], None]]:
        """What others do at a moment that a fault script names."""
        return self.others.actors()

    # -- one attempt ---------------------------------------------------------------------------

    def begin_attempt(self) -> dict[str, DiskContent]:
        """What was noticed so far is forgotten; returns `look_at_still_disks`."""
        self.writer.record = type(self.writer.record)()
        self.observed = replace(self.observed, writes=self.writer.record)
        self.host.points_in_time.clear()
        self.node.lock_log.clear()
        return self.look_at_still_disks()

    def look_at_still_disks(self) -> dict[str, DiskContent]:
        """The disks of a VM that is off: without a job their point in time is always now."""
        if self.machine.run_state is not None:
            return {}
        self.observed.guest_mark = self.writer.mark()
        images = {name: self.host.images[path] for name, path in self.machine.shape.disks}
        return {name: content_of(disk) for name, disk in images.items()}

    def keep_older(self, evidence: Evidence) -> None:
        """What the attempt left is what was there before the next one."""
        self.older.update(evidence.new_archives())
        self.older = {path: data for path, data in self.older.items() if path in self.files.files}

    # -- rest ----------------------------------------------------------------------------------

    def collect(self) -> Rest:
        """Everything that is there now."""
        state = self.machine.run_state
        process = self.machine.process if state is not None else None
        run = process.backup.run if process is not None else None
        agent = process.agent if process is not None else None
        lock = self.node.lock_of(self.vmid)
        is_foreign = run is not None and self.others.has_foreign_job
        others_count = int(is_foreign) + len(self.others.leaked_fds)
        ours = self._ours_among(self.files.files)
        return Rest(
            files={
                path: bytes(self.files.files[path].content)
                for path in ours
                if path not in self._own_files
            },
            directories=self._ours_among(self.files.directories),
            lock="" if lock in (self.scenario.lock, self.others.taken_lock) else lock,
            foreign_lock=lock,
            open_descriptor_count=self.host.descriptors.open_count() - others_count,
            live_compressor_count=self.store.live_compressor_count,
            alive_handle_count=self.machine.alive_handle_count,
            run_state="" if state is None else state.value,
            is_frozen=agent is not None and agent.is_frozen,
            can_thaw=(
                agent is not None
                and agent.is_up
                and agent.rules.thaw_error is None
                and state is RunState.RUNNING
            ),
            active_job=self.active_job(),
            extra_nodes=_named_nodes(process),
            extra_images=tuple(sorted(set(self.host.images) - self._own_images)),
            recorded_fleecing=tuple(self.node.fleecing_records.get(self.vmid, ())),
            stdout=bytes(self.store.stdout),
            server=None if self.server is None else self.server.look(self.older_marks),
            undurable=tuple(path for path in ours if not self.files.is_durable(path)),
            journalled=tuple(
                " ".join((reversal.kind.value, *reversal.names))
                for journal in self.journals.journals.values()
                for _, reversal in journal.open_entries
            ),
        )

    def _ours_among(self, paths: Iterable[str]) -> tuple[str, ...]:
        """Files or directories of the node that are this VM's, sorted."""
        if not self._is_alone:
            paths = [path for path in paths if vm_of_path(path) == self.vmid]
        return tuple(sorted(paths))

    def dissolve(self) -> None:
        """Nobody looks at this world again: all that its parts know of each other goes."""
        for process in self.machine.booted:
            process.dissolve()
        for part in (self.machine, self.writer, self.others, self):
            vars(part).clear()

    async def heal(self) -> None:
        """What a good operator would do: everything works again, nothing is cleaned up."""
        self.files.fault = lambda operation, path: None
        self.files.capacity_bytes = max(self.files.capacity_bytes, _ROOMY_BYTES)
        self.node.storages.fleecing_bytes = 0
        self.store.compressor = CompressorRules()
        self.store.stdout.clear()
        self.others.heal()
        if self.server is not None:
            self.server.heal(self.files)
        if self.node.lock_of(self.vmid):
            config = self.node.configs[self.vmid]
            self.node.configs[self.vmid] = config.partition(b"\n")[2]
        self._heal_machine()
        self.observed = Observed(writes=self.writer.record)
        await asyncio.sleep(5)

    def _heal_machine(self) -> None:
        machine, scenario = self.machine, self.scenario
        was_odd = machine.shape.is_odd or machine.run_state in _DEAD_ENDS
        script = machine.shape.script
        machine.shape = replace(
            machine.shape,
            disks=tuple(self._disk_paths.items()),
            empty_drives=(),
            script=Script(
                agent=AgentRules(state=script.agent.state),
                backup=BackupRules(bytes_per_s=script.backup.bytes_per_s),
                guest=script.guest,
            ),
            dialect=Dialect.PVE,
            no_shutdown=True,
            shutdown_s=abs(scenario.shutdown_s),
        )
        # Of one that was migrated the guest runs elsewhere.
        is_off = scenario.state in ("stopped", "postmigrate")
        if was_odd or is_off or self._lacks_a_disk():
            machine.end_process()
        if machine.run_state is None:
            if is_off:
                return
            machine.boot(RunState.RUNNING)
        process = machine.process
        process.script = machine.shape.script
        if process.agent is not None:
            process.agent.rules = process.script.agent
            process.agent.frozen_count = 0
        if machine.run_state is RunState.SUSPENDED:
            process.control.wake_up()
        if scenario.state == "paused":
            process.control.stop()
        else:
            process.control.cont()
        if scenario.state == "suspended":
            process.control.guest_suspends()

    def _lacks_a_disk(self) -> bool:
        if self.machine.run_state is None:
            return False
        block = self.machine.process.block
        return any(block.backend(name) is None for name in self._disk_paths)


# More than there are files on a node: each is asked about time and again.
@lru_cache(maxsize=4096)
def vm_of_path(path: str) -> int:
    """Whose a file of the node is by its name; 0 for nobody's."""
    found = _VM_IN_PATH.search(path)
    return int(found[1] or found[2]) if found else 0


def _name(state: RunState | None) -> str:
    return "off" if state is None else state.value


def _named_nodes(process: Machine | None) -> tuple[str, ...]:
    """Block nodes that somebody added by name; a VM's own have names of QEMU's making."""
    if process is None:
        return ()
    names = {str(node["node-name"]) for node in process.block.describe_nodes()}
    return tuple(sorted(name for name in names if not name.startswith("#")))
