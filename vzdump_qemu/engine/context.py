"""What the engine is handed, and what it hands back.

Owns the bundle of ports of a job, the result values, and the Protocol of a data path; every
other engine module takes these as arguments. See architecture, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from vzdump_qemu.engine.run_state import GuestLook
from vzdump_qemu.engine.undo import UndoStack
from vzdump_qemu.errors import BackupError
from vzdump_qemu.events import Consistency, Emit, EmitOfRun
from vzdump_qemu.journal_ports import Journals
from vzdump_qemu.outlet_ports import NOBODY, JobNotifier
from vzdump_qemu.pbs_ports import PbsUploads, ReadLog, no_log
from vzdump_qemu.ports import (
    ArchiveStore,
    Clock,
    CommandRunner,
    Ids,
    JobProgress,
    Node,
    VmaPacker,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePorts:
    """Everything outside the engine that it may touch, for one job.

    Attributes:
        hooks: runs the operator's script; programs inherit no environment from it.
        emit: takes what the job says, and within a run what that run says.
        emit_of_run: where a run's events go; None for the same as the job's.
        read_log: gives the log of a run that was closed, for a backup server.
        notifier: tells whoever is to know how the job ended.
    """

    node: Node
    store: ArchiveStore
    packer: VmaPacker
    pbs: PbsUploads
    journals: Journals
    commands: CommandRunner
    hooks: CommandRunner
    clock: Clock
    ids: Ids
    emit: Emit
    emit_of_run: EmitOfRun | None = None
    read_log: ReadLog = no_log
    notifier: JobNotifier = NOBODY

    def of_run(self, vmid: int) -> EnginePorts:
        """The same for one VM's run, which speaks with a voice of its own."""
        return replace(self, emit=self.emit_of_run(vmid)) if self.emit_of_run else self


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How one VM's run ended.

    Attributes:
        error: the first cause, or None for a run that ended well.
        archive_path: final name of the archive, or the backup's path at its server; empty on
            failure and for standard output.
        consistency: what the data stands for; None if no point in time was reached.
        freeze_window_s: from sending freeze to the thaw reply; None if nothing was frozen.
        warnings: texts the operator should see even though the run ended well.
    """

    vmid: int
    vm_name: str = ""
    error: BackupError | None = None
    archive_path: str = ""
    size_bytes: int = 0
    duration_s: float = 0.0
    consistency: Consistency | None = None
    freeze_window_s: float | None = None
    warnings: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """How a job ended: one result per VM that was reached, in the order they ended."""

    runs: tuple[RunResult, ...]
    error: BackupError | None = None

    @property
    def ok(self) -> bool:
        """Every VM was backed up and nothing stopped the job."""
        return self.error is None and all(run.error is None for run in self.runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedBackup:
    """A backup under its name.

    Attributes:
        location: final name of an archive, or path at a server; empty for standard output.
        backup_id: names its content, where a later backup may build upon it; else empty.
    """

    location: str
    size_bytes: int
    backup_id: str = ""


class ProvedBackup(Protocol):
    """A backup that was shown to be whole and that nobody can mistake for one yet."""

    async def publish(self) -> PublishedBackup:
        """Give it its name, durably. Raises TargetError, PbsError: it has none."""
        ...


class DataPath(Protocol):
    """How the bytes travel for one run."""

    async def prepare(self, undo: UndoStack) -> None:
        """Everything that can be done before the freeze: open the target, connect, attach."""
        ...

    async def start(self) -> str:
        """Fix the point in time and return the job's uuid; inside the freeze window."""
        ...

    async def guest_silent(self) -> GuestLook:
        """Return once the guest is OFF or HALTED, as far as that is told; else never.

        Only between `prepare` and `started`: who waits for the guest learns so that it is off.
        """
        ...

    async def started(self) -> None:
        """What follows once the window is over, before the guest is continued."""
        ...

    async def progress(self) -> JobProgress:
        """One look at the job. Raises JobError if it is not ours any more."""
        ...

    async def finish(self) -> ProvedBackup:
        """Wait for the target's side as well."""
        ...

    def failure(self) -> BackupError | None:
        """The first thing that went wrong on the target's side, without waiting."""
        ...


def devlist_text(device_ids: Sequence[str]) -> str:
    """Device ids as QMP takes them: joined by commas, in the order given."""
    return ",".join(device_ids)
