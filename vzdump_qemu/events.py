"""How the engine speaks: typed events, one dataclass each.

The engine formats no text. Renderers turn these into vzdump's log lines, a live display, JSON
lines and reports. Texts inside an event are foreign ones (an error, a program's output), as they
came. Times are `wall_s`, seconds since the epoch; lengths end in `_s`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass


class BackupMode(enum.Enum):
    """Backup modes as the operator knows them."""

    SNAPSHOT = "snapshot"
    SUSPEND = "suspend"
    STOP = "stop"


class Consistency(enum.Enum):
    """Consistency reached: what we report, not what was asked."""

    FROZEN = "frozen"
    CRASH = "crash"
    STOPPED = "stopped"


class FreezeSkip(enum.Enum):
    """Why no freeze was asked."""

    DISABLED = "disabled in VM options"
    NOT_RUNNING = "agent configured but not running?"
    ALREADY_FROZEN = "already frozen"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressLine:
    """Figures of one progress line.

    Attributes:
        percent: of `target_bytes`, floor; 100 if the target is 0.
        target_bytes: what this run has to look at (dirty amount or total).
        read_bytes_per_s, write_bytes_per_s: since the last line, never negative.
    """

    percent: int
    done_bytes: int
    target_bytes: int
    zero_bytes: int
    elapsed_s: float
    read_bytes_per_s: float
    write_bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSummary:
    """Totals of an ended job."""

    total_bytes: int
    transferred_bytes: int
    zero_bytes: int
    reused_bytes: int
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Root of all events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStarted(Event):
    """The batch began."""

    command_line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnded(Event):
    """The batch ended; `error` is empty unless the job as a whole failed."""

    failed_vmids: tuple[int, ...]
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalLockAwaited(Event):
    """Another job holds the node's lock; we wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalLockTaken(Event):
    """The wait for the node's lock is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """One VM's run began. Paths of its logs; `side_log_path` is empty without a directory."""

    vmid: int
    wall_s: float
    log_path: str
    side_log_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusSeen(Event):
    """Whether the VM runs."""

    running: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeChosen(Event):
    """The effective mode."""

    mode: BackupMode


@dataclass(frozen=True, slots=True, kw_only=True)
class BandwidthLimited(Event):
    """The operator's limit, in KiB/s."""

    limit_kib_per_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IoPrioritySet(Event):
    """ionice level, 0 to 8."""

    io_priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VmNamed(Event):
    """The VM's own name."""

    vm_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskIncluded(Event):
    """A disk takes part; `size_text` as the configuration gives it, may be empty."""

    key: str
    volid: str
    size_text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskExcluded(Event):
    """A disk does not take part."""

    key: str
    volid: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOverJobFound(Event):
    """A job of an earlier run is still active inside QEMU and gets cancelled."""


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
class UnusedDiskSkipped(Event):
    """An `unusedN` line is not part of the stored configuration."""

    volid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigSectionSkipped(Event):
    """A kind of section left out: `special`, `snapshot` or `pending`."""

    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveToStdout(Event):
    """The stream goes to standard output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveCreating(Event):
    """The final name the archive is to get."""

    archive_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPathChosen(Event):
    """Which way the bytes travel.

    Attributes:
        name: as ``--data-path`` takes it.
        reason: why this one; empty where the operator asked for it.
    """

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoDisksFound(Event):
    """Nothing but the configuration will be stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DisklessStarted(Event):
    """The configuration-only archive is being made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateStarted(Event):
    """A template is packed by an external program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandStarted(Event):
    """An external program, shell-quoted."""

    command_line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSeen(Event):
    """One line an external program printed."""

    line: str


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
class TpmAttaching(Event):
    """The TPM state volume is attached for reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleecingAttaching(Event):
    """A fleecing image is attached."""

    device_id: str
    volid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IncrementPlanned(Event):
    """Whether what did not change since an earlier backup is left unread.

    Attributes:
        changed_bytes: what is looked at; all of `size_bytes` if there is a `reason` for that.
        reason: why nothing is left unread; empty otherwise.
    """

    device_id: str
    size_bytes: int
    changed_bytes: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FleecingRemoving(Event):
    """A fleecing image is deleted; `old` if an earlier run left it."""

    volid: str
    old: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FleecingSizeUnknown(Event):
    """QEMU did not tell the disk's size; the storage's is used."""

    key: str


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
class JobStartIssued(Event):
    """The command that fixes the point in time goes out now."""


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
class JobAccepted(Event):
    """QEMU started the backup job."""

    uuid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VmContinued(Event):
    """The vCPUs run (again); `downtime_s` if the run had stopped them."""

    downtime_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressMade(Event):
    """A progress line is due."""

    line: ProgressLine


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFinishing(Event):
    """All data is sent; the server validates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferEnded(Event):
    """Totals of the job."""

    summary: TransferSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class JobAborting(Event):
    """The run failed while QEMU had work of ours."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoFailed(Event):
    """One reversal did not succeed (yet); the first error stays the primary one."""

    what: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoSucceeded(Event):
    """A reversal that had failed before did succeed."""

    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryNotNeeded(Event):
    """A VM's journal belongs to a run that lives: it ends in order by itself."""

    vmid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveProved(Event):
    """Every cluster of every device was seen once, all sums right."""

    stream_bytes: int
    vma_cluster_count: int
    stored_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivePublished(Event):
    """The archive has its final name."""

    archive_path: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned(Event):
    """Something the operator should know; counts as a warning of the job."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFailed(Event):
    """One VM's run ended with an error."""

    vmid: int
    wall_s: float
    text: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSucceeded(Event):
    """One VM's run ended well."""

    vmid: int
    wall_s: float
    duration_s: float
    consistency: Consistency


@dataclass(frozen=True, slots=True, kw_only=True)
class RunClosed(Event):
    """Nothing more is said about this VM."""

    vmid: int


Emit = Callable[[Event], None]
"""Takes one event; never blocks, never raises."""
