"""Several small simulated VMs on one node, for tests of jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tests.engine.world import World
from vzdump_qemu import events
from vzdump_qemu.engine.batch import back_up_all
from vzdump_qemu.engine.context import BatchResult, EnginePorts
from vzsim.fakeqmp.run_state import RunState
from vzsim.fakeqmp.script import AgentRules, Script
from vzsim.kernel import Chance, run_simulated
from vzsim.world.machine import MachineHost, SimulatedMachine, VmShape, memory_images
from vzsim.world.restore import restore_disks

VMIDS = (100, 101, 102, 103)
SIZE_BYTES = 1 << 20


@dataclass
class Fleet(World):
    """VMs 100 to 103, each with a guest that takes a second to freeze.

    Attributes:
        storage_of: the storage of each VM's disk; ``local`` if nothing is said.
        heard: every event with the VM whose run said it, None for the job's.
        most_at_once: how many runs went on at one instant at most.
    """

    script: Script = field(default_factory=lambda: Script(agent=AgentRules(freeze_delay_s=1.0)))
    vmids: tuple[int, ...] = VMIDS
    storage_of: dict[int, str] = field(default_factory=dict)
    on_event: Callable[[int | None, events.Event], None] = lambda vmid, event: None
    heard: list[tuple[int | None, events.Event]] = field(default_factory=list)
    most_at_once: int = 0
    hosts: dict[int, MachineHost] = field(default_factory=dict)
    _open: set[int] = field(default_factory=set)

    def _build(self) -> None:
        self.images = {_image(vmid): SIZE_BYTES for vmid in VMIDS[:1]}
        self.config = _config(100, self.storage_of)
        super()._build()
        images = self.host.images
        for vmid in VMIDS[1:]:
            chance = Chance(self.seed + vmid)
            own = memory_images({_image(vmid): SIZE_BYTES}, chance.of("disks").stream())
            images.update(own)
            host = self.hosts[vmid] = MachineHost(
                files=self.files,
                descriptors=self.host.descriptors,
                images=images,
                stream=chance.of("qemu").stream(),
            )
            shape = VmShape(
                vmid=vmid,
                disks=(("drive-scsi0", _image(vmid)),),
                has_agent=True,
                script=replace(
                    self.script, guest=replace(self.script.guest, keep_point_in_time="kept")
                ),
            )
            machine = self.node.machines[vmid] = SimulatedMachine(shape, host)
            self.node.configs[vmid] = _config(vmid, self.storage_of).encode()
            machine.boot(RunState.RUNNING)
        self.hosts[100] = self.host

    def engine_ports(self) -> EnginePorts:
        """Every run speaks with its own voice."""
        return replace(
            super().engine_ports(),
            emit=lambda event: self._hear(None, event),
            emit_of_run=lambda vmid: lambda event: self._hear(vmid, event),
        )

    def _hear(self, vmid: int | None, event: events.Event) -> None:
        self.heard.append((vmid, event))
        if isinstance(event, events.RunStarted):
            self._open.add(event.vmid)
            self.most_at_once = max(self.most_at_once, len(self._open))
        elif isinstance(event, events.RunClosed):
            self._open.discard(event.vmid)
        self._emit(event)
        self.on_event(vmid, event)

    async def _main(self) -> BatchResult | None:
        await self._begin()
        self._task = asyncio.ensure_future(back_up_all(self.ports, self.options, self.vmids))
        try:
            return await self._task
        except asyncio.CancelledError:
            return None
        finally:
            await asyncio.sleep(100)

    def back_up(self) -> BatchResult | None:
        """Run the job; None if it was cancelled."""
        return run_simulated(self._main())

    def order(self, kind: type[events.RunStarted | events.RunClosed]) -> list[int]:
        """VMs in the order of one kind of event."""
        return [event.vmid for event in self.told_of(kind)]

    def said_by(self, vmid: int | None) -> list[events.Event]:
        """Events of one run, or of the job."""
        return [event for of_vm, event in self.heard if of_vm == vmid]

    def job_error(self) -> str:
        """As the job's last event tells it."""
        [ended] = self.told_of(events.JobEnded)
        error: str = ended.error
        return error

    def assert_all_as_before(self) -> None:
        """No lock, no job, no frozen guest, nothing of a journal, no temporary file."""
        assert self.journals.journals == {}
        for vmid, machine in self.node.machines.items():
            assert self.node.lock_of(vmid) == ""
            assert machine.run_state is RunState.RUNNING
            assert machine.process.backup.query().get("status") != "active"
            assert machine.process.agent is not None and not machine.process.agent.is_frozen
        assert self.store.live_compressor_count == 0
        assert [path for path in self.files.files if not path.endswith(".vma.zst")] == []

    def assert_archived(self, *vmids: int) -> None:
        """Exactly these VMs have an archive, each of what its disk held."""
        paths = {int(path.split("-")[2]): path for path in self.archives()}
        assert sorted(paths) == sorted(vmids)
        for vmid, path in paths.items():
            assert restore_disks(self.files.read(path)) == self.hosts[vmid].points_in_time


def _image(vmid: int) -> str:
    return f"/var/lib/vz/images/{vmid}/vm-{vmid}-disk-0.raw"


def _config(vmid: int, storage_of: dict[int, str]) -> str:
    storage_id = storage_of.get(vmid, "local")
    return f"agent: 1\nname: vm{vmid}\nscsi0: {storage_id}:{vmid}/vm-{vmid}-disk-0.raw,size=1M\n"
