"""One VM, one target, one attempt: the run.

Owns the order of the steps and what a run returns; each step's own rules live in the module it
calls. Source: host behaviour, sections 1.7 to 1.11, with the weak spots of 9.1 mended.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from vzdump_qemu import events
from vzdump_qemu.engine.archive_step import ArchiveStep
from vzdump_qemu.engine.attachments import Attachments, RunDisk
from vzdump_qemu.engine.backup_place import ArchivePlace, BackupPlace, DumpDirectory, JobTarget
from vzdump_qemu.engine.context import EnginePorts, ProvedBackup, RunResult
from vzdump_qemu.engine.directory_keeping import DirectoryKeeping
from vzdump_qemu.engine.hooks import Hooks, make_run_hooks
from vzdump_qemu.engine.keeping import Keeping
from vzdump_qemu.engine.native_job import cancel_left_over_job
from vzdump_qemu.engine.power import PowerFound, PowerState
from vzdump_qemu.engine.recovery import recover_vm
from vzdump_qemu.engine.run_state import PAUSED_STATES, query_run_state
from vzdump_qemu.engine.undo import UndoStack, run_shielded
from vzdump_qemu.errors import BackupError, ConfigError, Interrupted, StorageError, VmLocked
from vzdump_qemu.events import BackupMode, Consistency
from vzdump_qemu.formats.vm_config import VmConfig, parse_vm_config
from vzdump_qemu.journal_ports import Reversal, ReversalKind
from vzdump_qemu.plan.disks import DiskChoice, select_disks
from vzdump_qemu.plan.hook_script import HookPhase
from vzdump_qemu.plan.names import RunNames, name_run
from vzdump_qemu.plan.options import BackupOptions
from vzdump_qemu.ports import Machine
from vzdump_qemu.units import NS_PER_S

# A clock that was set back meets the names of an earlier hour: publishing refuses those.
NAME_ATTEMPT_COUNT_MAX = 3


@dataclass(slots=True)
class _Outcome:
    """What a run has reached so far; one owner, read once at the end."""

    vm_name: str = ""
    archive_path: str = ""
    size_bytes: int = 0
    complete: bool = False
    consistency: Consistency | None = None
    freeze_window_s: float | None = None

    def result(self, vmid: int, error: BackupError | None, duration_s: float) -> RunResult:
        """What the caller gets; a failed run has no archive."""
        return RunResult(
            vmid=vmid,
            vm_name=self.vm_name,
            error=error,
            archive_path="" if error else self.archive_path,
            size_bytes=0 if error else self.size_bytes,
            duration_s=duration_s,
            consistency=self.consistency,
            freeze_window_s=self.freeze_window_s,
        )


class _WarningCount:
    """Passes events on and keeps the texts of warnings for the result."""

    def __init__(self, emit: events.Emit) -> None:
        self._emit = emit
        self.texts: list[str] = []

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.Warned):
            self.texts.append(event.text)
        self._emit(event)


async def back_up_vm(
    ports: EnginePorts, options: BackupOptions, vmid: int, *, target: JobTarget
) -> RunResult:
    """Back up one VM; errors of the run are in the result, not raised.

    Args:
        target: where the backup goes.
    Raises:
        asyncio.CancelledError: the caller was cancelled; the run was undone and told first.
    """
    warnings = _WarningCount(ports.emit)
    ports = replace(ports, emit=warnings)
    directory = target.path if isinstance(target, DumpDirectory) else ""
    names = await _name_freely(ports, options, vmid, directory)
    began_ns, began_s = ports.clock.now_ns(), ports.clock.wall_s()
    log_path = f"{options.log_directory}/qemu-{vmid}.log"
    ports.emit(
        events.RunStarted(
            vmid=vmid, wall_s=began_s, log_path=log_path, side_log_path=names.side_log_path
        )
    )
    hooks = make_run_hooks(ports, options, vmid, dump_directory=directory)
    keeping = _make_keeping(ports, options, vmid, target)
    outcome = _Outcome()
    error: BackupError | None = None
    cancelled: asyncio.CancelledError | None = None
    try:
        await _run_journalled(
            *(ports, options, vmid, target),
            names=names,
            hooks=hooks,
            keeping=keeping,
            outcome=outcome,
        )
    except BackupError as raised:
        error = raised
    except asyncio.CancelledError as raised:
        cancelled = raised
        hooks.hurry()
        if not outcome.complete:
            error = Interrupted()
    duration_s = (ports.clock.now_ns() - began_ns) / NS_PER_S
    result = outcome.result(vmid, error, duration_s)
    await run_shielded(lambda: _tell_end(ports, result, hooks, keeping, log_path=log_path))
    if cancelled is not None:
        raise cancelled
    return replace(result, warnings=tuple(warnings.texts))


async def _run_journalled(
    ports: EnginePorts,
    options: BackupOptions,
    vmid: int,
    target: JobTarget,
    *,
    names: RunNames,
    hooks: Hooks,
    keeping: Keeping,
    outcome: _Outcome,
) -> None:
    """One run between opening and leaving the VM's journal; a killed run's is put back first."""
    refusal = dict(options.batch.refusals).get(vmid)
    if refusal is not None:
        raise ConfigError(refusal)
    await ports.node.read_vm_config(vmid)
    async with ports.journals.open(vmid) as journal:
        machine = ports.node.machine(vmid)
        await recover_vm(ports, machine, journal, holds_global_lock=True)
        undo = UndoStack(ports.emit, journal, ports.clock)
        place = await _make_place(ports, options, machine, target, names=names)
        hooks.find_vm(target=place.location, log_path=names.side_log_path)
        run = _Run(
            *(ports, options, machine, names, undo),
            place=place,
            hooks=hooks,
            keeping=keeping,
            outcome=outcome,
        )
        try:
            await run.execute()
        finally:
            await run.put_back()


async def _make_place(
    ports: EnginePorts,
    options: BackupOptions,
    machine: Machine,
    target: JobTarget,
    *,
    names: RunNames,
) -> BackupPlace:
    if isinstance(target, DumpDirectory):
        return ArchivePlace(ports, options, machine, names)
    # Loaded late: a run to a file does not wait for what it never needs.
    from vzdump_qemu.engine.pbs_place import PbsPlace, name_backup

    backup = await name_backup(ports, target, machine.vmid)
    return PbsPlace(ports, options, machine, target, backup=backup)


def _make_keeping(
    ports: EnginePorts, options: BackupOptions, vmid: int, target: JobTarget
) -> Keeping:
    if isinstance(target, DumpDirectory):
        return DirectoryKeeping(ports, options, vmid, target.path)
    # Loaded late: a run to a file does not wait for what it never needs.
    from vzdump_qemu.engine.pbs_keeping import ServerKeeping

    return ServerKeeping(ports, options.keep, vmid, target)


async def _name_freely(
    ports: EnginePorts, options: BackupOptions, vmid: int, dump_directory: str
) -> RunNames:
    """Names of this instant; in a second whose name is taken the run waits for the next one."""
    for _ in range(NAME_ATTEMPT_COUNT_MAX):
        names = name_run(
            vmid=vmid,
            local_time=ports.clock.local_time(ports.clock.wall_s()),
            dump_directory=dump_directory,
            temp_directory=options.target.temp_directory,
            extension=options.archive_extension,
            process_id=ports.ids.process_id(),
        )
        if not names.final_path or not await ports.store.exists(names.final_path):
            break
        await ports.clock.sleep(1.0)
    return names


async def _tell_end(
    ports: EnginePorts, result: RunResult, hooks: Hooks, keeping: Keeping, *, log_path: str
) -> None:
    vmid, wall_s = result.vmid, ports.clock.wall_s()
    if result.error is not None:
        text, hint = str(result.error), result.error.hint
        ports.emit(events.RunFailed(vmid=vmid, wall_s=wall_s, text=text, hint=hint))
        await hooks.try_call(HookPhase.BACKUP_ABORT)
    else:
        ports.emit(
            events.RunSucceeded(
                vmid=vmid,
                wall_s=wall_s,
                duration_s=result.duration_s,
                consistency=result.consistency or Consistency.STOPPED,
            )
        )
    ports.emit(events.RunClosed(vmid=vmid))
    if result.archive_path:
        await keeping.hand_over_log(result.archive_path, log_path)
    await hooks.try_call(HookPhase.LOG_END)


class _Run:
    """The steps of one run, in order."""

    def __init__(
        self,
        ports: EnginePorts,
        options: BackupOptions,
        machine: Machine,
        names: RunNames,
        undo: UndoStack,
        *,
        place: BackupPlace,
        hooks: Hooks,
        keeping: Keeping,
        outcome: _Outcome,
    ) -> None:
        self._keeping = keeping
        self._place = place
        self._hooks = hooks
        self._power: PowerState | None = None
        self._ports = ports
        self._options = options
        self._names = names
        self._undo = undo
        self._machine = machine
        self._outcome = outcome

    async def execute(self) -> None:
        emit = self._ports.emit
        was_running = await self._machine.is_running()
        emit(events.StatusSeen(running=was_running))
        await self._place.check()
        await self._keeping.check_room()
        await self._lock()
        mode = self._options.mode if was_running else BackupMode.STOP
        self._hooks.learn(mode=mode)
        if mode is not BackupMode.SNAPSHOT:
            self._tell_mode(mode)
        config, raw, found = await self._prepare(was_running)
        disks = await self._find_disks(config)
        if mode is BackupMode.SNAPSHOT:
            self._tell_mode(mode)
        power = self._power = PowerState(self._ports, self._machine, found)
        step = ArchiveStep(
            ports=self._ports,
            options=self._options,
            machine=self._machine,
            names=self._names,
            place=self._place,
            undo=self._undo,
            config=config,
            disks=disks,
            mode=mode,
            found=found,
            power=power,
            attachments=Attachments(self._ports, self._machine),
        )
        await step.make_temp_directory()
        await self._hooks.call(HookPhase.BACKUP_START)
        await self._halt(power, mode)
        await step.assemble(raw)
        self._place.tell()
        backup = await step.execute()
        self._outcome.consistency = step.consistency
        self._outcome.freeze_window_s = step.freeze_window_s
        # One piece with its record: an archive that has its name belongs to a run that ended
        # well, however late the caller changed its mind.
        await run_shielded(lambda: self._publish(backup))
        await self._keeping.prune(self._outcome.archive_path)
        await self._hooks.call(HookPhase.BACKUP_END)
        self._outcome.complete = True

    async def _halt(self, power: PowerState, mode: BackupMode) -> None:
        """Stop or suspend the guest as the mode asks; the script hears of it in every mode."""
        hooks = self._hooks
        await power.halt_for(
            mode,
            self._undo,
            stop_wait_s=self._options.stop_wait_s,
            announce=lambda: hooks.call(HookPhase.PRE_STOP),
        )
        if mode is BackupMode.SNAPSHOT:
            for phase in (HookPhase.PRE_STOP, HookPhase.PRE_RESTART, HookPhase.POST_RESTART):
                await hooks.call(phase)

    async def put_back(self) -> None:
        """Reverse what is still open; the script hears of it if the guest was halted.

        Its failure keeps no guest down, and while a guest is down it gets little time.
        """
        power, hooks = self._power, self._hooks
        if not hooks.is_wanted or power is None or not power.was_halted:
            await self._undo.unwind()
            return

        async def put_back() -> None:
            if not power.is_halted:
                await self._undo.unwind()
            else:
                hooks.hurry()
            is_heard = await hooks.try_call(HookPhase.PRE_RESTART)
            await self._undo.unwind()
            if is_heard:
                await hooks.try_call(HookPhase.POST_RESTART)

        await run_shielded(put_back)

    async def _publish(self, backup: ProvedBackup) -> None:
        published = await backup.publish()
        outcome = self._outcome
        outcome.size_bytes = published.size_bytes
        outcome.archive_path = published.location
        # Whatever the caller wants by now: nothing that follows would be left out.
        outcome.complete = not (self._hooks.is_wanted or self._keeping.is_pruning)
        await self._keeping.mark(published.location, vm_name=outcome.vm_name)

    def _tell_mode(self, mode: BackupMode) -> None:
        emit, options = self._ports.emit, self._options
        emit(events.ModeChosen(mode=mode))
        if options.rate_limit_bytes_per_s:
            limit = options.rate_limit_bytes_per_s // 1024
            emit(events.BandwidthLimited(limit_kib_per_s=limit))
        if options.io_priority is not None:
            emit(events.IoPrioritySet(io_priority=options.io_priority))

    async def _lock(self) -> None:
        """Take the VM's lock. It goes last of all, after the guest is as it was."""
        node, vmid = self._ports.node, self._machine.vmid
        # Looked at first: a reversal noted over another's lock would, after our death, remove it.
        lock = parse_vm_config(await node.read_vm_config(vmid), vmid=vmid).lock
        if lock:
            raise VmLocked(f"VM is locked ({lock})")
        unlock = await self._undo.push(
            "unlock the VM",
            lambda: node.clear_vm_lock(vmid),
            Reversal(kind=ReversalKind.UNLOCK),
        )
        try:
            # To its end in any case: whose lock it is must be known before it may be removed.
            await run_shielded(lambda: node.set_vm_lock(vmid))
        except VmLocked:
            unlock.dismiss()
            raise

    async def _prepare(self, was_running: bool) -> tuple[VmConfig, bytes, PowerFound]:
        vmid = self._machine.vmid
        was_paused = False
        if was_running:
            await cancel_left_over_job(self._ports, self._machine)
            was_paused = await query_run_state(self._machine) in PAUSED_STATES
        raw = await self._ports.node.read_vm_config(vmid)
        config = parse_vm_config(raw, vmid=vmid)
        for text in config.warnings:
            self._ports.emit(events.Warned(text=text))
        if config.name:
            self._ports.emit(events.VmNamed(vm_name=config.name))
            self._outcome.vm_name = config.name
            self._hooks.learn(vm_name=config.name)
        return config, raw, PowerFound(was_running=was_running, was_paused=was_paused)

    async def _find_disks(self, config: VmConfig) -> tuple[RunDisk, ...]:
        choices = select_disks(config)
        for choice in choices:
            if choice.included:
                event: events.Event = events.DiskIncluded(
                    key=choice.key, volid=choice.volid, size_text=choice.size_text
                )
            else:
                event = events.DiskExcluded(
                    key=choice.key, volid=choice.volid, reason=choice.reason
                )
            self._ports.emit(event)
        included = sorted((c for c in choices if c.included), key=lambda choice: choice.key)
        storages = self._ports.node.storages
        await storages.activate(
            [choice.volid for choice in included if not choice.volid.startswith("/")]
        )
        return tuple([await self._describe(choice) for choice in included])

    async def _describe(self, choice: DiskChoice) -> RunDisk:
        try:
            facts = await self._ports.node.storages.describe(choice.volid)
        except StorageError as error:
            subject = "size and format" if choice.volid.startswith("/") else "size"
            raise StorageError(
                f"cannot determine {subject} of volume '{choice.volid}' - {error}",
                hint=error.hint,
            ) from error
        is_guessed = not (choice.format or facts.storage_id)
        if choice.format and not facts.storage_id:
            # What QEMU is told counts: a guest may write any header onto its own disk.
            facts = replace(facts, format=choice.format)
        return RunDisk(
            key=choice.key,
            device_id=choice.device_id,
            facts=facts,
            is_format_guessed=is_guessed and facts.format not in ("", "raw"),
        )
