"""Putting back what a killed run left, from its journal.

Owns the order (the guest first) and one reversal per kind; each is idempotent and bounded, so
that a recovery may itself be killed and started again at any point. Touches only what the journal
proves to be ours. Source: architecture, section 6; failure modes 25, 26, 36, 85.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import assert_never

from vzdump_qemu import events
from vzdump_qemu.engine.attachments import Attachments
from vzdump_qemu.engine.change_tracking import drop_bitmaps
from vzdump_qemu.engine.context import EnginePorts
from vzdump_qemu.engine.native_job import JobMark, cancel_job, has_active_job
from vzdump_qemu.engine.native_vma import close_descriptor
from vzdump_qemu.engine.power import stop_unused
from vzdump_qemu.engine.pull_source import release_pulled_disk, stop_nbd_server
from vzdump_qemu.engine.run_state import PAUSED_STATES, GuestLook, look_at_guest, query_run_state
from vzdump_qemu.errors import BackupError, ConfigError, GuestError, VmLocked
from vzdump_qemu.journal_ports import Journal, Reversal, ReversalKind
from vzdump_qemu.ports import Machine
from vzdump_qemu.units import NS_PER_S

# Longer than a guest's way down and a start after it.
REVERSAL_TIMEOUT_S = 1200.0
THAW_TIMEOUT_S = 180.0
AGENT_TIMEOUT_S = 5.0
THAW_ATTEMPT_COUNT_MAX = 3
THAW_PAUSE_S = 1.0
# A job that began after our death holds the node's lock for hours; ours can wait for the next
# run on this VM, which holds it itself.
GLOBAL_LOCK_TIMEOUT_S = 10.0

# A guest that was told to power off may take this long; STOP mode's own limit is as long.
GOING_DOWN_S_MAX = 600.0
GOING_DOWN_PAUSE_S = 1.0
MONITOR_TIMEOUT_S = 60.0
# How long and how often the guardian tries what does not succeed.
PERSISTENCE_S = 2 * 3600.0
# A guest may be frozen: so long it is looked after at the shortest pause.
SOON_S = 900.0
PAUSE_S_MIN = 10.0
PAUSE_S_MAX = 300.0
# What has lasted for so many pauses is worth another one of the same length.
PAUSE_PARTS = 10

# How long a VM stays locked because something else could not be put back.
LOCKED_S_MAX = 600.0

# A frozen guest first, then one that stands still; the rest in the reverse order of its noting,
# and the lock last of all.
_ORDER = {ReversalKind.THAW: 0, ReversalKind.RESUME: 1, ReversalKind.UNLOCK: 3}


async def recover_vm(
    ports: EnginePorts,
    machine: Machine,
    journal: Journal,
    *,
    holds_global_lock: bool,
    keeps_lock: bool = False,
) -> bool:
    """Put back what the journal still lists; return whether all of it was.

    Args:
        holds_global_lock: the caller is the node's one backup job, so a VM lock that is still
            set cannot belong to another.
        keeps_lock: the VM stays locked while something is open that needs the lock.
    """
    entries = sorted(journal.open_entries, key=lambda entry: -entry[0])
    entries.sort(key=lambda entry: _rank(entry[1]))
    failed: set[ReversalKind] = set()
    for index, reversal in entries:
        what = " ".join(filter(None, (reversal.kind.value, *reversal.names)))
        if failed & reversal.kind.waits_for and (
            keeps_lock or reversal.kind is not ReversalKind.UNLOCK
        ):
            failed.add(reversal.kind)
            continue
        try:
            async with asyncio.timeout(REVERSAL_TIMEOUT_S):
                await _reverse(ports, machine, reversal, holds_global_lock=holds_global_lock)
        except (BackupError, OSError, TimeoutError) as error:
            failed.add(reversal.kind)
            text = str(error) or f"no end within {REVERSAL_TIMEOUT_S:g} seconds"
            ports.emit(events.UndoFailed(what=f"{what} of an earlier run", text=text))
            continue
        journal.strike(index)
        ports.emit(events.Warned(text=f"put back after an earlier run: {what}"))
    return not failed


def _rank(reversal: Reversal) -> int:
    return _ORDER.get(reversal.kind, 2)


async def _reverse(
    ports: EnginePorts, machine: Machine, reversal: Reversal, *, holds_global_lock: bool
) -> None:
    names = reversal.names
    match reversal.kind:
        case ReversalKind.THAW:
            await _thaw(ports, machine)
        case ReversalKind.CANCEL_JOB:
            mark = JobMark.from_names(names)
            await _cancel_job(ports, machine, mark, holds_global_lock=holds_global_lock)
        case ReversalKind.CLOSE_FD:
            for name in names:
                await close_descriptor(machine, name)
        case ReversalKind.RESUME:
            if await machine.is_running() and await query_run_state(machine) in PAUSED_STATES:
                await machine.power.resume()
        case ReversalKind.START:
            await _start(ports, machine)
        case ReversalKind.STOP_QEMU:
            if await machine.is_running():
                await stop_unused(machine, ports.clock, lambda: ports.emit(events.QemuStopping()))
        case ReversalKind.DETACH:
            await Attachments(ports, machine).detach(names)
        case ReversalKind.RELEASE_DISK:
            index, device_path, node_name = names
            await release_pulled_disk(
                machine, index=int(index), device_path=device_path, node_name=node_name
            )
        case ReversalKind.STOP_NBD:
            await stop_nbd_server(ports, machine, names[0], export_ids=names[1:])
        case ReversalKind.DROP_BITMAPS:
            await drop_bitmaps(machine, names[0], names[1:])
        case ReversalKind.FREE_FLEECING:
            await Attachments(ports, machine).free(names, old=True)
        case ReversalKind.REMOVE_FILE:
            for path in names:
                await ports.store.remove_file(path)
        case ReversalKind.REMOVE_TREE:
            for path in names:
                await ports.store.remove_tree(path)
        case ReversalKind.UNLOCK:
            await _unlock(ports, machine.vmid, holds_global_lock=holds_global_lock)
        case _:
            assert_never(reversal.kind)


async def _thaw(ports: EnginePorts, machine: Machine) -> None:
    """Thaw until the guest says it is thawed. A guest that is off is not frozen."""
    last: GuestError | None = None
    for _ in range(THAW_ATTEMPT_COUNT_MAX):
        try:
            async with machine.connect_agent(timeout_s=AGENT_TIMEOUT_S) as agent:
                await agent.execute("guest-fsfreeze-thaw", timeout_s=THAW_TIMEOUT_S)
                status = await agent.execute("guest-fsfreeze-status", timeout_s=AGENT_TIMEOUT_S)
            if status == "thawed":
                return
        except GuestError as error:
            last = error
        match await look_at_guest(machine, timeout_s=MONITOR_TIMEOUT_S):
            case GuestLook.OFF:
                return
            case GuestLook.HALTED:
                break  # it cannot answer, and misses nothing until it runs again
        await ports.clock.sleep(THAW_PAUSE_S)
    raise last or GuestError("the guest's file systems are still frozen")


async def _start(ports: EnginePorts, machine: Machine) -> None:
    """A guest that STOP mode shut down runs again, in the QEMU it has or in a new one.

    One that runs may still be on its way down: it was told to before our death.
    """
    waited_s = 0.0
    while await machine.is_running():
        run_state = await query_run_state(machine)
        if run_state in PAUSED_STATES:
            await machine.power.resume()
            return
        if run_state == "shutdown":
            await machine.power.stop()
        elif waited_s >= GOING_DOWN_S_MAX:
            return
        await ports.clock.sleep(GOING_DOWN_PAUSE_S)
        waited_s += GOING_DOWN_PAUSE_S
    await machine.power.start()


async def _cancel_job(
    ports: EnginePorts, machine: Machine, mark: JobMark, *, holds_global_lock: bool
) -> None:
    if mark.needs_global_lock and not await has_active_job(machine, mark):
        return
    is_enough = holds_global_lock or not mark.needs_global_lock
    async with _global_lock(ports, is_held=is_enough):
        await cancel_job(machine, mark)


@asynccontextmanager
async def _global_lock(ports: EnginePorts, *, is_held: bool) -> AsyncIterator[None]:
    """Be the node's one backup job, unless the caller is. Raises VmLocked."""
    if is_held:
        yield
        return
    async with ports.node.hold_global_lock(timeout_s=GLOBAL_LOCK_TIMEOUT_S):
        yield


async def _unlock(ports: EnginePorts, vmid: int, *, holds_global_lock: bool) -> None:
    async with _global_lock(ports, is_held=holds_global_lock):
        try:
            await ports.node.clear_vm_lock(vmid)
        except ConfigError as error:
            if "no lock found" not in str(error) and "found lock" not in str(error):
                raise
            # Killed before it was set, or another operation's by now: not ours.


async def recover_persistently(ports: EnginePorts, vmid: int) -> bool:
    """Try to put back what one VM's run left until all of it is; False once that takes too long.

    What a run could not put back by itself often needs nothing but time: a guest that flushes,
    a storage that comes back, another client that lets go of the monitor.
    """
    began_ns = ports.clock.now_ns()
    while True:
        elapsed_s = (ports.clock.now_ns() - began_ns) / NS_PER_S
        if await _recover_one(ports, vmid, keeps_lock=elapsed_s < LOCKED_S_MAX):
            return True
        if elapsed_s > PERSISTENCE_S:
            return False
        is_soon = elapsed_s < SOON_S
        pause_s = PAUSE_S_MIN if is_soon else min(elapsed_s / PAUSE_PARTS, PAUSE_S_MAX)
        await ports.clock.sleep(pause_s)


async def recover_all(ports: EnginePorts) -> tuple[int, ...]:
    """Recover every VM with a journal whose owner is dead; the VMs left with something open."""
    unfinished = []
    for vmid in await ports.journals.list_vmids():
        try:
            complete = await _recover_one(ports, vmid, keeps_lock=False)
        except VmLocked:
            ports.emit(events.RecoveryNotNeeded(vmid=vmid))
            continue
        except BackupError as error:
            ports.emit(events.UndoFailed(what=f"recover VM {vmid}", text=str(error)))
            complete = False
        if not complete:
            unfinished.append(vmid)
    return tuple(unfinished)


async def _recover_one(ports: EnginePorts, vmid: int, *, keeps_lock: bool) -> bool:
    async with ports.journals.open(vmid) as journal:
        machine = ports.node.machine(vmid)
        return await recover_vm(
            ports, machine, journal, holds_global_lock=False, keeps_lock=keeps_lock
        )
