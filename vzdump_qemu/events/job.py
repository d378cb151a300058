"""What happens around a backup: a job and its runs, what they found, how they ended."""

from __future__ import annotations

from dataclasses import dataclass

from vzdump_qemu.events.base import Event
from vzdump_qemu.events.figures import BackupMode, Consistency


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
class ExternalVmsSkipped(Event):
    """VMs that were asked for and live on other nodes."""

    vmids: tuple[int, ...]


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
class UnusedDiskSkipped(Event):
    """An `unusedN` line is not part of the stored configuration."""

    volid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigSectionSkipped(Event):
    """A kind of section left out: `special`, `snapshot` or `pending`."""

    kind: str


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
class Warned(Event):
    """Something the operator should know; counts as a warning of the job."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionIgnored(Event):
    """An option that means nothing for VMs was given."""

    name: str


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


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationFailed(Event):
    """Somebody who was to know how the job ended was not told.

    Attributes:
        name: of the way that failed.
    """

    name: str
    text: str
    hint: str
