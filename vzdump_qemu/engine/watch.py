"""Watching a backup job until it ended: the status loop.

Owns how often is asked, how long a deaf monitor or a standing job is borne, and which end counts
as good. Figures of progress lines are left to `plan.progress`. Source: host behaviour, 1.10.
"""

from __future__ import annotations

from vzdump_qemu import events
from vzdump_qemu.engine.context import DataPath, EnginePorts
from vzdump_qemu.errors import JobError, QmpError, VmaError
from vzdump_qemu.plan.progress import ProgressTracker
from vzdump_qemu.ports import JobProgress, JobStatus, Machine
from vzdump_qemu.units import NS_PER_S

POLL_S = 1.0
# The first looks come quickly, so that a small VM is not made to wait for a whole second.
FIRST_POLL_S = 0.05
# A monitor was seen blocked for a minute by slow storage, or held by another client for long; one
# look has a limit of ten minutes, and a single one that fails must not be the last.
DEAF_S_MAX = 1500.0

# Where old data has nowhere to go, a guest's write waits as long as the job stands: operators are
# told first, and then the guest comes before its backup. A server that finishes moves no data.
STANDING_ALARM_S = 60.0
STANDING_S_MAX = 300.0
FINISHING_S_MAX = 3600.0


class JobWatch:
    """Looks at one job until it is done; raises with the first cause otherwise."""

    def __init__(self, ports: EnginePorts, machine: Machine, data_path: DataPath) -> None:
        self._ports = ports
        self._machine = machine
        self._data_path = data_path
        self._tracker = ProgressTracker()
        self._began_ns = ports.clock.now_ns()
        self._heard_ns = self._began_ns
        self._told_finishing = False
        self._moved_ns = self._began_ns
        self._moved_bytes = -1
        self._told_standing = False

    async def until_done(self) -> JobProgress:
        """Return the last look at a job that ended well.

        Raises:
            JobError: the job failed, ended oddly, is not ours, or QEMU is gone.
            TargetError, CompressorError, VmaError: the target's side failed first.
        """
        pause_s = FIRST_POLL_S
        while True:
            progress = await self._look()
            if progress is not None:
                self._tell(progress)
                if progress.status is not JobStatus.ACTIVE:
                    return self._judge(progress)
                self._refuse_standing(progress)
            ended = await self._judge_failed_target(progress)
            if ended is not None:
                return ended
            await self._ports.clock.sleep(pause_s)
            pause_s = min(POLL_S, 2 * pause_s)

    def _elapsed_s(self) -> float:
        return (self._ports.clock.now_ns() - self._began_ns) / NS_PER_S

    async def _look(self) -> JobProgress | None:
        """One look, or None if the monitor did not answer and that can still be borne."""
        try:
            progress = await self._data_path.progress()
        except QmpError as error:
            if not await self._machine.is_running():
                raise JobError(
                    f"VM {self._machine.vmid} not running: QEMU ended during the backup"
                ) from error
            deaf_s = (self._ports.clock.now_ns() - self._heard_ns) / NS_PER_S
            if deaf_s >= DEAF_S_MAX:
                raise JobError(
                    f"no answer from the monitor of VM {self._machine.vmid} "
                    f"for {deaf_s:.0f} seconds - {error}"
                ) from error
            return None
        self._heard_ns = self._ports.clock.now_ns()
        return progress

    def _refuse_standing(self, progress: JobProgress) -> None:
        now_ns = self._ports.clock.now_ns()
        if progress.transferred_bytes != self._moved_bytes:
            self._moved_bytes = progress.transferred_bytes
            self._moved_ns = now_ns
            self._told_standing = False
            return
        standing_s = (now_ns - self._moved_ns) / NS_PER_S
        text = f"no data has moved for {standing_s:.0f} seconds"
        if standing_s >= (FINISHING_S_MAX if progress.finishing else STANDING_S_MAX):
            raise JobError(
                text, hint="look at the backup target and at the storage of the VM's disks"
            )
        if standing_s >= STANDING_ALARM_S and not (progress.finishing or self._told_standing):
            self._told_standing = True
            self._ports.emit(events.Warned(text=f"{text}: the guest's writes may wait"))

    async def _judge_failed_target(self, progress: JobProgress | None) -> JobProgress | None:
        """Raise what went wrong behind the pipe, unless QEMU's own end is the cause."""
        failure = self._data_path.failure()
        if failure is None:
            return None
        if isinstance(failure, VmaError):
            # A stream that broke off follows from the end of its job, which the last look may
            # have been too early to see; while QEMU does not answer, the next one finds it.
            progress = None if progress is None else await self._look()
            if progress is None:
                return None
            if progress.status is not JobStatus.ACTIVE:
                return self._judge(progress)
        raise failure

    def _tell(self, progress: JobProgress) -> None:
        line = self._tracker.take(progress, elapsed_s=self._elapsed_s())
        if line is not None:
            self._ports.emit(events.ProgressMade(line=line))
        if progress.finishing and not self._told_finishing:
            self._told_finishing = True
            self._ports.emit(events.ServerFinishing())

    def _judge(self, progress: JobProgress) -> JobProgress:
        if progress.status is JobStatus.ERROR:
            failure = self._data_path.failure()
            if failure is not None and not isinstance(failure, VmaError):
                raise failure  # QEMU's broken pipe follows from it
            raise JobError(progress.error_text or "unknown error")
        if progress.status is not JobStatus.DONE:
            raise JobError(f"got unexpected status '{progress.status_text}'")
        is_incremental = progress.dirty_bytes < progress.total_bytes
        if progress.transferred_bytes != progress.total_bytes and not is_incremental:
            # Where bitmaps tell what to look at, their rounding stands between the figures.
            raise JobError(
                "got wrong number of transfered bytes "
                f"({progress.transferred_bytes} != {progress.total_bytes})"
            )
        self._ports.emit(
            events.TransferEnded(
                summary=events.TransferSummary(
                    total_bytes=progress.total_bytes,
                    transferred_bytes=progress.transferred_bytes,
                    zero_bytes=progress.zero_bytes,
                    reused_bytes=progress.reused_bytes,
                    duration_s=self._elapsed_s(),
                )
            )
        )
        return progress
