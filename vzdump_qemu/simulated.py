"""The engine as a system under test: what a simulator loads by entry point and drives.

Owns the translation between a simulator's plain options and outcome and the engine's own values;
the simulator itself is unknown here (it meets us in the entry point group ``vzsim.systems``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from vzdump_qemu.engine.batch import back_up_all
from vzdump_qemu.engine.context import EnginePorts
from vzdump_qemu.engine.recovery import recover_persistently
from vzdump_qemu.events import BackupMode, Consistency, Event, RunFailed, RunSucceeded
from vzdump_qemu.journal_ports import Journals
from vzdump_qemu.plan.options import (
    BackupOptions,
    DataPathChoice,
    FleecingOptions,
    TargetOptions,
)
from vzdump_qemu.ports import ArchiveStore, Clock, CommandRunner, Ids, Node, VmaPacker

_EXTENSIONS = {"": "", "zstd": ".zst", "gzip": ".gz", "lzop": ".lzo"}


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
        options: mode, compressor, fleecing, stdout, data_path, max_workers, lock_wait_s.
    """
    compressor = str(options.get("compressor", "zstd"))
    return BackupOptions(
        target=TargetOptions(to_stdout=bool(options.get("stdout", False))),
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
        journals=ports.journals,
        commands=ports.commands,
        clock=ports.clock,
        ids=ports.ids,
        emit=emit,
    )


system = SimulatedEngine()
