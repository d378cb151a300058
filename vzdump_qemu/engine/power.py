"""Power state of the VM around a run: found, changed for the backup, put back.

Owns which acts the modes make and how each is reversed. Source: host behaviour, sections 1.8,
7.3 and 7.4.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from vzdump_qemu import events
from vzdump_qemu.engine.context import EnginePorts
from vzdump_qemu.engine.run_state import (
    CONNECT_TIMEOUT_S,
    PAUSED_STATES,
    STATUS_TIMEOUT_S,
    ask_run_state,
    query_run_state,
)
from vzdump_qemu.engine.undo import UndoHandle, UndoStack
from vzdump_qemu.errors import PowerError, QmpError
from vzdump_qemu.events import BackupMode
from vzdump_qemu.journal_ports import Reversal, ReversalKind
from vzdump_qemu.ports import Clock, Machine
from vzdump_qemu.units import NS_PER_S

# `cont` right after a job start was seen to take far longer than other commands.
CONT_TIMEOUT_S = 45.0
CONT_ATTEMPT_COUNT = 3
QUIT_TIMEOUT_S = 60.0
GONE_PAUSE_S = 0.1
# Quit, SIGTERM and SIGKILL have limits of their own below this one.
STOP_UNDO_TIMEOUT_S = 360.0


async def stop_unused(
    machine: Machine, clock: Clock, tell: Callable[[], None]
) -> tuple[str, Sequence[str]]:
    """End a QEMU that was started for a backup, unless somebody uses it by now.

    Asked and told on one connection: whoever resumes this VM needs that monitor as well, and so
    comes before the question or finds no QEMU.

    Args:
        tell: called before QEMU is told to end.
    Returns:
        Run state that was found, and what ending it printed.
    """
    async with machine.connect_qmp(timeout_s=CONNECT_TIMEOUT_S) as qmp:
        run_state = await ask_run_state(qmp, STATUS_TIMEOUT_S)
        if run_state != "prelaunch":
            return run_state, ()
        tell()
        try:
            await qmp.execute("quit", timeout_s=QUIT_TIMEOUT_S)
        except QmpError:
            pass  # the connection often ends before the answer; what still lives ends below
    for _ in range(int(QUIT_TIMEOUT_S / GONE_PAUSE_S)):
        if not await machine.is_running():
            return run_state, ()
        await clock.sleep(GONE_PAUSE_S)
    try:
        # What runs by now may be another QEMU, started by force behind a lock.
        if (new_state := await query_run_state(machine)) != run_state:
            return new_state, ()
    except QmpError:
        pass  # deaf to the last: only force helps
    return run_state, await machine.power.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerFound:
    """How the VM was found: `was_paused` means by somebody's will, not asleep."""

    was_running: bool
    was_paused: bool


class PowerState:
    """Changes the power state for one run and puts it back."""

    def __init__(self, ports: EnginePorts, machine: Machine, found: PowerFound) -> None:
        self._ports = ports
        self._machine = machine
        self._found = found
        self._halted_ns: int | None = None
        self._was_halted = self._was_shut_down = False
        self._release: UndoHandle | None = None
        self._restore: UndoHandle | None = None

    @property
    def was_halted(self) -> bool:
        """Whether the guest was stopped or suspended for this run, be it continued by now."""
        return self._was_halted

    @property
    def is_halted(self) -> bool:
        """Whether a guest that was stopped or suspended still has to be put back."""
        return self._was_halted and self._release is not None and self._release.is_open

    async def halt_for(
        self,
        mode: BackupMode,
        undo: UndoStack,
        *,
        stop_wait_s: float,
        announce: Callable[[], Awaitable[None]],
    ) -> None:
        """Stop or suspend a running guest as the mode asks.

        A VM that was paused before is left alone in SUSPEND mode: it stands still already.

        Args:
            announce: called right before a guest is halted; what it raises keeps it running.
        """
        if not self._found.was_running or mode is BackupMode.SNAPSHOT:
            return
        if mode is BackupMode.SUSPEND:
            if self._found.was_paused:
                return
            self._ports.emit(events.GuestSuspending())
            await announce()
            self._halted_ns = self._ports.clock.now_ns()
            self._release = await undo.push(
                "resume the guest", self._resume_suspended, Reversal(kind=ReversalKind.RESUME)
            )
            self._tell_output(await self._machine.power.suspend())
            self._was_halted = True
            return
        self._ports.emit(events.GuestStopping())
        await announce()
        halted_ns = self._ports.clock.now_ns()
        # A shutdown that failed left the guest running: then there is nothing to start again,
        # and a guest that goes down late is started by this undo all the same.
        self._release = await undo.push(
            "start the guest again", self._start_stopped, Reversal(kind=ReversalKind.START)
        )
        self._tell_output(await self._machine.power.shut_down(timeout_s=stop_wait_s))
        self._halted_ns = halted_ns
        self._was_halted = self._was_shut_down = True

    async def ensure_qemu(self, undo: UndoStack) -> None:
        """Have a QEMU process to do the work; one started for it has stopped vCPUs."""
        if await self._machine.is_running():
            return
        if self._found.was_running and not self._was_shut_down:
            # Its operator, or a crash, ended it meanwhile: starting it is not ours to decide.
            raise PowerError(f"VM {self._machine.vmid} not running: QEMU ended meanwhile")
        self._ports.emit(events.QemuStarting())
        # Registered first: a start that fails late may leave a process behind.
        if self._found.was_running:
            # STOP mode: the guest is started again, which is noted already.
            self._tell_output(await self._machine.power.start_paused())
            return
        self._restore = await undo.push(
            "restore the power state",
            self._restore_stopped,
            Reversal(kind=ReversalKind.STOP_QEMU),
            timeout_s=STOP_UNDO_TIMEOUT_S,
        )
        self._tell_output(await self._machine.power.start_paused())

    async def continue_after_start(self, undo: UndoStack) -> None:
        """The point in time is fixed: let the guest run on, if it ran before.

        A failing `cont` does not end the run: it is tried again here, then beside the run.
        """
        if not self._found.was_running or self._found.was_paused:
            return
        if self._release is None and await self._is_paused_by_another():
            return
        downtime_s = None
        for attempt_count in range(1, CONT_ATTEMPT_COUNT + 1):
            try:
                await self._cont()
                break
            except QmpError as error:
                text = f"could not continue the VM (attempt {attempt_count}) - {error}"
                self._ports.emit(events.Warned(text=text))
        else:
            if self._release is not None:
                undo.persist(self._release)
            return
        if self._halted_ns is not None:
            downtime_s = (self._ports.clock.now_ns() - self._halted_ns) / NS_PER_S
            self._halted_ns = None
        if self._release is not None:
            self._release.dismiss()
        self._ports.emit(events.VmContinued(downtime_s=downtime_s))

    async def restore(self) -> None:
        """End the QEMU that was started for the run, unless somebody uses it by now."""
        if self._restore is not None:
            await self._restore.run()

    async def _cont(self) -> None:
        async with self._machine.connect_qmp(timeout_s=CONNECT_TIMEOUT_S) as qmp:
            await qmp.execute("cont", timeout_s=CONT_TIMEOUT_S)

    async def _is_paused_by_another(self) -> bool:
        """In SNAPSHOT mode we stopped nothing: a VM that stands still now is another's doing."""
        try:
            return await query_run_state(self._machine) in PAUSED_STATES
        except QmpError:
            return False

    async def _resume_suspended(self) -> None:
        if not await self._machine.is_running():
            return  # ended by another's will, or a crash: there is no guest to resume
        self._ports.emit(events.GuestResuming())
        self._tell_output(await self._machine.power.resume())
        self._tell_downtime()

    async def _start_stopped(self) -> None:
        if not await self._machine.is_running():
            self._ports.emit(events.GuestRestarting())
            self._tell_output(await self._machine.power.start())
        elif await query_run_state(self._machine) == "prelaunch":
            # The paused QEMU of the backup: its guest was on before, so it goes on.
            await self._cont()
        self._tell_downtime()

    def _tell_downtime(self) -> None:
        if self._halted_ns is None:
            return
        downtime_s = (self._ports.clock.now_ns() - self._halted_ns) / NS_PER_S
        self._halted_ns = None
        self._ports.emit(events.GuestOnlineAgain(downtime_s=downtime_s))

    async def _restore_stopped(self) -> None:
        if not await self._machine.is_running():
            return
        run_state, lines = await stop_unused(
            self._machine, self._ports.clock, lambda: self._ports.emit(events.QemuStopping())
        )
        if run_state != "prelaunch":
            self._ports.emit(events.VmKeptRunning(run_state=run_state))
        self._tell_output(lines)

    def _tell_output(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._ports.emit(events.OutputSeen(line=line))
