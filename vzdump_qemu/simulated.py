"""The engine as a system under test: what a simulator loads by entry point and drives.

Owns the translation between a simulator's plain options and outcome and the engine's own values;
the simulator itself is unknown here (it meets us in the entry point group ``vzsim.systems``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from vzdump_qemu.disk_ports import DiskOrigin, DiskReader
from vzdump_qemu.engine.batch import back_up_all
from vzdump_qemu.engine.context import EnginePorts, RunResult
from vzdump_qemu.engine.recovery import recover_persistently
from vzdump_qemu.errors import DiskReadError, PbsKeyError
from vzdump_qemu.events import (
    BackupMode,
    Consistency,
    Emit,
    Event,
    JobEnded,
    RunFailed,
    RunSucceeded,
)
from vzdump_qemu.formats.pbs import decode_key_file, unlock_key_file
from vzdump_qemu.journal_ports import Journals
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.plan.batch_recorder import JobRecorder
from vzdump_qemu.plan.job_message import JobLogs, make_message, make_outcome
from vzdump_qemu.plan.notification import notification_fields
from vzdump_qemu.plan.options import (
    BackupOptions,
    BatchOptions,
    DataPathChoice,
    FleecingOptions,
    HookOptions,
    KeepOptions,
    StorageLimits,
    TargetOptions,
)
from vzdump_qemu.plan.retention_rule import KeepOption, RetentionRule, RetentionSettings
from vzdump_qemu.ports import ArchiveStore, Clock, CommandRunner, Ids, Node, VmaPacker
from vzdump_qemu.stores.pbs import BackupKey
from vzdump_qemu.stores.pbs.inline_moving import inline_moving
from vzdump_qemu.stores.pbs.tls import Stream
from vzdump_qemu.stores.pbs.uploads import ClientUploads

_EXTENSIONS = {"": "", "zstd": ".zst", "gzip": ".gz", "lzop": ".lzo"}


class SimulatedServer(Protocol):
    """How a simulator lets us reach its backup server, and the disks that go there."""

    @property
    def bytes_per_s(self) -> float:
        """How fast disks can be read."""
        ...

    async def open_stream(self) -> Stream:
        """A connection to the server. Raises: PbsUnreachable."""
        ...

    async def open_disk(self, origin: DiskOrigin) -> DiskReader:
        """A disk whose reading does not block. Raises: DiskReadError."""
        ...

    def read_file(self, path: str) -> bytes:
        """A file of the node. Raises: OSError."""
        ...


class SimulatedPorts(Protocol):
    """What a simulator hands over.

    `tell` takes one line of our own log, `tell_end` whether the run ended well.
    """

    @property
    def node(self) -> Node: ...

    @property
    def store(self) -> ArchiveStore: ...

    @property
    def packer(self) -> VmaPacker: ...

    @property
    def journals(self) -> Journals: ...

    @property
    def commands(self) -> CommandRunner: ...

    @property
    def hooks(self) -> CommandRunner: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def ids(self) -> Ids: ...

    @property
    def server(self) -> SimulatedServer | None: ...

    @property
    def tell(self) -> Callable[[str], None]: ...

    @property
    def tell_end(self) -> Callable[[bool], None]: ...


class SimulatedBatchPorts(SimulatedPorts, Protocol):
    """What a simulator hands over for a job over several VMs; `tell` takes what is about none.

    `tell_of_run` takes one line of the log of a VM's run, `tell_end_of_run` whether it ended well,
    `tell_summary` the VMs that failed and the job's own error; `send` takes a message about the
    job: subject, text, whether anything failed.
    """

    @property
    def tell_of_run(self) -> Callable[[int, str], None]: ...

    @property
    def tell_end_of_run(self) -> Callable[[int, bool], None]: ...

    @property
    def tell_summary(self) -> Callable[[Sequence[int], str], None]: ...

    @property
    def send(self) -> Callable[[str, str, bool], None]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedOutcome:
    """How the backup says it ended.

    Attributes:
        error: first cause, or empty for a backup that ended well.
        archive_path: final name; empty on failure and for standard output.
        says_frozen: the data is said to stand for frozen file systems.
    """

    error: str
    archive_path: str
    says_frozen: bool
    vmid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedBatch:
    """How a job over several VMs says it ended; `error` is its own, empty for none."""

    error: str
    runs: tuple[SimulatedOutcome, ...]


def read_options(options: Mapping[str, Any]) -> BackupOptions:
    """The engine's options from a scenario's.

    Args:
        options: mode, compressor, fleecing, stdout, storage, data_path, max_workers, lock_wait_s,
            script, script_timeout_s, keep_last, protected, notes_template, max_parallel,
            storage_limit.
    """
    compressor = str(options.get("compressor", "zstd"))
    return BackupOptions(
        target=TargetOptions(
            to_stdout=bool(options.get("stdout", False)), storage_id=options.get("storage", "")
        ),
        mode=BackupMode(options.get("mode", "snapshot")),
        compressor=(compressor,) if compressor else (),
        archive_extension=_EXTENSIONS[compressor],
        fleecing=FleecingOptions(enabled=bool(options.get("fleecing", False)), storage_id="local"),
        data_path=DataPathChoice(options.get("data_path", "auto")),
        max_workers=options.get("max_workers", 16),
        lock_wait_s=float(options.get("lock_wait_s", 10800.0)),
        hook=HookOptions(
            script=str(options.get("script", "")),
            timeout_s=float(options.get("script_timeout_s", 3600.0)),
        ),
        keep=replace(
            _read_keeping(int(options.get("keep_last", 0))),
            protected=bool(options.get("protected", False)),
            notes_template=str(options.get("notes_template", "")),
        ),
        batch=BatchOptions(
            parallel_max=int(options.get("max_parallel", 1)),
            storage_limits=StorageLimits(of_each=options.get("storage_limit")),
        ),
    )


def _read_keeping(last_count: int) -> KeepOptions:
    if not last_count:
        return KeepOptions()
    rule = RetentionRule(counts={KeepOption.LAST: last_count})
    return KeepOptions(retention=RetentionSettings(rule=rule, remove=True))


class _Teller:
    """Tells a simulator of the events of a job, each in the voice of its run or of the job.

    It is the job's `JobNotifier` as well: one message, handed over in place of being sent.
    """

    def __init__(
        self, ports: SimulatedBatchPorts, vmids: Sequence[int], *, command_line: str
    ) -> None:
        self._ports = ports
        self._command_line = command_line
        self._recorder = JobRecorder(host_name=ports.node.name)
        self._recorder.expect(vmids)

    def tell(self, event: Event) -> None:
        """One event of the job."""
        self._recorder.hear(event, vmid=None, wall_s=self._ports.clock.wall_s())
        self._ports.tell(repr(event))
        if isinstance(event, JobEnded):
            self._ports.tell_summary(event.failed_vmids, event.error)

    def voice_of(self, vmid: int) -> Emit:
        """Takes the events of one VM's run."""

        def tell(event: Event) -> None:
            self._recorder.hear(event, vmid=vmid, wall_s=self._ports.clock.wall_s())
            self._ports.tell_of_run(vmid, repr(event))
            if isinstance(event, RunSucceeded | RunFailed):
                self._ports.tell_end_of_run(vmid, isinstance(event, RunSucceeded))

        return tell

    async def job_ended(self) -> None:
        """Hand over the message about the job."""
        node_name = self._ports.node.name
        outcome = make_outcome(
            self._recorder.record(),
            JobLogs(),
            host_name=node_name,
            command_line=self._command_line,
        )
        message = make_message(outcome, notification_fields(node_name=node_name))
        self._ports.send(message.subject, message.text, message.failed)


def _outcome_of(run: RunResult) -> SimulatedOutcome:
    return SimulatedOutcome(
        vmid=run.vmid,
        error=str(run.error or ""),
        archive_path=run.archive_path,
        says_frozen=run.consistency is Consistency.FROZEN,
    )


class SimulatedEngine:
    """The engine, driven on simulated ports."""

    async def back_up(self, ports: SimulatedPorts, options: Mapping[str, Any]) -> SimulatedOutcome:
        """Back up one VM.

        Args:
            options: ``vmid`` and what `read_options` knows.
        Raises:
            asyncio.CancelledError: the simulated operator interrupted us; all was undone first.
        """
        vmids = [int(options["vmid"])]
        batch = await back_up_all(_engine_ports(ports), read_options(options), vmids)
        if not batch.runs:
            return SimulatedOutcome(error=str(batch.error), archive_path="", says_frozen=False)
        outcome = _outcome_of(batch.runs[0])
        return replace(outcome, error=outcome.error or str(batch.error or ""))

    async def back_up_all(
        self, ports: SimulatedBatchPorts, options: Mapping[str, Any], vmids: Sequence[int]
    ) -> SimulatedBatch:
        """Back up several VMs in one job.

        Args:
            options: what `read_options` knows, and ``deadline_s``, counted from now.
        Raises:
            asyncio.CancelledError: the simulated operator interrupted us; all was undone first.
        """
        read = read_options(options)
        if "deadline_s" in options:
            deadline_s = ports.clock.wall_s() + float(options["deadline_s"])
            read = replace(read, batch=replace(read.batch, deadline_wall_s=deadline_s))
        teller = _Teller(ports, vmids, command_line=read.command_line)
        engine_ports = replace(
            _engine_ports(ports), emit=teller.tell, emit_of_run=teller.voice_of, notifier=teller
        )
        batch = await back_up_all(engine_ports, read, vmids)
        return SimulatedBatch(
            error=str(batch.error or ""),
            runs=tuple(_outcome_of(run) for run in batch.runs),
        )

    async def recover(self, ports: SimulatedPorts, vmid: int) -> bool:
        """What the guardian does once a run has left something; whether all was put back."""
        return await recover_persistently(_engine_ports(ports), vmid)


def _engine_ports(ports: SimulatedPorts) -> EnginePorts:
    told: list[str] = []

    def emit(event: Event) -> None:
        told.append(repr(event))
        ports.tell(told[-1])
        if isinstance(event, RunSucceeded | RunFailed):
            ports.tell_end(isinstance(event, RunSucceeded))

    return EnginePorts(
        node=ports.node,
        store=ports.store,
        packer=ports.packer,
        pbs=_uploads(ports),
        journals=ports.journals,
        commands=ports.commands,
        hooks=ports.hooks,
        clock=ports.clock,
        ids=ports.ids,
        emit=emit,
        read_log=lambda _: "\n".join(told).encode(),
    )


def _uploads(ports: SimulatedPorts) -> ClientUploads:
    """Our own client, with the simulator's connections, files and disks."""
    server = ports.server
    if server is None:
        return ClientUploads(clock=ports.clock, open_nbd=_open_no_disk)

    async def find_key(target: PbsTarget) -> BackupKey | None:
        if not target.key_path:
            return None
        try:
            text = server.read_file(target.key_path)
        except OSError as error:
            raise PbsKeyError(
                f"unable to read encryption key '{target.key_path}' - {error.strerror}"
            ) from error
        key_file = decode_key_file(text)
        return BackupKey(key=unlock_key_file(key_file), created_s=key_file.created_s)

    def chance(count: int) -> bytes:
        return hashlib.shake_256(ports.ids.uuid().encode()).digest(count)

    return ClientUploads(
        clock=ports.clock,
        open_nbd=_open_no_disk,
        open_stream=server.open_stream,
        begin_moving=inline_moving(server.open_disk, bytes_per_s=server.bytes_per_s),
        find_key=find_key,
        chance=chance,
    )


def _open_no_disk(origin: DiskOrigin) -> DiskReader:
    raise DiskReadError(f"there is no thread to read '{origin.device_id}' in virtual time")


system = SimulatedEngine()
