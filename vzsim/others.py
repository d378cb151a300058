"""Everybody on a simulated node but the tool: operators, other tools, guests, the power grid.

Owns what they did before the tool came, what they do at a moment that a fault script names, and
that their own things end when the world is healed. The world itself is `vzsim.scene`'s.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vzdump_qemu.errors import QmpError
from vzsim.fakeqmp.jobs import Job, JobPhase
from vzsim.fakeqmp.run_state import RunState
from vzsim.fakeqmp.schema import CommandError, Dialect
from vzsim.faults import Kind
from vzsim.world.guest_files import page_count
from vzsim.world.journal import SimulatedJournal
from vzsim.world.pipes import SimulatedPipe

if TYPE_CHECKING:
    from vzsim.scene import Scene

_FOREIGN_FD_NAME = "other"
# As a backup of this node names its descriptor.
_LEFT_OVER_FD_NAME = "backup-0badc0de"
_SLOW_JOB_BYTES_PER_S = 16384
_OPERATOR_PATIENCE_S = 600.0
_LOCK_WAIT_S = 1.0
_EVENT_DAEMON_S = 0.1
_SUMMER_TIME_S = 3600.0
_GROWTH_BYTES = 65536
_TPM_NODE = "drive-tpmstate0-backup"
_TPM_FILE_NODE = "tpmstate0-backup-file"


class Others:
    """What others have and do in one scene.

    Attributes:
        is_acting: a command that comes now is not the tool's.
        taken_lock: the VM's lock that another operation took meanwhile, or empty.
        leaked_fds: descriptors that a child of QEMU keeps.
    """

    def __init__(self, scene: Scene, power_stream: random.Random) -> None:
        self._scene = scene
        self._power_stream = power_stream
        self._tasks: set[asyncio.Task[None]] = set()
        self._mirror: Job | None = None
        self.is_acting = False
        self._has_told_done = False
        self.taken_lock = ""
        self.leaked_fds: list[int] = []

    def begin(self) -> None:
        """What was there before the tool came."""
        scene, scenario = self._scene, self._scene.scenario
        if scenario.global_lock_s:
            self._spawn(self._hold_global_lock(scenario.global_lock_s))
        if scenario.has_other_run:
            scene.journals.journals[scene.machine.vmid] = SimulatedJournal(owned=True)
        if scene.machine.run_state is None:
            return
        process = scene.machine.process
        if scenario.is_frozen and process.agent is not None:
            process.agent.frozen_count = process.agent.rules.filesystem_count
        if scenario.tpm_is_attached:
            file_node = {
                "driver": "file",
                "node-name": _TPM_FILE_NODE,
                "filename": scene.tpm_path,
            }
            node = {"driver": "raw", "node-name": _TPM_NODE, "file": file_node, "read-only": True}
            process.block.add_node(node)
        if scenario.busy_disk:
            self._start_mirror(f"drive-{scenario.busy_disk}")
        if scenario.foreign_job:
            self._start_job(_FOREIGN_FD_NAME)
        if scenario.has_left_over_job:
            self._start_job(_LEFT_OVER_FD_NAME)

    def heal(self) -> None:
        """Their work is over, in good order."""
        scene = self._scene
        for task in self._tasks:
            task.cancel()
        for fd in self.leaked_fds:
            scene.host.descriptors.close(fd)
        self.leaked_fds.clear()
        if scene.scenario.has_other_run:
            scene.journals.journals.pop(scene.machine.vmid, None)
        self.taken_lock = ""
        if self.has_foreign_job and scene.machine.run_state is not None:
            scene.machine.process.backup.cancel()
        if self._mirror is not None and scene.machine.run_state is not None:
            jobs = scene.machine.process.jobs
            if jobs.has(self._mirror.job_id):
                jobs.end(self._mirror, "BLOCK_JOB_COMPLETED")
        self._mirror = None

    def actors(self) -> dict[Kind, Callable[[float], None]]:
        """What others do at a moment that a fault script names; they get the fault's length."""
        return {
            Kind.PAUSE_VM: self._pause,
            Kind.START_VM: self._start,
            Kind.FORCE_START: self._start_by_force,
            Kind.CANCEL_JOB: self._cancel_job,
            Kind.QEMU_DIES: self._qemu_dies,
            Kind.GUEST_POWERS_OFF: self._power_off,
            Kind.GUEST_RESETS: self._reset,
            Kind.GUEST_PANICS: self._panic,
            Kind.GUEST_SUSPENDS: self._fall_asleep,
            Kind.GUEST_WAKES: self._wake_up,
            Kind.DISK_UNPLUGGED: self._unplug_disk,
            Kind.DISK_RESIZED: self._resize_disk,
            Kind.OTHER_JOB: self._start_other_job,
            Kind.OTHER_LOCK: self._take_lock,
            Kind.FD_LEAKS: self._leak_descriptors,
            Kind.POWER_LOSS: self._lose_power,
            Kind.CLOCK_BACK: lambda length_s: self._set_clock(-length_s),
            Kind.CLOCK_FORWARD: self._set_clock,
            Kind.SUMMER_BEGINS: lambda _: self._scene.clock.change_utc_offset(_SUMMER_TIME_S),
            Kind.SUMMER_ENDS: lambda _: self._scene.clock.change_utc_offset(-_SUMMER_TIME_S),
            Kind.RESUME_VM: self._resume,
            Kind.STOP_VM: self._stop,
            Kind.LOCK_CLEARED: self._clear_lock,
        }

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- operators -----------------------------------------------------------------------------

    def _pause(self, length_s: float) -> None:
        if self._scene.machine.run_state is RunState.RUNNING:
            self._scene.machine.process.control.stop()
            self._scene.observed.operator_paused = True

    def _start(self, length_s: float) -> None:
        scene = self._scene
        if scene.machine.run_state is not None:
            self._spawn(self._continue())
        elif not scene.node.lock_of(scene.machine.vmid):  # a locked VM is not started anew
            scene.machine.boot(RunState.RUNNING)
            scene.observed.operator_started = scene.observed.was_booted = True

    def _resume(self, length_s: float) -> None:
        if self._scene.machine.run_state is not None:
            self._spawn(self._continue())

    def _stop(self, length_s: float) -> None:
        scene = self._scene
        if scene.machine.run_state is not None:
            scene.machine.end_process()
            scene.observed.operator_stopped = True
            scene.observed.operator_started = scene.observed.operator_paused = False

    def _clear_lock(self, length_s: float) -> None:
        node, vmid = self._scene.node, self._scene.machine.vmid
        if node.lock_of(vmid) == "backup" and not self._scene.scenario.lock:
            node.configs[vmid] = node.configs[vmid].replace(b"lock: backup\n", b"", 1)

    def _start_by_force(self, length_s: float) -> None:
        observed = self._scene.observed
        if self._scene.machine.run_state is None:
            self._scene.machine.boot(RunState.RUNNING)
            observed.operator_started = observed.was_booted = True

    async def _continue(self) -> None:
        """An operator needs the monitor too, and waits for whoever has it."""
        machine = self._scene.machine
        try:
            async with machine.connect_qmp(timeout_s=_OPERATOR_PATIENCE_S) as qmp:
                state = (await qmp.execute("query-status", timeout_s=60))["status"]
                if state in ("paused", "prelaunch"):
                    await qmp.execute("cont", timeout_s=60)
                    self._scene.observed.operator_started = True
        except QmpError:
            return  # there is no QEMU any more

    def _cancel_job(self, length_s: float) -> None:
        if self._scene.machine.run_state is not None:
            self._scene.machine.process.backup.cancel()

    def _set_clock(self, change_s: float) -> None:
        self._scene.clock.jump(change_s)

    def _take_lock(self, length_s: float) -> None:
        node, vmid = self._scene.node, self._scene.machine.vmid
        if not node.lock_of(vmid):
            lock = self._scene.scenario.other_lock
            node.configs[vmid] = f"lock: {lock}\n".encode() + node.configs[vmid]
            self.taken_lock = self._scene.observed.taken_lock = lock

    async def _hold_global_lock(self, length_s: float) -> None:
        async with self._scene.node.hold_global_lock(timeout_s=_LOCK_WAIT_S):
            await asyncio.sleep(length_s)

    # -- disks ---------------------------------------------------------------------------------

    def _last_disk(self) -> str:
        """The last disk, if nobody uses it: whoever takes a disk away or changes it sees to that.

        Returns: its device id, or nothing.
        """
        machine = self._scene.machine
        if machine.run_state is None or not machine.shape.disks:
            return ""
        device_id, path = machine.shape.disks[-1]
        try:
            machine.process.jobs.refuse_if_busy(device_id)
        except CommandError:
            return ""
        is_used = page_count(machine.host.images[path].size_bytes) > 0
        return "" if is_used or machine.process.block.backend(device_id) is None else device_id

    def _unplug_disk(self, length_s: float) -> None:
        device_id = self._last_disk()
        if device_id:
            self._scene.machine.process.block.remove_drive(device_id)

    def _resize_disk(self, length_s: float) -> None:
        device_id = self._last_disk()
        if device_id:
            disk = self._scene.machine.process.block.find(device_id).disk
            assert disk is not None
            disk.resize(disk.size_bytes + _GROWTH_BYTES)

    # -- jobs of others ------------------------------------------------------------------------

    def _start_mirror(self, device_id: str) -> None:
        """A disk is on its way to another storage."""
        jobs = self._scene.machine.process.jobs
        self._mirror = Job(
            job_id=f"mirror-{device_id}",
            kind="mirror",
            length_bytes=_GROWTH_BYTES,
            speed_bytes_per_s=0,
            blocked=frozenset({device_id}),
        )
        jobs.add(
            self._mirror,
            on_change=lambda job: None,
            on_cancel=lambda job: self._harm(f"job {job.job_id} was cancelled"),
        )
        jobs.move(self._mirror, JobPhase.RUNNING)

    def _start_other_job(self, length_s: float) -> None:
        self._spawn(self._replace_job())

    async def _replace_job(self) -> None:
        """Somebody cancels what runs and starts a job of his own, once the monitor is his."""
        machine = self._scene.machine
        try:
            async with machine.connect_qmp(timeout_s=_OPERATOR_PATIENCE_S):
                machine.process.backup.cancel()
                self._start_job(_FOREIGN_FD_NAME)
        except QmpError:
            return  # there is no QEMU

    def _start_job(self, fd_name: str) -> bool:
        """A backup job whose target somebody reads; False if QEMU refuses it now."""
        scene, process = self._scene, self._scene.machine.process
        if not scene.machine.shape.disks or process.config.dialect is not Dialect.PVE:
            return False
        monitor = process.monitors[0]
        pipe = SimulatedPipe()
        monitor.fds.name(fd_name, scene.host.descriptors.open(pipe))
        script, points = process.script, dict(scene.host.points_in_time)
        slow = replace(script.backup, bytes_per_s=_SLOW_JOB_BYTES_PER_S)
        process.script = replace(script, backup=slow)
        self.is_acting = True
        try:
            device_id = scene.machine.shape.disks[0][0]
            target = f"/dev/fdname/{fd_name}"
            process.backup.start(monitor, {"backup-file": target, "devlist": device_id})
        except CommandError:
            fd = monitor.fds.take_named(fd_name)
            if fd is not None:
                scene.host.close_fd(fd)
            return False
        finally:
            self.is_acting = False
            process.script = script
            scene.host.points_in_time.clear()
            scene.host.points_in_time.update(points)
        self._spawn(_read_all(pipe))
        return True

    @property
    def has_foreign_job(self) -> bool:
        """A backup job of another tool is there."""
        machine = self._scene.machine
        if machine.run_state is None or machine.process.backup.run is None:
            return False
        target = f"/dev/fdname/{_FOREIGN_FD_NAME}"
        return machine.process.backup.query().get("backup-file") == target

    def note_query(self) -> None:
        """The tool asks for the job, and so knows whether it has ended well."""
        if not self.is_acting:
            status = self._scene.machine.process.backup.query().get("status")
            self._has_told_done = status == "done"

    def note_cancel(self, name: str) -> None:
        """The tool sends a cancel: is it its own job that it cancels, and is it not over yet?"""
        if self.is_acting:
            return
        if self.has_foreign_job:
            self._harm(f"{name} was sent to another's job")
        if self._has_told_done:
            self._harm(f"{name} was sent after the job had ended well")

    def _harm(self, text: str) -> None:
        self._scene.observed.foreign_harms.append(text)

    # -- guests --------------------------------------------------------------------------------

    def _power_off(self, length_s: float) -> None:
        if self._scene.machine.run_state is RunState.RUNNING:
            self._scene.machine.process.control.guest_powers_off()
            self._scene.observed.guest_went_off = True
            in_job = self._scene.observed.point_in_time_count > 0
            self._scene.observed.went_off_in_job = in_job
            self._scene.loop.call_later(_EVENT_DAEMON_S, self._end_unheld)

    def _end_unheld(self) -> None:
        """The event daemon ends a QEMU whose guest is off, unless a backup holds it."""
        machine = self._scene.machine
        if machine.run_state is RunState.SHUTDOWN and not machine.alive_handle_count:
            machine.end_process()

    def _reset(self, length_s: float) -> None:
        if self._scene.machine.run_state is RunState.RUNNING:
            self._scene.machine.process.control.guest_resets()

    def _panic(self, length_s: float) -> None:
        if self._scene.machine.run_state is RunState.RUNNING:
            control = self._scene.machine.process.control
            control.halt_for(
                RunState.GUEST_PANICKED, event="GUEST_PANICKED", data={"action": "pause"}
            )
            self._scene.observed.guest_panicked = True

    def _fall_asleep(self, length_s: float) -> None:
        if self._scene.machine.run_state is RunState.RUNNING:
            self._scene.machine.process.control.guest_suspends()
            self._scene.observed.guest_slept = True

    def _wake_up(self, length_s: float) -> None:
        if self._scene.machine.run_state is RunState.SUSPENDED:
            self._scene.machine.process.control.wake_up()
            self._scene.observed.guest_woke = True

    # -- the host ------------------------------------------------------------------------------

    def _qemu_dies(self, length_s: float) -> None:
        self._scene.machine.end_process()

    def _leak_descriptors(self, length_s: float) -> None:
        self.leaked_fds += self._scene.host.descriptors.duplicate_all()

    def _lose_power(self, length_s: float) -> None:
        """All processes end; what was not synced is lost or not; the node boots without its VMs."""
        self.go_off(with_files=True)

    def go_off(self, *, with_files: bool) -> None:
        """What a power loss means for this VM; for the node's files too if it is asked for."""
        scene = self._scene
        for task in self._tasks:
            task.cancel()
        for fd in self.leaked_fds:
            scene.host.descriptors.close(fd)
        self.leaked_fds.clear()
        self._mirror = None
        scene.machine.end_process()
        if with_files:
            scene.files.lose_power(self._power_stream)
        scene.journals.lose_power(self._power_stream)
        scene.observed.lose_power()


async def _read_all(pipe: SimulatedPipe) -> None:
    while await pipe.read(1 << 20):
        pass
