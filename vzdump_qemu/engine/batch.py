"""A job: runs in numeric order under the node's global lock, with a summary around them.

Owns what happens between VMs; a failing VM does not stop the others, a cancelled job does.
Source: host behaviour, sections 1.3, 1.4 and 1.6.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

from vzdump_qemu import events
from vzdump_qemu.engine.backup_place import DumpDirectory, JobTarget
from vzdump_qemu.engine.context import BatchResult, EnginePorts, RunResult
from vzdump_qemu.engine.hooks import Hooks, make_job_hooks
from vzdump_qemu.engine.keeping import refuse_at_server
from vzdump_qemu.engine.run import back_up_vm
from vzdump_qemu.engine.undo import run_shielded
from vzdump_qemu.errors import INTERRUPTED_TEXT, BackupError, StorageError, VmLocked
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.plan.hook_script import HookPhase
from vzdump_qemu.plan.options import BackupOptions

# One above the best-effort levels 0 to 7: only what nobody else wants.
IO_PRIORITY_IDLE = 8
DEFAULT_STORAGE_ID = "local"


async def back_up_all(
    ports: EnginePorts, options: BackupOptions, vmids: Sequence[int]
) -> BatchResult:
    """Back up these VMs, ascending; errors of single VMs are in the result.

    Raises:
        asyncio.CancelledError: the job was cancelled; everything was undone and told first.
    """
    results: list[RunResult] = []
    error: BackupError | None = None
    try:
        hooks = make_job_hooks(ports, options)
        await hooks.call(HookPhase.JOB_INIT)
        target = await _find_target(ports, options)
        async with AsyncExitStack() as stack:
            await _take_global_lock(ports, options.lock_wait_s, stack)
            ports.emit(events.JobStarted(command_line=options.command_line))
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
        raise
    ports.emit(events.JobEnded(failed_vmids=_failed(results), error=str(error or "")))
    return BatchResult(runs=tuple(results), error=error)


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
        for vmid in vmids:
            results.append(await back_up_vm(ports, options, vmid, target=target))
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


async def _find_target(ports: EnginePorts, options: BackupOptions) -> JobTarget:
    """Where backups go, shown to be usable before any guest is touched. Raises StorageError."""
    target = options.target
    server = await _find_server(ports, options)
    if server is not None:
        if target.to_stdout:
            raise StorageError("unable to pipe backup to stdout")
        refuse_at_server(options.keep)
        await _check_server(ports, server)
        return server
    if target.to_stdout:
        return DumpDirectory(path="")
    if target.dump_directory:
        directory = target.dump_directory.rstrip("/") or "/"
        if not await ports.store.exists(directory):
            raise StorageError(
                f"dumpdir '{directory}' does not exist",
                hint="create it, or name a storage with --storage",
            )
        return DumpDirectory(path=directory)
    storage_id = target.storage_id or DEFAULT_STORAGE_ID
    try:
        return DumpDirectory(path=await ports.node.storages.backup_directory(storage_id))
    except BackupError as error:
        raise _not_activated(storage_id, error) from error


async def _find_server(ports: EnginePorts, options: BackupOptions) -> PbsTarget | None:
    target = options.target
    if target.pbs is not None:
        return target.pbs
    if not target.storage_id and (target.to_stdout or target.dump_directory):
        return None
    storage_id = target.storage_id or DEFAULT_STORAGE_ID
    try:
        return await ports.node.storages.backup_server(storage_id)
    except BackupError as error:
        raise _not_activated(storage_id, error) from error


async def _check_server(ports: EnginePorts, server: PbsTarget) -> None:
    try:
        await ports.pbs.check(server)
    except BackupError as error:
        if server.storage_id:
            raise _not_activated(server.storage_id, error) from error
        repository = server.repository.render()
        text = f"could not use backup server '{repository}': {error}"
        raise StorageError(text, hint=error.hint) from error


def _not_activated(storage_id: str, error: BackupError) -> StorageError:
    return StorageError(f"could not activate storage '{storage_id}': {error}", hint=error.hint)
