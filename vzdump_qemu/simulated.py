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
from vzdump_qemu.engine.recovery import recover_all
from vzdump_qemu.events import BackupMode, Consistency
from vzdump_qemu.plan.options import (
    BackupOptions,
    DataPathChoice,
    FleecingOptions,
    TargetOptions,
)
from vzdump_qemu.ports import ArchiveStore, Clock, CommandRunner, Ids, Journals, Node

_EXTENSIONS = {"": "", "zstd": ".zst", "gzip": ".gz", "lzop": ".lzo"}


class SimulatedPorts(Protocol):
    """What a simulator hands over; `tell` takes one line of our own log."""

    @property
    def node(self) -> Node: ...

    @property
    def store(self) -> ArchiveStore: ...

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
    """The engine's options from a scenario's: mode, compressor, fleecing, stdout, data_path."""
    compressor = str(options.get("compressor", "zstd"))
    return BackupOptions(
        target=TargetOptions(to_stdout=bool(options.get("stdout", False))),
        mode=BackupMode(options.get("mode", "snapshot")),
        compressor=(compressor,) if compressor else (),
        archive_extension=_EXTENSIONS[compressor],
        fleecing=FleecingOptions(enabled=bool(options.get("fleecing", False)), storage_id="local"),
        data_path=DataPathChoice(options.get("data_path", "auto")),
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

    async def recover(self, ports: SimulatedPorts) -> bool:
        """What the guardian and `recover` do once a run was killed; whether all was put back."""
        return not await recover_all(_engine_ports(ports))


def _engine_ports(ports: SimulatedPorts) -> EnginePorts:
    return EnginePorts(
        node=ports.node,
        store=ports.store,
        journals=ports.journals,
        commands=ports.commands,
        clock=ports.clock,
        ids=ports.ids,
        emit=lambda event: ports.tell(repr(event)),
    )


system = SimulatedEngine()
