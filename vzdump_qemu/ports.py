"""The Protocols that the engine needs and that adapters fill, with the values that cross them.

Each port is shaped by what the engine asks for, not by what a machine can do. All awaits may be
cancelled; what then may have happened is said per method. Foreign exceptions are translated by
the adapter: only `vzdump_qemu.errors` come out.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from vzdump_qemu.disk_ports import DiskOrigin, TransferProgress
from vzdump_qemu.errors import BackupError
from vzdump_qemu.pbs_target import PbsTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class QmpEvent:
    """One asynchronous message of QEMU, e.g. ``BLOCK_JOB_COMPLETED``."""

    name: str
    data: Mapping[str, Any]


class Qmp(Protocol):
    """One short-lived monitor connection, negotiated and ready for commands.

    QEMU serves one client per monitor at a time: close it as soon as the commands are done.
    """

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float
    ) -> Any:
        """Run one command and return the value of its ``return``.

        Raises:
            QmpCommandError: QEMU answered with an error.
            QmpTimeout: no answer in time; the command may still be carried out.
            QmpClosed: the connection ended first; the command may have been carried out.
        Cancelled: the command may be carried out.
        """
        ...

    async def execute_with_fd(
        self, command: str, arguments: Mapping[str, Any], fd: int, *, timeout_s: float
    ) -> Any:
        """As `execute`, with one descriptor in the same message (``getfd``, ``add-fd``)."""
        ...

    def events(self, *names: str) -> AbstractAsyncContextManager[AsyncIterator[QmpEvent]]:
        """Listen for events of these names, from entering on."""
        ...


class Agent(Protocol):
    """One connection to the guest agent, synchronised by a round trip when it was opened."""

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float
    ) -> Any:
        """Run one guest command, behind a delimited sync of its own.

        Raises:
            AgentCommandError: the agent answered with an error.
            AgentTimeout: no answer in time, or the channel ended: the command may be carried
                out later, a freeze included.
        """
        ...


class Power(Protocol):
    """Starting and stopping one VM. Returned lines are what a child command printed."""

    async def start_paused(self) -> Sequence[str]:
        """Start QEMU with stopped vCPUs (run state ``prelaunch``), whatever ``lock:`` says."""
        ...

    async def start(self) -> Sequence[str]:
        """Start the VM as its operator would."""
        ...

    async def shut_down(self, *, timeout_s: float) -> Sequence[str]:
        """Ask the guest to power off and wait; volumes stay active. Raises PowerError."""
        ...

    async def stop(self) -> Sequence[str]:
        """End the QEMU process: quit, then SIGTERM, then SIGKILL, each bounded."""
        ...

    async def suspend(self) -> Sequence[str]:
        """Stop the vCPUs (QMP ``stop``)."""
        ...

    async def resume(self) -> Sequence[str]:
        """Let the vCPUs run again, waking a sleeping guest."""
        ...


class Machine(Protocol):
    """One VM of this node, as the engine sees it."""

    @property
    def vmid(self) -> int: ...

    @property
    def power(self) -> Power: ...

    @property
    def private_directory(self) -> str:
        """Path for a directory of ours alone beside the VM's sockets; not there yet.

        Short enough that a socket with a name of one letter fits in.
        """
        ...

    def connect_qmp(self, *, timeout_s: float) -> AbstractAsyncContextManager[Qmp]:
        """Connect and negotiate. Raises QmpUnreachable, QmpTimeout on entering."""
        ...

    def connect_agent(self, *, timeout_s: float) -> AbstractAsyncContextManager[Agent]:
        """Connect and make one sync round trip. Raises AgentUnreachable on entering."""
        ...

    async def has_backup_job(self) -> bool:
        """Whether a QEMU started for this VM would know the `backup` command; starts no VM."""
        ...

    async def is_running(self) -> bool:
        """Whether a QEMU process of this VM lives here (host behaviour 7.1)."""
        ...

    def keep_alive(self) -> AbstractAsyncContextManager[None]:
        """Hold the event daemon off: a guest that powers off does not end QEMU meanwhile (7.5).

        Does nothing where no such daemon runs. Raises PowerError on entering if the daemon is
        there and gives no handle.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeFacts:
    """Where a volume's bytes are.

    Attributes:
        volid: as the configuration names it (``STORE:name`` or an absolute path).
        storage_id: empty for absolute paths.
        path: file, block device or QEMU's own address (``rbd:…``).
        size_bytes: 0 if an absolute path does not exist.
        format: ``raw``, ``qcow2``, …; empty if unknown.
        is_block_device: the path names a block device.
        device_path: QOM path of the guest's device, where a disk is known by that alone.
    """

    volid: str
    storage_id: str
    path: str
    size_bytes: int
    format: str
    is_block_device: bool
    device_path: str = ""


class Storages(Protocol):
    """Volumes and backup directories of the node."""

    async def activate(self, volids: Sequence[str]) -> None:
        """Make volumes readable. Raises StorageError."""
        ...

    async def describe(self, volid: str) -> VolumeFacts:
        """Raises StorageError if the size or format cannot be told."""
        ...

    async def backup_directory(self, storage_id: str) -> str:
        """Activate a file storage and return its dump directory. Raises StorageError."""
        ...

    async def backup_server(self, storage_id: str) -> PbsTarget | None:
        """The server of a storage of type ``pbs``; None for any other. Raises StorageError."""
        ...

    async def allocate_fleecing(
        self, storage_id: str, *, vmid: int, name: str, size_bytes: int
    ) -> VolumeFacts:
        """Allocate ``vm-VMID-fleece-N``; qcow2 where the storage offers it, else raw."""
        ...

    async def free(self, volid: str) -> None:
        """Delete a volume; a missing one is no error."""
        ...

    def fleecing_volid(self, storage_id: str, *, vmid: int, name: str) -> str:
        """The volume id that `allocate_fleecing` will use, known before anything exists."""
        ...


class Node(Protocol):
    """The host: VM configurations, locks, storages."""

    @property
    def name(self) -> str: ...

    @property
    def storages(self) -> Storages: ...

    async def list_vmids(self) -> Sequence[int]: ...

    async def read_vm_config(self, vmid: int) -> bytes:
        """The raw configuration. Raises VmNotFound."""
        ...

    async def read_firewall(self, vmid: int) -> bytes | None:
        """The raw firewall file, or None (limit 1 MiB)."""
        ...

    async def set_vm_lock(self, vmid: int) -> None:
        """Write ``lock: backup``. Raises VmLocked if any lock is set, or the flock is busy."""
        ...

    async def clear_vm_lock(self, vmid: int) -> None:
        """Remove ``lock: backup``; raises ConfigError if it is not there or another's."""
        ...

    async def record_fleecing(self, vmid: int, volids: Sequence[str]) -> None:
        """Set (or, if empty, remove) the list of fleecing images in ``[special:fleecing]``."""
        ...

    def machine(self, vmid: int) -> Machine: ...

    def hold_global_lock(self, *, timeout_s: float) -> AbstractAsyncContextManager[None]:
        """One backup job per node (1.4). Raises VmLocked on entering if not had in time."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveTarget:
    """Where one VMA archive goes and how.

    Attributes:
        final_path: the name it may bear once proved; empty for standard output.
        temp_path: the name until then; empty for standard output.
        compressor: argument vector of a filter, or empty for none.
        vmid: whose guardian keeps the stream's read end open beyond our death.
    """

    final_path: str
    temp_path: str
    compressor: tuple[str, ...]
    vmid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VmaExpectation:
    """What the stream must turn out to be.

    Attributes:
        uuid: as the job reported it, lower case with hyphens; empty if nobody told.
        device_ids: names of all devices, any order.
    """

    uuid: str
    device_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VmaProof:
    """What was shown of a whole stream: every cluster of every device once, all sums right."""

    stream_bytes: int
    vma_cluster_count: int
    stored_bytes: int
    device_ids: tuple[str, ...]


class VmaIntake(Protocol):
    """One VMA stream on its way: pipe, proof while it streams, compressor, temporary file.

    Whatever fails behind the pipe, the read end stays open and is drained until the writer
    closes: a writer inside QEMU never sees a broken or a stuck pipe because of us.
    """

    @property
    def write_fd(self) -> int:
        """The end to hand to QEMU; ours until `close_write_end`."""
        ...

    async def write(self, data: bytes) -> None:
        """Put a part of the stream into the pipe ourselves, where no other writer does."""
        ...

    def close_write_end(self) -> None:
        """Close our copy once QEMU has its own. Idempotent."""
        ...

    def failure(self) -> Exception | None:
        """The first thing that went wrong so far behind the pipe, without waiting."""
        ...

    async def finish(self, expectation: VmaExpectation, *, timeout_s: float) -> VmaProof:
        """Wait for the end of the stream and of the compressor; the temporary file is synced.

        Raises:
            VmaError: the stream is not whole or not the one expected.
            CompressorError: its exit status was not 0, or a signal ended it.
            TargetError: a write or the sync failed, or the end did not come in time.
        """
        ...

    async def publish(self) -> int:
        """Give the archive its final name, durably; return its size in bytes.

        Only after `finish` returned. Raises TargetError.
        """
        ...

    def drain(self) -> None:
        """Give the archive up and only read on until the writer closes. Idempotent.

        Called before QEMU is told to cancel: with a stalled target that command would not
        return, and every monitor of that QEMU would freeze.
        """
        ...

    async def discard(self) -> None:
        """Drain what still comes, end the compressor, remove the temporary file. Idempotent.

        Does nothing to an archive that was published.
        """
        ...


class DiskTransfer(Protocol):
    """Disks on their way to a target, moved by worker threads of an adapter."""

    def progress(self) -> TransferProgress: ...

    def failure(self) -> BackupError | None:
        """The first thing that went wrong so far, without waiting."""
        ...

    async def finish(self) -> None:
        """Wait until everything was handed over. Raises the first failure."""
        ...

    async def cancel(self) -> None:
        """Stop reading and let go of the disks. Bounded, idempotent, never raises."""
        ...


class VmaPacker(Protocol):
    """Reads disks and writes them as one VMA stream into an intake."""

    async def check_readable(self, origins: Sequence[DiskOrigin]) -> None:
        """Read a little of each disk. Raises DiskReadError."""
        ...

    async def begin(
        self,
        origins: Sequence[DiskOrigin],
        intake: VmaIntake,
        *,
        uuid: str,
        configs: Sequence[tuple[str, bytes]],
        rate_limit_bytes_per_s: int,
    ) -> DiskTransfer:
        """Connect to every disk, then begin to move them.

        The write end of the intake's pipe belongs to the transfer from now on; it is closed at
        the transfer's end, whatever that is.

        Args:
            configs: name and content of each configuration, in the order they are stored.
            rate_limit_bytes_per_s: of reading, over all disks; 0 means unlimited.
        Raises:
            DiskReadError: a disk could not be opened; nothing was written.
        """
        ...


class ArchiveStore(Protocol):
    """Takes VMA streams and the files around them."""

    async def open_intake(self, target: ArchiveTarget) -> VmaIntake:
        """Raises TargetError, CompressorError; then nothing is left behind."""
        ...

    async def create_directory(self, path: str) -> None:
        """Create one directory level, empty, replacing a left-over. Raises TargetError."""
        ...

    async def write_file(self, path: str, data: bytes) -> None: ...

    async def remove_tree(self, path: str) -> None:
        """Remove a directory with all it holds; a missing one is no error."""
        ...

    async def remove_file(self, path: str) -> None:
        """Remove a file; a missing one is no error. Raises TargetError."""
        ...

    async def exists(self, path: str) -> bool:
        """Whether the name is taken. Raises TargetError if that cannot be told."""
        ...

    async def list_names(self, path: str) -> Sequence[str]:
        """Names in a directory, in no order. Raises TargetError."""
        ...


class CommandRunner(Protocol):
    """Runs external programs to their end."""

    async def run(
        self,
        argv: Sequence[str],
        *,
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> tuple[int, Sequence[str]]:
        """Return the exit status (negative: ended by that signal) and the printed lines.

        Args:
            pass_fds: descriptors the program keeps, under the same numbers.
            environment: variables besides those that every program gets; the place for secrets.

        Cancelled: the program is ended and reaped first.
        """
        ...

    def find(self, program: str) -> str | None:
        """Path of a program, or None."""
        ...


class Clock(Protocol):
    """Time, as one owner hands it out."""

    def now_ns(self) -> int:
        """Monotonic, for lengths and deadlines."""
        ...

    def wall_s(self) -> float:
        """Seconds since the epoch, for names and logs."""
        ...

    def local_time(self, wall_s: float) -> datetime:
        """The node's local time, without a zone."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class Ids(Protocol):
    """Chance, as one owner hands it out."""

    def uuid(self) -> str:
        """A fresh random UUID, lower case with hyphens."""
        ...

    def process_id(self) -> int:
        """Distinguishes this process among those of the node (temporary names)."""
        ...


class JobStatus(enum.Enum):
    """Status of ``query-backup``; ABSENT if no backup was ever started in that QEMU."""

    ACTIVE = "active"
    DONE = "done"
    ERROR = "error"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"
    ABSENT = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress:
    """One look at a running or ended backup job; all amounts in bytes."""

    status: JobStatus
    status_text: str = ""
    uuid: str = ""
    backup_file: str = ""
    error_text: str = ""
    total_bytes: int = 0
    dirty_bytes: int = 0
    transferred_bytes: int = 0
    zero_bytes: int = 0
    reused_bytes: int = 0
    finishing: bool = False
