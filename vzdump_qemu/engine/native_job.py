"""QEMU's own `backup` job, whatever it writes to: what may be asked of it, and whose job it is.

Owns the conversation around that job: the device list that may be sent, the connection that starts
it, looking at it, and cancelling it and no other. Where its bytes go is left to `native_vma` and
`native_pbs`. Source: pve-qemu backup QMP, sections 2, 4, 5 and 10.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from vzdump_qemu import events
from vzdump_qemu.engine.context import EnginePorts, devlist_text
from vzdump_qemu.engine.job_status import parse_job_progress
from vzdump_qemu.engine.run_state import HALT_EVENTS, GuestLook, wait_for_silence
from vzdump_qemu.engine.undo import UndoHandle, UndoStack
from vzdump_qemu.errors import JobError, PbsError, QmpCommandError
from vzdump_qemu.formats.pbs.repository import Repository
from vzdump_qemu.journal_ports import Reversal, ReversalKind
from vzdump_qemu.ports import JobProgress, JobStatus, Machine, Qmp, QmpEvent

# The platform's own tool names its descriptor so, and ours begin so.
LEFT_OVER_TARGET_PREFIX = "/dev/fdname/backup"
# Upstream allows one limit for all that the start of a job takes, waiting for the monitor
# included; the waiting has one of its own here, so that a busy monitor does not eat the job's time.
MONITOR_TIMEOUT_S = 60.0
QUERY_TIMEOUT_S = 5.0
QUERY_BACKUP_TIMEOUT_S = 600.0
CANCEL_TIMEOUT_S = 600.0
STARTED_ALL_THE_SAME_HINT = "QEMU may have started the job all the same: it is cancelled if so"


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeJob:
    """What the `backup` command is asked for, apart from its target.

    Attributes:
        device_ids: in the order they are registered in the backup.
        config_path, firewall_path: files QEMU opens itself; firewall may be empty.
        rate_limit_bytes_per_s: 0 means unlimited.
        max_workers: None where the running QEMU does not know it.
        is_template: nobody writes to its disks.
    """

    device_ids: tuple[str, ...]
    config_path: str
    firewall_path: str
    rate_limit_bytes_per_s: int
    max_workers: int | None
    fleecing: bool
    is_template: bool = False

    def arguments(self, backup_file: str) -> dict[str, Any]:
        """The arguments that every target has; a limit of speed is the target's to add."""
        arguments: dict[str, Any] = {
            "backup-file": backup_file,
            "devlist": devlist_text(self.device_ids),
            "config-file": self.config_path,
        }
        if self.firewall_path:
            arguments["firewall-file"] = self.firewall_path
        if self.fleecing:
            arguments["fleecing"] = True
        if self.max_workers is not None:
            arguments["max-workers"] = self.max_workers
        return arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class JobMark:
    """What tells our job from any other in the same QEMU, to us and to a recovery after our death.

    `query-backup` speaks of the latest job alone: its target, its uuid, its status.

    - A descriptor has a name of this run's own, so the target is proof enough, even where the
      reply with the uuid never came.
    - A backup server's repository string is the same for every run to that storage, and proves
      nothing. The uuid does, once we had the reply. Until then, the uuid of the job before ours
      does: it was asked for on the connection that then sent `backup`, with the VM locked by us.
      QEMU runs one job at a time and makes a uuid of its own for each, so an active job with our
      target and another uuid was started after that question. That it is no later one, begun
      after our death, is shown by the node's global lock: every backup tool of the node holds it
      while its job runs, so whoever recovers takes it first, and a job that is active then
      belongs to no living tool. While the lock is not to be had, nothing is touched.

    Attributes:
        target: the job's ``backup-file``.
        uuid_before: of the job before ours; empty if QEMU had none. None where the target alone
            is proof.
        uuid: of our job; empty while unknown.
    """

    target: str
    uuid_before: str | None = None
    uuid: str = ""

    @classmethod
    def from_names(cls, names: Sequence[str]) -> JobMark:
        """As `names` gave it."""
        target, *uuids = names
        if not uuids:
            return cls(target=target)
        return cls(target=target, uuid_before=uuids[0], uuid=uuids[1] if len(uuids) > 1 else "")

    @property
    def names(self) -> tuple[str, ...]:
        """As a journal keeps it."""
        if self.uuid_before is None:
            return (self.target,)
        return (self.target, self.uuid_before, *((self.uuid,) if self.uuid else ()))

    @property
    def needs_global_lock(self) -> bool:
        """Whether, after our death, it proves something only while no other backup tool works."""
        return self.uuid_before is not None and not self.uuid

    def is_active_in(self, progress: JobProgress) -> bool:
        """Whether QEMU speaks of our job, and it has not ended."""
        if progress.status is not JobStatus.ACTIVE or progress.backup_file != self.target:
            return False
        if self.uuid_before is None:
            return True
        return progress.uuid == self.uuid if self.uuid else progress.uuid != self.uuid_before


class OwnJob:
    """One run's job inside QEMU, with the monitor connection that starts it.

    Args:
        before_cancel: what must have happened before QEMU can carry out a cancel.

    Attributes:
        uuid: once it was started; empty if QEMU gave none.
        disk_sizes: bytes by device id, once connected.
    """

    def __init__(
        self, machine: Machine, *, before_cancel: Callable[[], None] = lambda: None
    ) -> None:
        self._machine = machine
        self._before_cancel = before_cancel
        self._connection = AsyncExitStack()
        self._qmp: Qmp | None = None
        self._halts: AsyncIterator[QmpEvent] | None = None
        self._mark: JobMark | None = None
        self._cancel: UndoHandle | None = None
        self.uuid = ""
        self.disk_sizes: Mapping[str, int] = {}

    async def connect(self, device_ids: Sequence[str], undo: UndoStack) -> Qmp:
        """Leave the monitor connected for the start, its devices looked at.

        Raises: JobError for a device list that this QEMU would die of; QmpError.
        """
        undo.push_own("close the monitor connection", self.let_go)
        qmp = await self._connection.enter_async_context(
            self._machine.connect_qmp(timeout_s=MONITOR_TIMEOUT_S)
        )
        self._halts = await self._connection.enter_async_context(qmp.events(*HALT_EVENTS))
        self._qmp = qmp
        sizes = device_sizes(
            await qmp.execute("query-block", timeout_s=QUERY_TIMEOUT_S),
            await qmp.execute("query-named-block-nodes", {"flat": True}, timeout_s=QUERY_TIMEOUT_S),
        )
        self.disk_sizes = refuse_deadly_devices(device_ids, sizes)
        return qmp

    async def note(self, mark: JobMark, undo: UndoStack) -> None:
        """Have this job cancelled if the run fails; before it is started, and again with a uuid."""
        earlier, self._mark = self._cancel, mark
        self._cancel = await undo.push(
            "cancel the backup job",
            self._cancel_own,
            Reversal(kind=ReversalKind.CANCEL_JOB, names=mark.names),
            timeout_s=CANCEL_TIMEOUT_S,
        )
        if earlier is not None:
            earlier.dismiss()

    async def start(self, arguments: Mapping[str, Any], *, timeout_s: float) -> str:
        """Send `backup`; return the job's uuid, empty if QEMU gave none. Raises QmpError."""
        assert self._qmp is not None
        reply = await self._qmp.execute("backup", arguments, timeout_s=timeout_s)
        self.uuid = str(reply.get("UUID", "")) if isinstance(reply, Mapping) else ""
        return self.uuid

    async def guest_silent(self) -> GuestLook:
        """See `DataPath.guest_silent`."""
        return await wait_for_silence(self._halts)

    async def let_go(self) -> None:
        """Let the next client have the monitor. Idempotent."""
        self._qmp = None
        await self._connection.aclose()

    def require_uuid(self) -> None:
        """Raise JobError if QEMU started a job that nobody could find again."""
        if not self.uuid:
            raise JobError("got no uuid for backup task")

    async def progress(self) -> JobProgress:
        """One look at the job; raises JobError once QEMU speaks of another one."""
        async with self._machine.connect_qmp(timeout_s=MONITOR_TIMEOUT_S) as qmp:
            progress = await query_job(qmp)
        if not progress.uuid or progress.uuid != self.uuid:
            raise JobError("got unexpected uuid")
        return progress

    def ended(self) -> None:
        """The job ended well: there is nothing to cancel any more."""
        if self._cancel is not None:
            self._cancel.dismiss()

    async def _cancel_own(self) -> None:
        self._before_cancel()
        # Our own connection would keep the monitor from us until the time is out.
        await self.let_go()
        assert self._mark is not None
        await cancel_job(self._machine, self._mark)


async def query_job(qmp: Qmp) -> JobProgress:
    """What QEMU says of the latest job. Raises QmpError."""
    return parse_job_progress(await qmp.execute("query-backup", timeout_s=QUERY_BACKUP_TIMEOUT_S))


async def cancel_job(machine: Machine, mark: JobMark) -> None:
    """Cancel our job if it is active; any other job is somebody else's."""
    if not await machine.is_running():
        return
    async with machine.connect_qmp(timeout_s=MONITOR_TIMEOUT_S) as qmp:
        # A cancel after a good end would turn QEMU's record of it into an error.
        if mark.is_active_in(await query_job(qmp)):
            await qmp.execute("backup-cancel", timeout_s=CANCEL_TIMEOUT_S)


async def has_active_job(machine: Machine, mark: JobMark) -> bool:
    """Whether there is anything that `cancel_job` would cancel."""
    if not await machine.is_running():
        return False
    async with machine.connect_qmp(timeout_s=MONITOR_TIMEOUT_S) as qmp:
        return mark.is_active_in(await query_job(qmp))


async def cancel_left_over_job(ports: EnginePorts, machine: Machine) -> None:
    """Cancel a job that a killed backup left in this VM; we hold the VM's lock.

    Raises: JobError for a job whose target no backup tool of a node names so: it is somebody's.
    """
    async with machine.connect_qmp(timeout_s=MONITOR_TIMEOUT_S) as qmp:
        try:
            progress = await query_job(qmp)
        except QmpCommandError:
            return  # a QEMU without that command has no such job
        if progress.status is not JobStatus.ACTIVE:
            return
        if not _is_target_of_node(progress.backup_file):
            raise JobError(
                f"another backup job is active in VM {machine.vmid} "
                f"(target '{progress.backup_file}')",
                hint="wait for its end, or cancel it with the tool that started it",
            )
        ports.emit(events.LeftOverJobFound())
        await qmp.execute("backup-cancel", timeout_s=CANCEL_TIMEOUT_S)


def _is_target_of_node(target: str) -> bool:
    """Whether the platform's tool, or ours, names a target so: a descriptor, or a whole string."""
    if target.startswith(LEFT_OVER_TARGET_PREFIX):
        return True
    try:
        return Repository.parse(target).render() == target
    except PbsError:
        return False


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


def refuse_deadly_devices(
    device_ids: Sequence[str], sizes: Mapping[str, int | None]
) -> dict[str, int]:
    """Sizes of the devices in bytes.

    Raises: JobError for a list that would end or crash QEMU, naming the device.
    """
    if not device_ids:
        raise JobError("empty device list")
    found: dict[str, int] = {}
    for device_id in device_ids:
        if device_id in found:
            raise JobError(f"Device '{device_id}' is listed twice")
        if any(separator in device_id for separator in ",;:") or not device_id:
            raise JobError(f"Device '{device_id}' has a name that a device list cannot carry")
        if device_id not in sizes:
            raise JobError(
                f"Device '{device_id}' not found",
                hint="the configuration was changed after the VM was started: restart the VM, "
                "or exclude the disk with backup=0",
            )
        size_bytes = sizes[device_id]
        if size_bytes is None:
            raise JobError(f"Device '{device_id}' has no medium")
        if size_bytes == 0:
            raise JobError(f"Device '{device_id}' has size 0")
        found[device_id] = size_bytes
    return found
