"""The native path: patched QEMU's own `backup` job writes a VMA stream into our pipe.

Owns the conversation around that job: what may be sent at all, the descriptor's life, whose job
it is, and its cancelling. Source: pve-qemu backup QMP, sections 2 to 5 and 10.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from vzdump_qemu import events
from vzdump_qemu.engine.context import EnginePorts, devlist_text
from vzdump_qemu.engine.intake import open_noted_intake
from vzdump_qemu.engine.job_status import parse_job_progress
from vzdump_qemu.engine.run_state import HALT_EVENTS, GuestLook, wait_for_silence
from vzdump_qemu.engine.undo import UndoHandle, UndoStack
from vzdump_qemu.errors import BackupError, JobError, QmpCommandError, QmpError
from vzdump_qemu.journal_ports import Reversal, ReversalKind
from vzdump_qemu.ports import (
    ArchiveTarget,
    JobProgress,
    JobStatus,
    Machine,
    Qmp,
    QmpEvent,
    VmaExpectation,
    VmaIntake,
    VmaProof,
)

# The platform's own tool names its descriptor so, and ours begin so.
LEFT_OVER_TARGET_PREFIX = "/dev/fdname/backup"
# Every run's descriptor has a name of its own: `query-backup` tells it as the job's target, and
# so proves whose job it is, even to a recovery that never saw a reply.
FD_NAME_PREFIX = "backup-"
# Upstream allows 30 s for getfd and backup together, waiting for the monitor included; the
# waiting has a limit of its own here, so that a busy monitor does not eat the job's time.
MONITOR_TIMEOUT_S = 60.0
START_TIMEOUT_S = 30.0
QUERY_TIMEOUT_S = 5.0
QUERY_BACKUP_TIMEOUT_S = 600.0
CANCEL_TIMEOUT_S = 600.0
# After `done` only what the pipe still holds and the compressor's tail are missing.
STREAM_END_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeJob:
    """What the `backup` command is asked for.

    Attributes:
        device_ids: in the order they are registered in the archive.
        config_path, firewall_path: files QEMU opens itself; firewall may be empty.
        rate_limit_bytes_per_s: 0 means unlimited.
        max_workers: None where the running QEMU does not know it.
    """

    device_ids: tuple[str, ...]
    config_path: str
    firewall_path: str
    rate_limit_bytes_per_s: int
    max_workers: int | None
    fleecing: bool

    def arguments(self, backup_file: str) -> dict[str, Any]:
        """The arguments of the command for this target."""
        arguments: dict[str, Any] = {
            "backup-file": backup_file,
            "devlist": devlist_text(self.device_ids),
            "config-file": self.config_path,
            "speed": self.rate_limit_bytes_per_s,
        }
        if self.firewall_path:
            arguments["firewall-file"] = self.firewall_path
        if self.fleecing:
            arguments["fleecing"] = True
        if self.max_workers is not None:
            arguments["max-workers"] = self.max_workers
        return arguments


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
        self._connection = AsyncExitStack()
        self._qmp: Qmp | None = None
        self._halts: AsyncIterator[QmpEvent] | None = None
        self._uuid = ""
        self._fd_name = FD_NAME_PREFIX + ports.ids.uuid()[:8]
        self._backup_file = f"/dev/fdname/{self._fd_name}"
        self._cancel: UndoHandle | None = None
        self._closing: UndoHandle | None = None

    @property
    def intake(self) -> VmaIntake:
        assert self._intake is not None
        return self._intake

    async def prepare(self, undo: UndoStack) -> None:
        """Open the target and leave the monitor connected, the descriptor already inside."""
        self._intake = await open_noted_intake(self._ports, self._target, undo)
        undo.push_own("close the monitor connection", self._connection.aclose)
        qmp = await self._connection.enter_async_context(
            self._machine.connect_qmp(timeout_s=MONITOR_TIMEOUT_S)
        )
        self._halts = await self._connection.enter_async_context(qmp.events(*HALT_EVENTS))
        await self._refuse_deadly_devices(qmp)
        self._closing = await undo.push(
            "take back the descriptor",
            self._close_fd,
            Reversal(kind=ReversalKind.CLOSE_FD, names=(self._fd_name,)),
        )
        # Noted here and not in `start`: the freeze window waits for no disk of ours.
        self._cancel = await undo.push(
            "cancel the backup job",
            self._cancel_ours,
            Reversal(kind=ReversalKind.CANCEL_JOB, names=(self._backup_file,)),
            timeout_s=CANCEL_TIMEOUT_S,
        )
        await qmp.execute_with_fd(
            "getfd", {"fdname": self._fd_name}, self._intake.write_fd, timeout_s=QUERY_TIMEOUT_S
        )
        self._intake.close_write_end()
        self._qmp = qmp

    async def start(self) -> str:
        """Send `backup` on the connection that holds the descriptor."""
        assert self._qmp is not None
        try:
            reply = await self._qmp.execute(
                "backup", self._job.arguments(self._backup_file), timeout_s=START_TIMEOUT_S
            )
        except QmpCommandError as error:
            raise JobError(f"executing QMP command to start backup failed - {error}") from error
        except QmpError as error:
            raise JobError(
                f"executing QMP command to start backup failed - {error}",
                hint="QEMU may have started the job all the same: it is cancelled if so",
            ) from error
        self._uuid = str(reply.get("UUID", "")) if isinstance(reply, Mapping) else ""
        return self._uuid

    async def guest_silent(self) -> GuestLook:
        """See `DataPath.guest_silent`."""
        return await wait_for_silence(self._halts)

    async def started(self) -> None:
        """The window is over: let the next client have the monitor."""
        if self._closing is not None:
            self._closing.dismiss()
        await self._connection.aclose()
        self._qmp = None
        if not self._uuid:
            raise JobError("got no uuid for backup task")

    async def progress(self) -> JobProgress:
        """One look at the job; raises JobError once QEMU speaks of another one."""
        async with self._machine.connect_qmp(timeout_s=MONITOR_TIMEOUT_S) as qmp:
            reply = await qmp.execute("query-backup", timeout_s=QUERY_BACKUP_TIMEOUT_S)
        progress = parse_job_progress(reply)
        if not progress.uuid or progress.uuid != self._uuid:
            raise JobError("got unexpected uuid")
        return progress

    def failure(self) -> BackupError | None:
        failure = self.intake.failure()
        if failure is None or isinstance(failure, BackupError):
            return failure
        return BackupError(str(failure))

    async def finish(self) -> VmaProof:
        """Wait for the end of the stream; afterwards there is no job of ours to cancel."""
        if self._cancel is not None:
            self._cancel.dismiss()
        return await self.intake.finish(
            VmaExpectation(uuid=self._uuid, device_ids=self._job.device_ids),
            timeout_s=STREAM_END_TIMEOUT_S,
        )

    async def _refuse_deadly_devices(self, qmp: Qmp) -> None:
        """Refuse what makes this QEMU die: no medium, size 0, the same device twice."""
        sizes = device_sizes(
            await qmp.execute("query-block", timeout_s=QUERY_TIMEOUT_S),
            await qmp.execute("query-named-block-nodes", {"flat": True}, timeout_s=QUERY_TIMEOUT_S),
        )
        refuse_deadly_devices(self._job.device_ids, sizes)

    async def _close_fd(self) -> None:
        # Our own connection would keep the monitor from us until the time is out.
        self._qmp = None
        await self._connection.aclose()
        await close_descriptor(self._machine, self._fd_name)

    async def _cancel_ours(self) -> None:
        self.intake.drain()
        self._qmp = None
        await self._connection.aclose()
        await cancel_job(self._machine, self._backup_file)


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


async def cancel_job(machine: Machine, backup_file: str) -> None:
    """Cancel the active job with that target; any other job is somebody else's."""
    if not await machine.is_running():
        return
    async with machine.connect_qmp(timeout_s=MONITOR_TIMEOUT_S) as qmp:
        progress = parse_job_progress(
            await qmp.execute("query-backup", timeout_s=QUERY_BACKUP_TIMEOUT_S)
        )
        # A cancel after a good end would turn QEMU's record of it into an error.
        if progress.status is JobStatus.ACTIVE and progress.backup_file == backup_file:
            await qmp.execute("backup-cancel", timeout_s=CANCEL_TIMEOUT_S)


async def cancel_left_over_job(ports: EnginePorts, machine: Machine) -> None:
    """Cancel a job that a killed backup left in this VM; we hold the VM's lock.

    Raises: JobError for a job whose target no backup tool of a node names so: it is somebody's.
    """
    async with machine.connect_qmp(timeout_s=MONITOR_TIMEOUT_S) as qmp:
        try:
            reply = await qmp.execute("query-backup", timeout_s=QUERY_BACKUP_TIMEOUT_S)
        except QmpCommandError:
            return  # a QEMU without that command has no such job
        progress = parse_job_progress(reply)
        if progress.status is not JobStatus.ACTIVE:
            return
        if not progress.backup_file.startswith(LEFT_OVER_TARGET_PREFIX):
            raise JobError(
                f"another backup job is active in VM {machine.vmid} "
                f"(target '{progress.backup_file}')",
                hint="wait for its end, or cancel it with the tool that started it",
            )
        ports.emit(events.LeftOverJobFound())
        await qmp.execute("backup-cancel", timeout_s=CANCEL_TIMEOUT_S)


def device_sizes(
    backends: Sequence[Mapping[str, Any]], nodes: Sequence[Mapping[str, Any]]
) -> dict[str, int | None]:
    """Size in bytes per block backend and block node name; None for a drive without medium.

    Args:
        backends: reply of ``query-block``.
        nodes: reply of ``query-named-block-nodes``.
    """
    sizes: dict[str, int | None] = {
        str(node["node-name"]): int(node["image"]["virtual-size"])
        for node in nodes
        if node.get("node-name")
    }
    for backend in backends:
        inserted = backend.get("inserted")
        if backend.get("device"):
            sizes[str(backend["device"])] = (
                int(inserted["image"]["virtual-size"]) if inserted else None
            )
    return sizes


def refuse_deadly_devices(device_ids: Sequence[str], sizes: Mapping[str, int | None]) -> None:
    """Raise JobError for a device list that would end or crash QEMU, naming the device."""
    if not device_ids:
        raise JobError("empty device list")
    for index, device_id in enumerate(device_ids):
        if device_id in device_ids[:index]:
            raise JobError(f"Device '{device_id}' is listed twice")
        if any(separator in device_id for separator in ",;:") or not device_id:
            raise JobError(f"Device '{device_id}' has a name that a device list cannot carry")
        if device_id not in sizes:
            raise JobError(
                f"Device '{device_id}' not found",
                hint="the configuration was changed after the VM was started: restart the VM, "
                "or exclude the disk with backup=0",
            )
        if sizes[device_id] is None:
            raise JobError(f"Device '{device_id}' has no medium")
        if sizes[device_id] == 0:
            raise JobError(f"Device '{device_id}' has size 0")
