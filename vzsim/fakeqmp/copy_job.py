"""One copying block job: full, incremental, mirror, or only the filter (sync none).

Owns the work between a job's start and its end: steps and speed, errors and their policies, waiting
for its group. Checks of arguments are left to `block_jobs`. Event orders: recorded sessions
``stock-push-*``, ``stock-pull-*``, ``pve-blocked-operations``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from vzdump_qemu.units import MIB
from vzsim.fakeqmp.bitmaps import Bitmap
from vzsim.fakeqmp.copy_before_write import PIECE_BYTES, CopyBeforeWrite
from vzsim.fakeqmp.jobs import Emit, Job, JobPhase, Jobs
from vzsim.fakeqmp.nodes import Node
from vzsim.fakeqmp.outside import Timebase, Timer

_STEP_BYTES = MIB
_RETRY_DELAY_S = 0.1
_MIRROR_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyParts:
    """What a copying job works with.

    Attributes:
        pace_bytes_per_s: how fast the storage is; 0 is without limit.
        on_end: called once when the job has let go of its nodes.
    """

    jobs: Jobs
    emit: Emit
    timebase: Timebase
    pace_bytes_per_s: int
    on_end: Callable[[CopyJob, bool], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyPlan:
    """What shall be copied and what errors do.

    Attributes:
        copies: false with sync none: only guest writes cause copying.
        mirrors: changes are followed until the job is told to complete.
        on_source_error, on_target_error: report, ignore, enospc, stop (or auto).
    """

    source: Node
    target: Node
    guard: CopyBeforeWrite
    copies: bool = True
    mirrors: bool = False
    changes: Bitmap | None = None
    on_source_error: str = "report"
    on_target_error: str = "report"


@dataclass(slots=True, kw_only=True)
class JobGroup:
    """Jobs that succeed or fail together; a job alone is a group of one."""

    members: list[CopyJob] = field(default_factory=list)

    def member_is_done(self) -> None:
        """One more waits; when all do, all finish, the newest first."""
        if all(member.job.phase is JobPhase.WAITING for member in self.members):
            members = list(reversed(self.members))
            for member in members:
                member.become_pending()
            for member in members:
                if member.job.auto_finalize:
                    member.finish()

    def member_failed(self, failed: CopyJob) -> None:
        """The others are cancelled with it."""
        for member in list(self.members):
            if member is not failed and not member.is_over:
                member.abort()


class CopyJob:
    """One job; it registers itself with `Jobs` when made."""

    def __init__(self, parts: CopyParts, job: Job, plan: CopyPlan, group: JobGroup) -> None:
        self._parts = parts
        self.job = job
        self.plan = plan
        self._group = group
        self._timer: Timer | None = None
        self._ready_at_s = 0.0
        self._completing = False
        self.is_over = False
        group.members.append(self)
        parts.jobs.add(
            job,
            on_change=lambda _job: self._changed(),
            on_cancel=lambda _job: self._cancel(),
            on_finalize=lambda _job: self.finish(),
        )

    def begin(self) -> None:
        """The job has been started: work."""
        self._ready_at_s = self._parts.timebase.now_s()
        if self.plan.copies:
            self._schedule(0.0)

    def copied(self, length_bytes: int) -> None:
        """Count bytes copied, by the job or for a guest's write."""
        self.job.offset_bytes += length_bytes

    def discard(self) -> None:
        """A created job of a transaction that failed."""
        self._parts.jobs.move(self.job, JobPhase.ABORTING)
        self._end("BLOCK_JOB_CANCELLED", succeeded=False)

    def die_quietly(self) -> None:
        """The process is gone."""
        self.is_over = True
        self._stop_timer()

    # -- work ----------------------------------------------------------------------------------

    def _schedule(self, delay_s: float) -> None:
        self._stop_timer()
        self._timer = self._parts.timebase.call_later(delay_s, self._turn)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _turn(self) -> None:
        self._timer = None
        if self.is_over or self.job.phase not in (JobPhase.RUNNING, JobPhase.READY):
            return
        wait_s = self._ready_at_s - self._parts.timebase.now_s()
        if wait_s > 1e-9:
            self._schedule(wait_s)
            return
        taken_bytes = self._copy_step()
        if taken_bytes < 0:
            return
        if self.plan.guard.todo:
            self._wait_for(taken_bytes)
            self._schedule(self._ready_at_s - self._parts.timebase.now_s())
        elif self.plan.mirrors:
            self._follow_changes()
        else:
            self._stop_timer()
            self._parts.jobs.move(self.job, JobPhase.WAITING)
            self._group.member_is_done()

    def _wait_for(self, taken_bytes: int) -> None:
        rates = (self.job.speed_bytes_per_s, self._parts.pace_bytes_per_s)
        limits = [rate for rate in rates if rate > 0]
        if limits:
            self._ready_at_s += taken_bytes / min(limits)

    def _copy_step(self) -> int:
        """Copy up to one step; the bytes taken, or -1 if the job stopped or failed."""
        guard, taken = self.plan.guard, 0
        for index in sorted(guard.todo)[: _STEP_BYTES // PIECE_BYTES]:
            try:
                data = guard.read_piece(index)
            except OSError as error:
                self._failed("read", error.errno or errno.EIO, self.plan.on_source_error)
                return -1
            try:
                guard.write_piece(index, data)
            except OSError as error:
                self._failed("write", error.errno or errno.EIO, self.plan.on_target_error)
                return -1
            taken += len(data)
        return taken

    def _failed(self, operation: str, errno_code: int, policy: str) -> None:
        is_full = errno_code == errno.ENOSPC
        action = policy
        if policy in ("enospc", "auto"):
            action = "stop" if is_full else "report"
        self._parts.emit(
            "BLOCK_JOB_ERROR",
            {"device": self.job.job_id, "operation": operation, "action": action},
        )
        if action == "ignore":
            self._schedule(_RETRY_DELAY_S)
        elif action == "stop":
            self.job.io_status = "nospace" if is_full else "failed"
            self.job.held_by_user = True
            self._parts.jobs.move(self.job, JobPhase.PAUSED)
        else:
            self._stop_timer()
            self._parts.jobs.move(self.job, JobPhase.ABORTING)
            self._end("BLOCK_JOB_COMPLETED", succeeded=False, error_text=os.strerror(errno_code))
            self._group.member_failed(self)

    # -- mirror --------------------------------------------------------------------------------

    def _follow_changes(self) -> None:
        changes = self.plan.changes
        if changes is not None and changes.dirty:
            self.plan.guard.todo |= changes.dirty
            self.job.length_bytes += len(changes.dirty) * changes.granularity_bytes
            changes.dirty.clear()
            self._schedule(0.0)
        elif self._completing:
            self._parts.jobs.move(self.job, JobPhase.WAITING)
            self._group.member_is_done()
        else:
            if self.job.phase is JobPhase.RUNNING:
                self._parts.jobs.move(self.job, JobPhase.READY)
                self._parts.emit("BLOCK_JOB_READY", self._figures())
            self._schedule(_MIRROR_POLL_S)

    def _figures(self) -> dict[str, object]:
        return {
            "device": self.job.job_id,
            "len": self.job.length_bytes,
            "offset": self.job.offset_bytes,
            "speed": self.job.speed_bytes_per_s,
            "type": self.job.kind,
        }

    # -- told from outside ---------------------------------------------------------------------

    def _changed(self) -> None:
        self._ready_at_s = min(self._ready_at_s, self._parts.timebase.now_s())
        if self.plan.copies and self.job.phase is JobPhase.RUNNING:
            self._schedule(0.0)

    def _cancel(self) -> None:
        if self.job.phase is JobPhase.READY and not self.job.is_forced:
            self._completing = True
            self._schedule(0.0)
            return
        self._stop_timer()
        if self.job.phase is JobPhase.PAUSED:
            self._parts.jobs.move(self.job, JobPhase.RUNNING)
            self._timer = self._parts.timebase.call_later(0.0, self._cancel_now)
        else:
            self._cancel_now()

    def _cancel_now(self) -> None:
        self.abort()
        self._group.member_failed(self)

    def abort(self) -> None:
        """End as cancelled, at once."""
        if self.is_over:
            return
        self._stop_timer()
        if self.job.phase is JobPhase.PAUSED:
            self._parts.jobs.move(self.job, JobPhase.RUNNING)
        self._parts.jobs.move(self.job, JobPhase.ABORTING)
        self._end("BLOCK_JOB_CANCELLED", succeeded=False)

    # -- end -----------------------------------------------------------------------------------

    def become_pending(self) -> None:
        """All work of the group is done."""
        self._parts.jobs.move(self.job, JobPhase.PENDING)
        if not self.job.auto_finalize:
            self._parts.emit("BLOCK_JOB_PENDING", {"type": self.job.kind, "id": self.job.job_id})

    def finish(self) -> None:
        """End well."""
        self._end("BLOCK_JOB_COMPLETED", succeeded=True)

    def _end(self, event: str, *, succeeded: bool, error_text: str = "") -> None:
        self.is_over = True
        self._parts.on_end(self, succeeded)
        self._parts.jobs.end(self.job, event, error_text=error_text)
