"""What is done to a guest and to the QEMU around it: power, freeze, thaw."""

from __future__ import annotations

from dataclasses import dataclass

from vzdump_qemu.events.base import Event
from vzdump_qemu.events.figures import FreezeSkip


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestStopping(Event):
    """STOP mode shuts the guest down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSuspending(Event):
    """SUSPEND mode stops the vCPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestResuming(Event):
    """Step 29: a suspended guest is let go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestRestarting(Event):
    """Step 29: a stopped guest is started again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestOnlineAgain(Event):
    """Downtime of a stopped or suspended guest."""

    downtime_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuStarting(Event):
    """No QEMU runs for this VM: one is started paused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuStopping(Event):
    """The QEMU started for the run is ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmKeptRunning(Event):
    """Somebody used the VM meanwhile; its QEMU stays."""

    run_state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeSkipped(Event):
    """Why the guest was not frozen."""

    reason: FreezeSkip


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeIssued(Event):
    """The freeze command goes out now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeStillWaiting(Event):
    """No answer yet; status is asked."""

    minutes_left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeFailed(Event):
    """The freeze went wrong; the backup goes on and thaw is issued."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ThawIssued(Event):
    """The thaw command goes out now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThawFailed(Event):
    """The thaw went wrong; it is tried again."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ThawRetried(Event):
    """One more thaw."""

    attempt_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeWindowClosed(Event):
    """How long the guest was frozen, from sending freeze to the thaw reply."""

    freeze_window_s: float
    own_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VmContinued(Event):
    """The vCPUs run (again); `downtime_s` if the run had stopped them."""

    downtime_s: float | None
