"""A job: runs in numeric order under the node's global lock, with a summary around them.

Owns what happens between VMs; a failing VM does not stop the others, a cancelled job does.
Source: host behaviour, sections 1.3, 1.4 and 1.6.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

from vzdump_qemu import events
from vzdump_qemu.engine.context import BatchResult, EnginePorts, RunResult
from vzdump_qemu.engine.run import back_up_vm
from vzdump_qemu.errors import INTERRUPTED_TEXT, BackupError, StorageError, VmLocked
from vzdump_qemu.plan.options import BackupOptions

# One above the best-effort levels 0 to 7: only what nobody else wants.
IO_PRIORITY_IDLE = 8


async def back_up_all(
    ports: EnginePorts, options: BackupOptions, vmids: Sequence[int]
) -> BatchResult:
    """Back up these VMs, ascending; errors of single VMs are in the result.

    Raises:
        asyncio.CancelledError: the job was cancelled; everything was undone and told first.
    """
    results: list[RunResult] = []
    try:
        dump_directory = await _dump_directory(ports, options)
        async with AsyncExitStack() as stack:
            await _take_global_lock(ports, options.lock_wait_s, stack)
            ports.emit(events.JobStarted(command_line=options.command_line))
            await _set_io_priority(ports, options.io_priority)
            for vmid in sorted(vmids):
                result = await back_up_vm(ports, options, vmid, dump_directory=dump_directory)
                results.append(result)
    except (StorageError, VmLocked) as error:
        ports.emit(events.JobEnded(failed_vmids=(), error=str(error)))
        return BatchResult(runs=tuple(results), error=error)
    except asyncio.CancelledError:
        ports.emit(events.JobEnded(failed_vmids=_failed(results), error=INTERRUPTED_TEXT))
        raise
    ports.emit(events.JobEnded(failed_vmids=_failed(results), error=""))
    return BatchResult(runs=tuple(results))


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


async def _dump_directory(ports: EnginePorts, options: BackupOptions) -> str:
    """Where archives go, shown to be usable before any guest is touched; "" for stdout."""
    target = options.target
    if target.to_stdout:
        return ""
    if target.dump_directory:
        directory = target.dump_directory.rstrip("/") or "/"
        if not await ports.store.exists(directory):
            raise StorageError(
                f"dumpdir '{directory}' does not exist",
                hint="create it, or name a storage with --storage",
            )
        return directory
    storage_id = target.storage_id or "local"
    try:
        return await ports.node.storages.backup_directory(storage_id)
    except BackupError as error:
        raise StorageError(
            f"could not activate storage '{storage_id}': {error}", hint=error.hint
        ) from error
