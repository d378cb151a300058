"""Block jobs of one machine: the list, the states, the events, the speed limit.

Owns what all jobs have in common; the backup job's work lives in `backup_run`. Event orders are
those of the recorded sessions (``pve-backup-*``, ``pve-cancel-*``, ``pve-job-cancel-one``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from vzsim.fakeqmp.schema import CommandError


class JobPhase(Enum):
    """States of a job, by QEMU's names."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    WAITING = "waiting"
    PENDING = "pending"
    ABORTING = "aborting"
    CONCLUDED = "concluded"
    GONE = "null"


class Emit(Protocol):
    """Send an event to all monitors."""

    def __call__(self, name: str, data: dict[str, Any] | None = None) -> None: ...


@dataclass(slots=True, kw_only=True)
class Job:
    """One block job as the job commands show it."""

    job_id: str
    kind: str
    length_bytes: int
    speed_bytes_per_s: int
    phase: JobPhase = JobPhase.CREATED
    offset_bytes: int = 0
    started: bool = False
    held_by_user: bool = False


class Jobs:
    """The jobs that exist now, in the order in which they were made."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._jobs: list[Job] = []
        self._on_change: dict[str, Callable[[Job], None]] = {}
        self._on_cancel: dict[str, Callable[[Job], None]] = {}

    def add(
        self, job: Job, *, on_change: Callable[[Job], None], on_cancel: Callable[[Job], None]
    ) -> None:
        """Add a created job.

        Args:
            on_change: called when its speed or pause was changed from outside.
            on_cancel: called to cancel it.
        """
        self._jobs.append(job)
        self._on_change[job.job_id] = on_change
        self._on_cancel[job.job_id] = on_cancel
        self._say(job)

    def move(self, job: Job, phase: JobPhase) -> None:
        """Move a job to another state; a job that is gone leaves the list."""
        job.phase = phase
        if phase is JobPhase.RUNNING:
            job.started = True
        if phase is JobPhase.GONE:
            self._jobs.remove(job)
            del self._on_change[job.job_id], self._on_cancel[job.job_id]
        self._say(job)

    def drain(self) -> None:
        """What every drained section shows: running jobs pause and go on."""
        for job in list(self._jobs):
            if job.phase is JobPhase.RUNNING:
                self.move(job, JobPhase.PAUSED)
                self.move(job, JobPhase.RUNNING)

    def end(self, job: Job, event: str, *, error_text: str = "") -> None:
        """The last events of a job: BLOCK_JOB_COMPLETED or _CANCELLED, concluded, null.

        A job that never ran ends without a BLOCK_JOB event.
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
        self.move(job, JobPhase.CONCLUDED)
        self.move(job, JobPhase.GONE)

    def refuse_if_busy(self, name: str) -> None:
        """Raises: CommandError if a job uses the device of that name."""
        for job in self._jobs:
            if job.job_id == name:
                raise CommandError(
                    f"Node '{name}' is busy: block device is in use by block job: {job.kind}"
                )

    def set_speed(self, device: str, speed_bytes_per_s: int) -> None:
        """``block-job-set-speed``. Raises: CommandError."""
        job = self._find(device)
        if job.phase in (JobPhase.WAITING, JobPhase.PENDING, JobPhase.ABORTING):
            raise CommandError(
                f"Job '{device}' in state '{job.phase.value}' cannot accept command verb"
                " 'set-speed'"
            )
        if speed_bytes_per_s < 0:
            raise CommandError("Parameter 'speed' expects a non-negative value")
        job.speed_bytes_per_s = speed_bytes_per_s
        self._on_change[device](job)

    def hold(self, device: str, *, held: bool) -> None:
        """``block-job-pause`` and ``block-job-resume``. Raises: CommandError."""
        job = self._find(device)
        if held == job.held_by_user:
            raise CommandError(
                f"Job '{device}' is already paused" if held else f"Job '{device}' is not paused"
            )
        job.held_by_user = held
        if job.phase in (JobPhase.RUNNING, JobPhase.PAUSED):
            self.move(job, JobPhase.PAUSED if held else JobPhase.RUNNING)
        self._on_change[device](job)

    def cancel(self, device: str) -> None:
        """``block-job-cancel``. Raises: CommandError."""
        job = self._find(device)
        self._on_cancel[device](job)

    def describe(self) -> list[dict[str, Any]]:
        """Reply of ``query-jobs``: the newest first, as QEMU lists them."""
        return [
            {
                "current-progress": job.offset_bytes,
                "status": job.phase.value,
                "total-progress": job.length_bytes,
                "type": job.kind,
                "id": job.job_id,
            }
            for job in reversed(self._jobs)
        ]

    def describe_block_jobs(self) -> list[dict[str, Any]]:
        """Reply of ``query-block-jobs``."""
        return [
            {
                "auto-finalize": True,
                "io-status": "ok",
                "device": job.job_id,
                "auto-dismiss": True,
                "busy": False,
                "len": job.length_bytes,
                "offset": job.offset_bytes,
                "status": job.phase.value,
                "paused": job.held_by_user or job.phase is JobPhase.CREATED,
                "speed": job.speed_bytes_per_s,
                "ready": False,
                "type": job.kind,
            }
            for job in reversed(self._jobs)
        ]

    def _find(self, device: str) -> Job:
        for job in self._jobs:
            if job.job_id == device:
                return job
        raise CommandError(f"Block job '{device}' not found", "DeviceNotActive")

    def _say(self, job: Job) -> None:
        self._emit("JOB_STATUS_CHANGE", {"status": job.phase.value, "id": job.job_id})
