"""Block jobs of one machine: the list, the states, the events, the speed limit.

Owns what all jobs have in common; the backup job's work lives in `backup_run`. Event orders are
those of the recorded sessions (``pve-backup-*``, ``pve-cancel-*``, ``pve-job-cancel-one``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from vzsim.fakeqmp.schema import CommandError, Dialect


class JobPhase(Enum):
    """States of a job, by QEMU's names."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    READY = "ready"
    WAITING = "waiting"
    PENDING = "pending"
    ABORTING = "aborting"
    CONCLUDED = "concluded"
    GONE = "null"


# Which states accept which verb.
_VERBS = {
    "cancel": ("created", "running", "paused", "ready", "waiting", "pending"),
    "pause": ("created", "running", "paused", "ready"),
    "resume": ("created", "running", "paused", "ready"),
    "set-speed": ("created", "running", "paused", "ready"),
    "complete": ("ready",),
    "finalize": ("pending",),
    "dismiss": ("concluded",),
}


class Emit(Protocol):
    """Send an event to all monitors."""

    def __call__(self, name: str, data: dict[str, Any] | None = None) -> None: ...


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One block job as the job commands show it.

    Attributes:
        blocked: names of nodes and backends that are busy because of it; its own id if empty.
        drained_with: nodes whose drained sections pause it.
        is_forced: a cancel in progress does not wait for anything.
    """

    job_id: str
    kind: str
    length_bytes: int
    speed_bytes_per_s: int
    phase: JobPhase = JobPhase.CREATED
    offset_bytes: int = 0
    started: bool = False
    held_by_user: bool = False
    auto_finalize: bool = True
    auto_dismiss: bool = True
    io_status: str = "ok"
    error_text: str = ""
    blocked: frozenset[str] = frozenset()
    drained_with: frozenset[str] = frozenset()
    is_forced: bool = False


class Jobs:
    """The jobs that exist now, in the order in which they were made."""

    def __init__(self, emit: Emit, dialect: Dialect) -> None:
        self._emit = emit
        self._dialect = dialect
        self._jobs: list[Job] = []
        self._on_change: dict[str, Callable[[Job], None]] = {}
        self._on_cancel: dict[str, Callable[[Job], None]] = {}
        self._on_finalize: dict[str, Callable[[Job], None]] = {}

    def add(
        self,
        job: Job,
        *,
        on_change: Callable[[Job], None],
        on_cancel: Callable[[Job], None],
        on_finalize: Callable[[Job], None] = lambda _job: None,
    ) -> None:
        """Add a created job.

        Args:
            on_change: called when its speed or pause was changed from outside.
            on_cancel: called to cancel it.
            on_finalize: called when a pending job may end.
        """
        self._jobs.append(job)
        self._on_change[job.job_id] = on_change
        self._on_cancel[job.job_id] = on_cancel
        self._on_finalize[job.job_id] = on_finalize
        self._say(job)

    def has(self, job_id: str) -> bool:
        """Whether a job of that id exists."""
        return any(job.job_id == job_id for job in self._jobs)

    def move(self, job: Job, phase: JobPhase) -> None:
        """Move a job to another state; a job that is gone leaves the list."""
        job.phase = phase
        if phase is JobPhase.RUNNING:
            job.started = True
        if phase is JobPhase.GONE:
            self._jobs.remove(job)
            del self._on_change[job.job_id], self._on_cancel[job.job_id]
            del self._on_finalize[job.job_id]
        self._say(job)

    def drain(self) -> None:
        """What every drained section shows: running jobs pause and go on."""
        for job in list(self._jobs):
            if job.phase is JobPhase.RUNNING:
                self.move(job, JobPhase.PAUSED)
                self.move(job, JobPhase.RUNNING)

    def drain_nodes(self, names: Collection[str]) -> None:
        """A drained section of these nodes, twice over, as QEMU's commands do it."""
        for _ in range(2):
            for job in list(self._jobs):
                if job.phase is JobPhase.RUNNING and job.drained_with & set(names):
                    self.move(job, JobPhase.PAUSED)
                    self.move(job, JobPhase.RUNNING)

    def start_together(self, jobs: Sequence[Job]) -> None:
        """Created jobs start inside one drained section."""
        for job in jobs:
            self.move(job, JobPhase.RUNNING)
            self.move(job, JobPhase.PAUSED)
        for job in jobs:
            self.move(job, JobPhase.RUNNING)

    def end(self, job: Job, event: str, *, error_text: str = "") -> None:
        """The last events of a job: BLOCK_JOB_COMPLETED or _CANCELLED, concluded, null.

        A job that never ran ends without a BLOCK_JOB event; one that is not dismissed by itself
        stays.
        """
        if job.started:
            data = {
                "device": job.job_id,
                "len": job.length_bytes,
                "offset": job.offset_bytes,
                "speed": job.speed_bytes_per_s,
                "type": job.kind,
            }
            if error_text:
                data["error"] = error_text
            self._emit(event, data)
        job.error_text = error_text
        self.move(job, JobPhase.CONCLUDED)
        if job.auto_dismiss or not job.started:
            self.move(job, JobPhase.GONE)

    def refuse_if_busy(self, name: str) -> None:
        """Raises: CommandError if a job uses the device of that name."""
        for job in self._jobs:
            if name in (job.blocked or (job.job_id,)) and job.phase is not JobPhase.CONCLUDED:
                raise CommandError(
                    f"Node '{name}' is busy: block device is in use by block job: {job.kind}"
                )

    def set_speed(self, device: str, speed_bytes_per_s: int) -> None:
        """``block-job-set-speed``. Raises: CommandError."""
        job = self._find(device)
        _check_verb(job, "set-speed")
        if speed_bytes_per_s < 0:
            raise CommandError("Parameter 'speed' expects a non-negative value")
        job.speed_bytes_per_s = speed_bytes_per_s
        self._on_change[device](job)

    def hold(self, device: str, *, held: bool, generic: bool = False) -> None:
        """``block-job-pause`` and ``block-job-resume``, or ``job-…`` (generic).

        Raises: CommandError.
        """
        job = self._find(device, generic=generic)
        _check_verb(job, "pause" if held else "resume")
        if held == job.held_by_user:
            raise CommandError(
                "Job is already paused" if held else "Can't resume a job that was not paused"
            )
        job.held_by_user = held
        if not held:
            job.io_status = "ok"
        if job.phase in (JobPhase.RUNNING, JobPhase.PAUSED):
            self.move(job, JobPhase.PAUSED if held else JobPhase.RUNNING)
        self._on_change[device](job)

    def cancel(self, device: str, *, force: bool = False) -> None:
        """``block-job-cancel``. Raises: CommandError."""
        job = self._find(device)
        if job.held_by_user and not force:
            raise CommandError(f"The block job for device '{device}' is currently paused")
        _check_verb(job, "cancel")
        job.is_forced = force
        self._on_cancel[device](job)

    def cancel_generic(self, job_id: str) -> None:
        """``job-cancel``: always forced. Raises: CommandError."""
        job = self._find(job_id, generic=True)
        _check_verb(job, "cancel")
        job.is_forced = True
        self._on_cancel[job_id](job)

    def complete(self, device: str, *, generic: bool = False) -> None:
        """``block-job-complete`` or ``job-complete``. Raises: CommandError."""
        job = self._find(device, generic=generic)
        _check_verb(job, "complete")
        job.is_forced = False
        self._on_cancel[device](job)

    def finalize(self, job_id: str, *, generic: bool = True) -> None:
        """``job-finalize`` or ``block-job-finalize``. Raises: CommandError."""
        job = self._find(job_id, generic=generic)
        _check_verb(job, "finalize")
        self._on_finalize[job_id](job)

    def dismiss(self, job_id: str, *, generic: bool = True) -> None:
        """``job-dismiss`` or ``block-job-dismiss``. Raises: CommandError."""
        job = self._find(job_id, generic=generic)
        _check_verb(job, "dismiss")
        self.move(job, JobPhase.GONE)

    def describe(self) -> list[dict[str, Any]]:
        """Reply of ``query-jobs``: the newest first, as QEMU lists them."""
        replies = []
        for job in reversed(self._jobs):
            reply: dict[str, Any] = {
                "current-progress": job.offset_bytes,
                "status": job.phase.value,
                "total-progress": job.length_bytes,
                "type": job.kind,
                "id": job.job_id,
            }
            if job.error_text:
                reply["error"] = job.error_text
            replies.append(reply)
        return replies

    def describe_block_jobs(self) -> list[dict[str, Any]]:
        """Reply of ``query-block-jobs``."""
        return [
            {
                "auto-finalize": job.auto_finalize,
                "io-status": job.io_status,
                "device": job.job_id,
                "auto-dismiss": job.auto_dismiss,
                "busy": False,
                "len": job.length_bytes,
                "offset": job.offset_bytes,
                "status": job.phase.value,
                "paused": job.held_by_user or job.phase is JobPhase.CREATED,
                "speed": job.speed_bytes_per_s,
                "ready": job.phase is JobPhase.READY,
                "type": job.kind,
            }
            | self._of_mirror(job)
            for job in reversed(self._jobs)
        ]

    def _of_mirror(self, job: Job) -> dict[str, Any]:
        tells = job.kind == "mirror" and self._dialect is Dialect.PVE
        return {"actively-synced": False} if tells else {}

    def _find(self, device: str, *, generic: bool = False) -> Job:
        for job in self._jobs:
            if job.job_id == device:
                return job
        if generic:
            raise CommandError("Job not found")
        raise CommandError(f"Block job '{device}' not found", "DeviceNotActive")

    def _say(self, job: Job) -> None:
        self._emit("JOB_STATUS_CHANGE", {"status": job.phase.value, "id": job.job_id})


def _check_verb(job: Job, verb: str) -> None:
    if job.phase.value not in _VERBS[verb]:
        raise CommandError(
            f"Job '{job.job_id}' in state '{job.phase.value}' cannot accept command verb '{verb}'"
        )
