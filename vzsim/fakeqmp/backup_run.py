"""One running backup: copy jobs, copy-before-write, errors and the end.

Owns the work between the `backup` command and its last event. Disks are copied one after the other,
the last one first, in steps; a guest write to a place not yet saved first hands over the old bytes.
While the target is full nothing goes on: no job, no such guest write, and where the target is a
pipe no cancel. Commands and their checks are left to `backup_commands`, targets to the outputs.
Source: PVE interface, section 5; recorded sessions ``pve-*``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vzdump_qemu.units import MIB, ceil_div
from vzsim.fakeqmp.backup_output import BackupOutput
from vzsim.fakeqmp.backup_state import BackupFigures
from vzsim.fakeqmp.disks import Disk
from vzsim.fakeqmp.jobs import Emit, Job, JobPhase, Jobs
from vzsim.fakeqmp.outside import Timebase, Timer
from vzsim.fakeqmp.script import BackupRules

_STEP_BYTES = MIB
# With fleecing a job asks for larger pieces.
_FLEECING_STEP_BYTES = 4 * MIB
# Work of one turn: large enough for speed, small enough for a monitor to answer meanwhile.
_TURN_BYTES = 4 * MIB
_EPERM = 1
_EIO = 5
_ECANCELED = 125

WriteDone = Callable[[int], None]


@dataclass(slots=True, kw_only=True)
class DiskCopy:
    """One disk of a backup and how far it is, in pieces of its target.

    Attributes:
        clean: pieces that the target has from the previous backup.
    """

    job: Job
    disk: Disk
    dev_number: int
    piece_bytes: int
    fleecing: Disk | None = None
    clean: set[int] = field(default_factory=set)
    saved: bytearray = field(default_factory=bytearray)
    in_fleecing: set[int] = field(default_factory=set)
    next_index: int = 0
    ready_at_s: float = 0.0
    read_error: int = 0

    @property
    def step_bytes(self) -> int:
        """What the job copies in one go, and counts as progress."""
        step_bytes = _STEP_BYTES if self.fleecing is None else _FLEECING_STEP_BYTES
        return max(step_bytes, self.piece_bytes)

    @property
    def piece_count(self) -> int:
        """Pieces of the disk, the last one perhaps short."""
        return ceil_div(self.disk.size_bytes, self.piece_bytes)

    @property
    def unclean_bytes(self) -> int:
        """What the job has to copy."""
        size_bytes, last_index = self.disk.size_bytes, self.piece_count - 1
        whole_bytes = (self.piece_count - len(self.clean)) * self.piece_bytes
        short_bytes = self.piece_count * self.piece_bytes - size_bytes
        return whole_bytes - (0 if last_index in self.clean else short_bytes)

    def skip_clean(self) -> None:
        """Go on to the next piece that is to be saved."""
        while self.next_index in self.clean:
            self.next_index += 1


@dataclass(slots=True, kw_only=True)
class _HeldWrite:
    copy: DiskCopy
    offset_bytes: int
    data: bytes
    done: WriteDone


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParts:
    """What a run works with.

    Attributes:
        on_jobs_end: called when the jobs have ended, with whether they saved all; the target may
            still fail after that.
        on_end: called once, when all is over.
    """

    jobs: Jobs
    emit: Emit
    timebase: Timebase
    rules: BackupRules
    figures: BackupFigures
    on_die: Callable[[], None]
    on_jobs_end: Callable[[bool], None]
    on_end: Callable[[], None]


class BackupRun:
    """The work of one backup from its jobs' creation to its end."""

    def __init__(
        self, parts: RunParts, copies: Sequence[DiskCopy], make_output: Callable[..., BackupOutput]
    ) -> None:
        self._parts = parts
        self._copies = {copy.job.job_id: copy for copy in copies}
        self._output = make_output(on_drained=self._drained)
        # Jobs run one after the other, beginning with the last.
        self._todo = list(copies)
        self._order: list[DiskCopy] = []
        self._timer: Timer | None = None
        self._held: list[_HeldWrite] = []
        self._stall_used = False
        self._broken_errno = 0
        self._cancel_done: list[Callable[[], None]] = []
        self._stalled = False
        self._ended = False

    def start(self) -> None:
        """Create the jobs and start the first; the point in time is now."""
        for copy in self._todo:
            copy.saved = bytearray(copy.piece_count)
            for index in copy.clean:
                copy.saved[index] = 1
            self._parts.jobs.add(copy.job, on_change=self._job_changed, on_cancel=self._cancel_one)
        self._start_next()

    def die_quietly(self) -> None:
        """Stop all work without a word: the process is gone."""
        self._ended = True
        self._stop_timer()
        self._output.close()

    def guest_write(self, device_id: str, offset_bytes: int, data: bytes, done: WriteDone) -> None:
        """Carry out a guest write; `done` gets 0 or an errno, now or when the target allows."""
        copy = self._copies[device_id]
        held = _HeldWrite(copy=copy, offset_bytes=offset_bytes, data=data, done=done)
        if self._held or not self._try_write(held):
            self._held.append(held)

    def covers(self, device_id: str) -> bool:
        """Whether writes to that device must go through this run."""
        return device_id in self._copies and not self._ended

    def cancel(self, done: Callable[[], None]) -> None:
        """``backup-cancel``: everything is over when `done` is called.

        While a pipe takes nothing this does not end: the write in progress is waited for.
        """
        self._parts.figures.record_error("backup canceled")
        self._cancel_done.append(done)
        self._stop_timer()
        if self._output.is_blocked:
            self._output.drop()
            return
        self._finish_cancel()

    # -- copying -------------------------------------------------------------------------------

    def _start_next(self) -> None:
        while self._todo:
            copy = self._todo.pop()
            self._order.append(copy)
            self._parts.jobs.move(copy.job, JobPhase.RUNNING)
            copy.ready_at_s = self._parts.timebase.now_s()
            if copy.piece_count:
                self._schedule(0.0)
                return
            self._parts.jobs.move(copy.job, JobPhase.WAITING)
        self._complete()

    def _schedule(self, delay_s: float) -> None:
        self._stop_timer()
        self._timer = self._parts.timebase.call_later(delay_s, self._turn)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def _current(self) -> DiskCopy:
        return self._order[-1]

    def _turn(self) -> None:
        self._timer = None
        budget = _TURN_BYTES
        while budget > 0 and not self._ended:
            copy = self._current
            job = copy.job
            if job.phase is not JobPhase.RUNNING or self._output.is_blocked or self._stalled:
                return
            wait_s = copy.ready_at_s - self._parts.timebase.now_s()
            if wait_s > 0:
                self._schedule(wait_s)
                return
            if self._obeyed_script():
                return
            copy.skip_clean()
            if copy.next_index < copy.piece_count:
                taken = self._copy_step(copy)
                if taken is None:
                    return
                budget -= taken
                copy.skip_clean()
            if copy.next_index >= copy.piece_count:
                self._copied(copy)
                return
        if not self._ended:
            self._schedule(0.0)

    def _copied(self, copy: DiskCopy) -> None:
        """All of a disk was handed over; its job waits for the others, if it is safe."""
        output = self._output
        if copy.read_error:
            self._read_failed(copy, copy.read_error)
        elif output.is_settled is not None and output.error_text:
            self._write_failed(copy)
        elif output.is_settled is not False:
            self._parts.jobs.move(copy.job, JobPhase.WAITING)
            self._start_next()

    def _obeyed_script(self) -> bool:
        rules, done_bytes = self._parts.rules, self._parts.figures.transferred_bytes
        if self._broken_errno:
            self._read_failed(self._current, self._broken_errno)
            return True
        if rules.die_at_bytes is not None and done_bytes >= rules.die_at_bytes:
            self._parts.on_die()
            return True
        if rules.fail_at_bytes is not None and done_bytes >= rules.fail_at_bytes:
            self._parts.figures.record_error(rules.fail_text)
            self._fail(self._current, operation="read", text="Input/output error")
            return True
        at = rules.stall_at_bytes
        if at is not None and done_bytes >= at and rules.stall_s > 0 and not self._stall_used:
            self._stalled = True
            self._stall_used = True
            self._timer = self._parts.timebase.call_later(rules.stall_s, self._end_stall)
            return True
        return False

    def _end_stall(self) -> None:
        self._stalled = False
        self._schedule(0.0)

    def _copy_step(self, copy: DiskCopy) -> int | None:
        """Copy up to the end of a step; None if the output waits or the run failed."""
        step_count = copy.step_bytes // copy.piece_bytes
        end_index = min((copy.next_index // step_count + 1) * step_count, copy.piece_count)
        began_index = copy.next_index
        while copy.next_index < end_index:
            run_count = self._unsaved_count(copy, copy.next_index, end_index)
            if run_count == 0:
                copy.next_index += 1
                continue
            if self._output.error_text:
                self._write_failed(copy)
                return None
            try:
                taken_count = self._save(copy, copy.next_index, run_count)
            except OSError as error:
                # Other workers' requests go on: the failure is noticed after their steps.
                copy.read_error = error.errno or _EIO
                copy.next_index = end_index
                return copy.step_bytes
            copy.next_index += taken_count
            if self._output.is_blocked:
                if copy.next_index == end_index:
                    self._step_done(copy, end_index)
                return None
        self._step_done(copy, end_index)
        return max((end_index - began_index) * copy.piece_bytes, 1)

    def _step_done(self, copy: DiskCopy, end_index: int) -> None:
        end_bytes = min(end_index * copy.piece_bytes, copy.disk.size_bytes)
        step_bytes = end_bytes - (end_bytes - 1) // copy.step_bytes * copy.step_bytes
        copy.job.offset_bytes += step_bytes
        limits = [
            rate for rate in (copy.job.speed_bytes_per_s, self._parts.rules.bytes_per_s) if rate > 0
        ]
        if limits:
            copy.ready_at_s += step_bytes / min(limits)

    def _unsaved_count(self, copy: DiskCopy, first_index: int, end_index: int) -> int:
        next_saved = copy.saved.find(1, first_index, end_index)
        return (end_index if next_saved < 0 else next_saved) - first_index

    def _save(self, copy: DiskCopy, first_index: int, count: int) -> int:
        """Hand over pieces, no more than the output has room for; return how many."""
        count = min(count, self._output.free_piece_count)
        if copy.in_fleecing:
            count = self._same_source_count(copy, first_index, count)
        offset = first_index * copy.piece_bytes
        length = min(count * copy.piece_bytes, copy.disk.size_bytes - offset)
        source = copy.disk
        if copy.fleecing is not None and first_index in copy.in_fleecing:
            source = copy.fleecing
        zero_bytes = self._output.take(copy.dev_number, first_index, count, source)
        self._parts.figures.zero_bytes += zero_bytes
        self._parts.figures.transferred_bytes += length
        copy.saved[first_index : first_index + count] = b"\1" * count
        return count

    def _same_source_count(self, copy: DiskCopy, first_index: int, count: int) -> int:
        is_saved = first_index in copy.in_fleecing
        for index in range(first_index + 1, first_index + count):
            if (index in copy.in_fleecing) != is_saved:
                return index - first_index
        return count

    # -- the guest -----------------------------------------------------------------------------

    def _try_write(self, held: _HeldWrite) -> bool:
        """Carry out a guest write; False if it must wait for the target."""
        copy = held.copy
        first_index = held.offset_bytes // copy.piece_bytes
        end_index = ceil_div(held.offset_bytes + len(held.data), copy.piece_bytes)
        if not self._ended:
            for index in range(first_index, end_index):
                if copy.saved[index] or index in copy.in_fleecing or self._broken_errno:
                    continue
                if copy.fleecing is not None:
                    self._save_to_fleecing(copy, index)
                    continue
                if self._output.is_blocked:
                    return False
                if self._output.error_text:
                    held.done(_EPERM)
                    return True
                try:
                    self._save(copy, index, 1)
                except OSError as error:
                    held.done(error.errno or _EIO)
                    return True
        copy.disk.write(held.offset_bytes, held.data)
        held.done(0)
        return True

    def _save_to_fleecing(self, copy: DiskCopy, index: int) -> None:
        if copy.fleecing is None:
            return
        offset = index * copy.piece_bytes
        length = min(copy.piece_bytes, copy.disk.size_bytes - offset)
        try:
            copy.fleecing.write(offset, bytes(copy.disk.read(offset, length)))
        except OSError as error:
            # The guest goes on; the old data is gone, and with it the point in time.
            self._broken_errno = error.errno or _EIO
            return
        copy.in_fleecing.add(index)

    def _serve_held_writes(self) -> None:
        while self._held and self._try_write(self._held[0]):
            del self._held[0]

    # -- ends ----------------------------------------------------------------------------------

    def _drained(self) -> None:
        if self._ended:
            return
        if self._cancel_done:
            self._finish_cancel()
            return
        if all(copy.job.phase is JobPhase.GONE for copy in self._order):
            self._close()
            return
        self._serve_held_writes()
        if not self._output.is_blocked and self._timer is None and not self._stalled:
            self._schedule(0.0)

    def _complete(self) -> None:
        jobs = [copy.job for copy in self._order]
        for job in jobs:
            self._parts.jobs.move(job, JobPhase.PENDING)
        for job in jobs:
            self._parts.jobs.end(job, "BLOCK_JOB_COMPLETED")
        self._parts.on_jobs_end(True)
        self._output.finish()

    def _read_failed(self, copy: DiskCopy, errno_code: int) -> None:
        text = os.strerror(errno_code)
        self._parts.figures.record_error(f"job failed with err -{errno_code} - {text}")
        self._fail(copy, operation="read", text=text)

    def _write_failed(self, copy: DiskCopy) -> None:
        self._parts.figures.record_error(self._output.error_text)
        self._fail(copy, operation="write", text="Operation not permitted")

    def _fail(self, copy: DiskCopy, *, operation: str, text: str) -> None:
        jobs, job = self._parts.jobs, copy.job
        self._stop_timer()
        self._parts.emit(
            "BLOCK_JOB_ERROR",
            {"device": job.job_id, "operation": operation, "action": "report"},
        )
        jobs.move(job, JobPhase.ABORTING)
        self._abort_waiting()
        jobs.end(job, "BLOCK_JOB_COMPLETED", error_text=text)
        self._abort_created()
        self._parts.on_jobs_end(False)
        self._output.finish()

    def _abort_waiting(self) -> None:
        waiting = [copy.job for copy in self._order if copy.job.phase is JobPhase.WAITING]
        for job in waiting:
            self._parts.jobs.move(job, JobPhase.ABORTING)
        for job in waiting:
            self._parts.jobs.end(job, "BLOCK_JOB_CANCELLED")

    def _abort_created(self) -> None:
        for copy in self._todo:
            self._parts.jobs.move(copy.job, JobPhase.ABORTING)
            self._parts.jobs.end(copy.job, "BLOCK_JOB_CANCELLED")
        self._todo.clear()

    def _job_changed(self, job: Job) -> None:
        copy = self._copies[job.job_id]
        copy.ready_at_s = min(copy.ready_at_s, self._parts.timebase.now_s())
        if copy is self._order[-1] and job.phase is JobPhase.RUNNING and not self._stalled:
            self._schedule(0.0)

    def _cancel_one(self, job: Job) -> None:
        """``block-job-cancel`` of one job ends all."""
        self._parts.figures.record_error(f"job failed with err -{_ECANCELED} - Operation canceled")
        self._stop_timer()
        started = [copy.job for copy in self._order if copy.job.phase is not JobPhase.GONE]
        created = [copy.job for copy in self._todo]
        chosen = [job] + [other for other in started if other is not job]
        for each in chosen:
            self._parts.jobs.move(each, JobPhase.ABORTING)
        for each in chosen:
            self._parts.jobs.end(each, "BLOCK_JOB_CANCELLED")
        for each in created:
            if each is not job:
                self._parts.jobs.move(each, JobPhase.ABORTING)
                self._parts.jobs.end(each, "BLOCK_JOB_CANCELLED")
        self._todo.clear()
        self._parts.on_jobs_end(False)
        self._output.finish()

    def _finish_cancel(self) -> None:
        jobs = self._parts.jobs
        started = [copy.job for copy in self._order if copy.job.phase is not JobPhase.GONE]
        created = [copy.job for copy in self._todo]
        for job in created + list(reversed(started)):
            jobs.move(job, JobPhase.ABORTING)
        for job in started:
            jobs.end(job, "BLOCK_JOB_CANCELLED")
        for job in created:
            jobs.end(job, "BLOCK_JOB_CANCELLED")
        self._todo.clear()
        self._parts.on_jobs_end(False)
        self._close()

    def _close(self) -> None:
        """The target is closed, the figures get their end; held writes go through."""
        if self._ended:
            return
        self._ended = True
        self._stop_timer()
        if self._output.error_text:
            self._parts.figures.record_error(self._output.error_text)
        self._output.close()
        self._parts.figures.end_s = int(self._parts.timebase.now_s())
        self._serve_held_writes()
        for done in self._cancel_done:
            done()
        self._parts.on_end()
