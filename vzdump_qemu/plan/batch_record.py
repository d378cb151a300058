"""How a whole job went: one model; pure.

Owns what is kept of a job and of each VM's run. `batch_recorder.JobRecorder` makes it from the
engine's events. Everything that tells of a job afterwards (reports, metrics, messages, JSON) is
made from a `JobRecord` and hears no events itself; every wording is left to those. Times of day
are `wall_s`, seconds since the epoch, and never go back within a run, even where the clock did.
Source: host behaviour, sections 1.4 to 1.10 and 6.6.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vzdump_qemu.events import BackupMode, Consistency, FreezeSkip
from vzdump_qemu.plan.notification import GuestState


class Phase(enum.Enum):
    """What a run is busy with. A run may enter a phase more than once."""

    LOCKING = "locking"
    PREPARING = "preparing"
    FREEZE = "freeze"
    COPYING = "copying"
    PROVING = "proving"
    PUBLISHING = "publishing"
    KEEPING = "keeping"
    PUTTING_BACK = "putting back"


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseRecord:
    """One stretch of a run; phases of a run touch each other and do not overlap.

    Attributes:
        ended_wall_s: at least `began_wall_s`; of a phase that is not over, when something of the
            run was heard last.
    """

    phase: Phase
    began_wall_s: float
    ended_wall_s: float

    @property
    def length_s(self) -> float:
        return self.ended_wall_s - self.began_wall_s


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeRecord:
    """A freeze that was asked for.

    Attributes:
        window_s: from sending freeze to the thaw reply; None if the thaw was never confirmed.
        own_s: the part of it in which nobody's answer was waited for; None like `window_s`.
        failure: why the guest was not frozen, or could not be thawed at first; empty otherwise.
    """

    began_wall_s: float
    window_s: float | None = None
    own_s: float | None = None
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressSample:
    """How far the copying was; all amounts since it began.

    Attributes:
        read_bytes: looked at.
        written_bytes: given to the target: read, and neither zero nor known to it. Before
            compression.
        zero_bytes: found to be zero.
    """

    wall_s: float
    read_bytes: int
    written_bytes: int
    zero_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRecord:
    """What was copied in the end.

    Attributes:
        total_bytes: of all disks.
        target_bytes: had to be looked at; below `total_bytes` for an increment.
        read_bytes: was looked at.
        written_bytes: see `ProgressSample`.
        reused_bytes: the target had it already; includes what needed no look.
        duration_s: of the copying alone.
    """

    total_bytes: int
    target_bytes: int
    read_bytes: int
    written_bytes: int
    zero_bytes: int
    reused_bytes: int
    duration_s: float

    @property
    def read_bytes_per_s(self) -> float | None:
        """Mean over the copying; None if that took no measurable time."""
        return self.read_bytes / self.duration_s if self.duration_s > 0 else None

    @property
    def written_bytes_per_s(self) -> float | None:
        """Mean over the copying; None if that took no measurable time."""
        return self.written_bytes / self.duration_s if self.duration_s > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskRecord:
    """One disk of the VM as its configuration names it.

    Attributes:
        size_text: as the configuration gives it, may be empty.
        excluded_reason: why it takes no part; empty for a disk that does.
    """

    key: str
    volid: str
    size_text: str = ""
    excluded_reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One VM of the job; of a VM that was not reached, only `vmid` tells anything.

    Attributes:
        vm_name: empty if it has none, or nobody came to know it.
        state: NOT_REACHED also while the run is going on.
        error, hint: of a failed run: why, and what to do; the hint may be empty.
        was_running: None until it was looked.
        mode: the effective one.
        consistency: of a run that ended well.
        data_path: as ``--data-path`` takes it; empty if none was chosen.
        data_path_reason: why that one; empty where it was asked for.
        phases: in order of time.
        freeze: None if no freeze was asked for; `freeze_skip` may tell why.
        downtime_s: how long the guest was off or stood still for the run; None if it was not.
        samples: in order of time, a bounded number, the newest always there.
        transfer: None if the copying did not end well, and for what another program packed.
        location: of the backup: path of the archive or path at a server. Planned from the
            beginning on, and made only if `state` is OK. Empty for standard output.
        size_bytes: of the finished backup: of the archive, or as it restores at a server.
        sent_bytes: over the wire to a server; None for an archive.
        proved_bytes: of the stream that was read back to prove the archive; None if none was.
        removed_names: older backups that went for this one.
        warnings: texts, as they came.
        log_path, side_log_path: of the run's log; empty without one.
    """

    vmid: int
    vm_name: str = ""
    state: GuestState = GuestState.NOT_REACHED
    error: str = ""
    hint: str = ""
    was_running: bool | None = None
    mode: BackupMode | None = None
    consistency: Consistency | None = None
    data_path: str = ""
    data_path_reason: str = ""
    began_wall_s: float | None = None
    ended_wall_s: float | None = None
    phases: tuple[PhaseRecord, ...] = ()
    freeze: FreezeRecord | None = None
    freeze_skip: FreezeSkip | None = None
    downtime_s: float | None = None
    samples: tuple[ProgressSample, ...] = ()
    transfer: TransferRecord | None = None
    disks: tuple[DiskRecord, ...] = ()
    location: str = ""
    size_bytes: int = 0
    sent_bytes: int | None = None
    proved_bytes: int | None = None
    is_encrypted: bool = False
    removed_names: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    log_path: str = ""
    side_log_path: str = ""

    @property
    def is_going_on(self) -> bool:
        """Begun and not ended."""
        return self.began_wall_s is not None and self.ended_wall_s is None

    @property
    def duration_s(self) -> float:
        """From begin to end; 0 if there is no end."""
        if self.began_wall_s is None or self.ended_wall_s is None:
            return 0.0
        return self.ended_wall_s - self.began_wall_s

    @property
    def verify_s(self) -> float | None:
        """How long the backup was proved, by us or its server; None if it never came so far."""
        return self.phase_s(Phase.PROVING)

    def phase_s(self, phase: Phase) -> float | None:
        """All time in one phase; None if the run never entered it."""
        lengths = [record.length_s for record in self.phases if record.phase is phase]
        return sum(lengths) if lengths else None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """A job, all VMs that were asked for included.

    Attributes:
        command_line: as the job's log tells it; empty if the job failed before.
        began_wall_s, ended_wall_s: of the first and the last event; None if there was none, or
            the job goes on.
        lock_wait_s: how long another job of the node was waited for.
        error, hint: of the job itself; a VM's failure is in its run. The error may have lines.
        runs: those that began in the order of their begin, then the VMs not reached, ascending.
        warnings: those that belong to no VM.
    """

    host_name: str
    command_line: str = ""
    began_wall_s: float | None = None
    ended_wall_s: float | None = None
    lock_wait_s: float = 0.0
    error: str = ""
    hint: str = ""
    runs: tuple[RunRecord, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Ended, without an error, every VM backed up. Warnings do not count."""
        is_ended = self.ended_wall_s is not None
        return is_ended and not self.error and all(run.state is GuestState.OK for run in self.runs)

    @property
    def duration_s(self) -> float:
        """From begin to end; 0 while it goes on."""
        if self.began_wall_s is None or self.ended_wall_s is None:
            return 0.0
        return self.ended_wall_s - self.began_wall_s

    @property
    def warning_count(self) -> int:
        """Of the job and of all VMs."""
        return len(self.warnings) + sum(len(run.warnings) for run in self.runs)

    @property
    def size_bytes(self) -> int:
        """Of all backups that were made."""
        return sum(run.size_bytes for run in self.in_state(GuestState.OK))

    def in_state(self, *states: GuestState) -> tuple[RunRecord, ...]:
        """The runs in one of these states, in their order."""
        return tuple(run for run in self.runs if run.state in states)

    def run_of(self, vmid: int) -> RunRecord | None:
        """The run of one VM."""
        return next((run for run in self.runs if run.vmid == vmid), None)
