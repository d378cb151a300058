"""Run states of one machine and the commands and happenings that change them.

Source: recorded sessions ``pve-status-*``, ``pve-prelaunch-cont``, ``pve-guest-*``.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

from vzsim.fakeqmp.jobs import Emit, Jobs
from vzsim.fakeqmp.outside import Timebase
from vzsim.fakeqmp.schema import CommandError

# The firmware resets the guest's controllers a little after the first cont.
_DEVICE_RESET_DELAY_S = 0.05


class RunState(Enum):
    """Status of ``query-status``, by QEMU's names."""

    PRELAUNCH = "prelaunch"
    INMIGRATE = "inmigrate"
    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    SHUTDOWN = "shutdown"
    IO_ERROR = "io-error"
    GUEST_PANICKED = "guest-panicked"
    WATCHDOG = "watchdog"
    DEBUG = "debug"
    FINISH_MIGRATE = "finish-migrate"
    POSTMIGRATE = "postmigrate"


class RunControl:
    """Run state of one machine.

    Args:
        on_change: called after every change; the agent and the guest look at the new state.
        on_guest_reset: called when the guest starts anew.
        exit_process: called when the process is to end.
    """

    def __init__(
        self,
        *,
        initial: RunState,
        no_shutdown: bool,
        no_reboot: bool,
        emit: Emit,
        jobs: Jobs,
        timebase: Timebase,
        on_change: Callable[[], None],
        on_guest_reset: Callable[[], None],
        exit_process: Callable[[], None],
    ) -> None:
        self.state = initial
        self._no_shutdown = no_shutdown
        self._reboot_is_shutdown = no_reboot
        self._emit = emit
        self._jobs = jobs
        self._timebase = timebase
        self._on_change = on_change
        self._on_guest_reset = on_guest_reset
        self._exit_process = exit_process
        self._never_ran = initial is not RunState.RUNNING

    @property
    def is_running(self) -> bool:
        """The guest's processors run."""
        return self.state is RunState.RUNNING

    def cont(self) -> dict[str, Any]:
        """``cont``. Raises: CommandError."""
        if self.state is RunState.SHUTDOWN:
            raise CommandError("Resetting the Virtual Machine is required")
        if self.state is RunState.INMIGRATE:
            raise CommandError("Expecting an incoming migration")
        if self.state in (RunState.RUNNING, RunState.SUSPENDED):
            return {}
        self._set(RunState.RUNNING)
        self._emit("RESUME")
        if self._never_ran:
            self._never_ran = False
            self._timebase.call_later(_DEVICE_RESET_DELAY_S, self._jobs.drain)
        return {}

    def stop(self) -> dict[str, Any]:
        """``stop``."""
        if self.state is RunState.RUNNING:
            self._halt(RunState.PAUSED)
        return {}

    def reset(self) -> dict[str, Any]:
        """``system_reset``."""
        if self._reboot_is_shutdown:
            self._emit("SHUTDOWN", {"guest": False, "reason": "host-qmp-system-reset"})
            if self.is_running:
                self._after_shutdown()
            return {}
        self._jobs.drain()
        self._jobs.drain()
        if self.state is RunState.SHUTDOWN:
            self._set(RunState.PAUSED)
        self._emit("RESET", {"guest": False, "reason": "host-qmp-system-reset"})
        self._on_guest_reset()
        return {}

    def wake_up(self) -> dict[str, Any]:
        """``system_wakeup``. Raises: CommandError."""
        if self.state is not RunState.SUSPENDED:
            raise CommandError("Unable to wake up: guest is not in suspended state")
        self._set(RunState.RUNNING)
        self._emit("WAKEUP")
        return {}

    def set_action(self, *, reboot: str | None, shutdown: str | None) -> dict[str, Any]:
        """``set-action``: what a guest's reboot or power-off does."""
        if reboot is not None:
            self._reboot_is_shutdown = reboot == "shutdown"
        if shutdown is not None:
            self._no_shutdown = shutdown == "pause"
        return {}

    # -- happenings inside the guest -----------------------------------------------------------

    def guest_powers_off(self) -> None:
        """The guest switches itself off; without ``-no-shutdown`` the process ends."""
        self._jobs.drain()
        self._jobs.drain()
        self._emit("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})
        self._after_shutdown()

    def guest_resets(self) -> None:
        """The guest reboots."""
        self._jobs.drain()
        self._emit("RESET", {"guest": True, "reason": "guest-reset"})
        self._on_guest_reset()

    def guest_suspends(self) -> None:
        """The guest goes to sleep."""
        self._set(RunState.SUSPENDED)
        self._emit("SUSPEND")

    def halt_for(
        self, state: RunState, *, event: str = "", data: dict[str, Any] | None = None
    ) -> None:
        """The machine stops by itself (I/O error, panic, watchdog, debugger), with its event."""
        if event:
            self._emit(event, data)
        self._halt(state)

    def enter(self, state: RunState, *, event: str = "") -> None:
        """Change the state without draining, with an event."""
        self._set(state)
        if event:
            self._emit(event)

    def _after_shutdown(self) -> None:
        if not self._no_shutdown:
            self._exit_process()
            return
        self._set(RunState.SHUTDOWN)
        self._emit("STOP")
        self._jobs.drain()

    def _halt(self, state: RunState) -> None:
        self._jobs.drain()
        self._set(state)
        self._emit("STOP")
        self._jobs.drain()

    def _set(self, state: RunState) -> None:
        self.state = state
        self._on_change()
