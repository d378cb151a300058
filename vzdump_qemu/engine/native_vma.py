"""The native path: patched QEMU's own `backup` job writes a VMA stream into our pipe.

Owns the descriptor's life and what the stream proves; the job itself is `native_job`'s. Source:
pve-qemu backup QMP, sections 2 to 5 and 10.
"""

from __future__ import annotations

from vzdump_qemu.engine.context import EnginePorts, ProvedBackup
from vzdump_qemu.engine.intake import open_noted_intake
from vzdump_qemu.engine.native_job import (
    MONITOR_TIMEOUT_S,
    QUERY_TIMEOUT_S,
    STARTED_ALL_THE_SAME_HINT,
    JobMark,
    NativeJob,
    OwnJob,
)
from vzdump_qemu.engine.run_state import GuestLook
from vzdump_qemu.engine.undo import UndoHandle, UndoStack
from vzdump_qemu.engine.vma_backup import prove_archive
from vzdump_qemu.errors import BackupError, JobError, QmpCommandError, QmpError
from vzdump_qemu.journal_ports import Reversal, ReversalKind
from vzdump_qemu.ports import (
    ArchiveTarget,
    JobProgress,
    Machine,
    VmaExpectation,
    VmaIntake,
)

# Every run's descriptor has a name of its own: `query-backup` tells it as the job's target, and
# so proves whose job it is, even to a recovery that never saw a reply.
FD_NAME_PREFIX = "backup-"
START_TIMEOUT_S = 30.0


class NativeVmaPath:
    """One run's `backup` job; a `DataPath`."""

    def __init__(
        self, ports: EnginePorts, machine: Machine, job: NativeJob, target: ArchiveTarget
    ) -> None:
        self._ports = ports
        self._machine = machine
        self._job = job
        self._target = target
        self._intake: VmaIntake | None = None
        self._fd_name = FD_NAME_PREFIX + ports.ids.uuid()[:8]
        self._backup_file = f"/dev/fdname/{self._fd_name}"
        # With a stalled target a cancel would not return while its pipe is full.
        self._own = OwnJob(machine, before_cancel=self._drain)
        self._closing: UndoHandle | None = None

    @property
    def _opened(self) -> VmaIntake:
        assert self._intake is not None
        return self._intake

    async def prepare(self, undo: UndoStack) -> None:
        """Open the target and leave the monitor connected, the descriptor already inside."""
        self._intake = await open_noted_intake(self._ports, self._target, undo)
        qmp = await self._own.connect(self._job.device_ids, undo)
        self._closing = await undo.push(
            "take back the descriptor",
            self._close_fd,
            Reversal(kind=ReversalKind.CLOSE_FD, names=(self._fd_name,)),
        )
        # Noted here and not in `start`: the freeze window waits for no disk of ours.
        await self._own.note(JobMark(target=self._backup_file), undo)
        await qmp.execute_with_fd(
            "getfd", {"fdname": self._fd_name}, self._intake.write_fd, timeout_s=QUERY_TIMEOUT_S
        )
        self._intake.close_write_end()

    async def start(self) -> str:
        """Send `backup` on the connection that holds the descriptor."""
        arguments = self._job.arguments(self._backup_file)
        arguments["speed"] = self._job.rate_limit_bytes_per_s
        try:
            return await self._own.start(arguments, timeout_s=START_TIMEOUT_S)
        except QmpError as error:
            is_answer = isinstance(error, QmpCommandError)
            raise JobError(
                f"executing QMP command to start backup failed - {error}",
                hint="" if is_answer else STARTED_ALL_THE_SAME_HINT,
            ) from error

    async def guest_silent(self) -> GuestLook:
        """See `DataPath.guest_silent`."""
        return await self._own.guest_silent()

    async def started(self) -> None:
        """The window is over: let the next client have the monitor."""
        if self._closing is not None:
            self._closing.dismiss()
        await self._own.let_go()
        self._own.require_uuid()

    async def progress(self) -> JobProgress:
        """See `DataPath.progress`."""
        return await self._own.progress()

    def failure(self) -> BackupError | None:
        """What went wrong behind the pipe."""
        failure = self._opened.failure()
        if failure is None or isinstance(failure, BackupError):
            return failure
        return BackupError(str(failure))

    async def finish(self) -> ProvedBackup:
        """Wait for the end of the stream; afterwards there is no job of ours to cancel."""
        self._own.ended()
        expectation = VmaExpectation(uuid=self._own.uuid, device_ids=self._job.device_ids)
        return await prove_archive(self._ports, self._opened, self._target, expectation)

    def _drain(self) -> None:
        self._opened.drain()

    async def _close_fd(self) -> None:
        await self._own.let_go()
        await close_descriptor(self._machine, self._fd_name)


async def close_descriptor(machine: Machine, fd_name: str) -> None:
    """Take back a descriptor that no job took: it stays in the monitor, its pipe never ends."""
    if not await machine.is_running():
        return
    try:
        async with machine.connect_qmp(timeout_s=MONITOR_TIMEOUT_S) as qmp:
            await qmp.execute("closefd", {"fdname": fd_name}, timeout_s=QUERY_TIMEOUT_S)
    except QmpCommandError as error:
        if "not found" not in error.description:
            raise
        # A job had taken it over, or it never arrived.
