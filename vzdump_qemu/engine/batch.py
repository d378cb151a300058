"""A job: its runs under the node's global lock, with a summary around them.

Owns what happens around the runs; the runs themselves, and several at once, are `batch_runs`'.
A failing VM does not stop the others, a cancelled job does.
Source: host behaviour, sections 1.3, 1.4 and 1.6.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

from vzdump_qemu import events
from vzdump_qemu.engine.backup_place import DumpDirectory, JobTarget
from vzdump_qemu.engine.batch_runs import BatchRuns
from vzdump_qemu.engine.context import BatchResult, EnginePorts, RunResult
from vzdump_qemu.engine.hooks import Hooks, make_job_hooks
from vzdump_qemu.engine.job_target import find_target
from vzdump_qemu.engine.undo import run_shielded
from vzdump_qemu.errors import INTERRUPTED_TEXT, BackupError, VmLocked
from vzdump_qemu.plan.hook_script import HookPhase
from vzdump_qemu.plan.options import BackupOptions

# One above the best-effort levels 0 to 7: only what nobody else wants.
IO_PRIORITY_IDLE = 8


async def back_up_all(
    ports: EnginePorts, options: BackupOptions, vmids: Sequence[int]
) -> BatchResult:
    """Back up these VMs, ascending; errors of single VMs are in the result.

    A VM that was asked for and has no result there was not reached; the job's error tells why.

    Raises:
        asyncio.CancelledError: the job was cancelled; everything was undone and told first.
    """
    results: list[RunResult] = []
    error: BackupError | None = None
    try:
        hooks = make_job_hooks(ports, options)
        target = await _prepare(ports, options, hooks)
        async with AsyncExitStack() as stack:
            await _take_global_lock(ports, _lock_wait_s(ports, options), stack)
            ports.emit(events.JobStarted(command_line=options.command_line))
            if options.batch.external_vmids:
                ports.emit(events.ExternalVmsSkipped(vmids=options.batch.external_vmids))
            await _set_io_priority(ports, options.io_priority)
            if isinstance(target, DumpDirectory):
                hooks.learn(dump_directory=target.path)
            error = await _back_up_each(
                ports, options, sorted(vmids), target=target, hooks=hooks, results=results
            )
    except BackupError as raised:
        error = raised
    except asyncio.CancelledError:
        ports.emit(events.JobEnded(failed_vmids=_failed(results), error=INTERRUPTED_TEXT))
        await run_shielded(ports.notifier.job_ended)
        raise
    ports.emit(events.JobEnded(failed_vmids=_failed(results), error=str(error or "")))
    await run_shielded(ports.notifier.job_ended)
    return BatchResult(runs=tuple(results), error=error)


async def _prepare(ports: EnginePorts, options: BackupOptions, hooks: Hooks) -> JobTarget:
    """What goes before the lock; of two things that are wrong, both are told."""
    try:
        await hooks.call(HookPhase.JOB_INIT)
    except BackupError as error:
        try:
            await find_target(ports, options)
        except BackupError as second:
            raise BackupError(f"{error}\n{second}", hint=error.hint) from second
        raise
    return await find_target(ports, options)


async def _back_up_each(
    ports: EnginePorts,
    options: BackupOptions,
    vmids: Sequence[int],
    *,
    target: JobTarget,
    hooks: Hooks,
    results: list[RunResult],
) -> BackupError | None:
    """Every VM, between the calls of the script that belong to the job; its error, if it failed."""
    try:
        await hooks.call(HookPhase.JOB_START)
        await BatchRuns(ports, options, target, results).back_up_each(vmids)
        await hooks.call(HookPhase.JOB_END)
    except BackupError as error:
        try:
            await hooks.call(HookPhase.JOB_ABORT)
        except BackupError as second:
            return BackupError(f"{error}\n{second}", hint=error.hint)
        return error
    except asyncio.CancelledError:
        hooks.hurry()
        await run_shielded(lambda: _tell_abort(hooks))
        raise
    return None


async def _tell_abort(hooks: Hooks) -> None:
    await hooks.try_call(HookPhase.JOB_ABORT)


def _lock_wait_s(ports: EnginePorts, options: BackupOptions) -> float:
    """How long the lock is waited for: after the deadline it would be of no use."""
    deadline_s = options.batch.deadline_wall_s
    if deadline_s is None:
        return options.lock_wait_s
    return min(options.lock_wait_s, max(deadline_s - ports.clock.wall_s(), 0.0))


async def _take_global_lock(ports: EnginePorts, wait_s: float, stack: AsyncExitStack) -> None:
    """One job per node; a busy lock is told before it is waited for."""
    try:
        await stack.enter_async_context(ports.node.hold_global_lock(timeout_s=0))
        return
    except VmLocked:
        if wait_s <= 0:
            raise
    ports.emit(events.GlobalLockAwaited())
    await stack.enter_async_context(ports.node.hold_global_lock(timeout_s=wait_s))
    ports.emit(events.GlobalLockTaken())


async def _set_io_priority(ports: EnginePorts, io_priority: int | None) -> None:
    """Let us, and the compressors we start, stand behind the guests at the disks (1.4)."""
    if io_priority is None:
        return
    ionice = ports.commands.find("ionice")
    if ionice is None:
        ports.emit(events.Warned(text="unable to find command 'ionice'"))
        return
    idle = io_priority == IO_PRIORITY_IDLE
    priority = ("-c3",) if idle else ("-c2", f"-n{io_priority}")
    argv = (ionice, *priority, "-p", str(ports.ids.process_id()))
    status, lines = await ports.commands.run(argv)
    if status != 0:
        reason = lines[-1] if lines else f"exit status {status}"
        ports.emit(events.Warned(text=f"unable to set ionice priority {io_priority} - {reason}"))


def _failed(results: Sequence[RunResult]) -> tuple[int, ...]:
    return tuple(result.vmid for result in results if result.error is not None)
