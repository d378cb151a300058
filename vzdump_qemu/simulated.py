"""The engine as a system under test: what a simulator loads by entry point and drives.

Owns the translation between a simulator's plain options and outcome and the engine's own values;
the simulator itself is unknown here (it meets us in the entry point group ``vzsim.systems``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from vzdump_qemu.disk_ports import DiskOrigin, DiskReader
from vzdump_qemu.engine.batch import back_up_all
from vzdump_qemu.engine.context import EnginePorts
from vzdump_qemu.engine.recovery import recover_persistently
from vzdump_qemu.errors import DiskReadError, PbsKeyError
from vzdump_qemu.events import BackupMode, Consistency, Event, RunFailed, RunSucceeded
from vzdump_qemu.formats.pbs import decode_key_file, unlock_key_file
from vzdump_qemu.journal_ports import Journals
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.plan.options import (
    BackupOptions,
    DataPathChoice,
    FleecingOptions,
    TargetOptions,
)
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
    def clock(self) -> Clock: ...

    @property
    def ids(self) -> Ids: ...

    @property
    def server(self) -> SimulatedServer | None: ...

    @property
    def tell(self) -> Callable[[str], None]: ...

    @property
    def tell_end(self) -> Callable[[bool], None]: ...


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


def read_options(options: Mapping[str, Any]) -> BackupOptions:
    """The engine's options from a scenario's.

    Args:
        options: mode, compressor, fleecing, stdout, storage, data_path, max_workers, lock_wait_s.
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
        run = batch.runs[0]
        error = run.error or batch.error
        return SimulatedOutcome(
            error=str(error) if error else "",
            archive_path=run.archive_path,
            says_frozen=run.consistency is Consistency.FROZEN,
        )

    async def recover(self, ports: SimulatedPorts, vmid: int) -> bool:
        """What the guardian does once a run has left something; whether all was put back."""
        return await recover_persistently(_engine_ports(ports), vmid)


def _engine_ports(ports: SimulatedPorts) -> EnginePorts:
    def emit(event: Event) -> None:
        ports.tell(repr(event))
        if isinstance(event, RunSucceeded | RunFailed):
            ports.tell_end(isinstance(event, RunSucceeded))

    return EnginePorts(
        node=ports.node,
        store=ports.store,
        packer=ports.packer,
        pbs=_uploads(ports),
        journals=ports.journals,
        commands=ports.commands,
        hooks=ports.commands,
        clock=ports.clock,
        ids=ports.ids,
        emit=emit,
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
