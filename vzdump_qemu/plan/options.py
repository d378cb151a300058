"""What one backup was asked to do, as frozen values.

Owns the options of a run after all precedence was resolved; parsing command lines
and files is left to `cli` and `formats`. Source: host behaviour, sections 1.8, 2.1 and 2.5.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from vzdump_qemu.events import BackupMode
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.plan.retention_rule import (
    NO_PROTECTED_LIMIT,
    RetentionRule,
    RetentionSettings,
)

_KEEPS_ALL = RetentionSettings(rule=RetentionRule(), remove=False)


class DataPathChoice(enum.Enum):
    """Which way the bytes travel; AUTO lets the VM's QEMU and state decide."""

    AUTO = "auto"
    NATIVE = "native"
    PULL = "pull"
    OFFLINE = "offline"
    EXTERNAL = "external"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetOptions:
    """Where backups go: exactly one of storage, directory, server and standard output.

    Attributes:
        storage_id: a storage of the node, or empty.
        dump_directory: a plain directory, or empty.
        pbs: a backup server named on the command line, or None.
        to_stdout: the stream goes to standard output.
        temp_directory: where the run's own files go; empty for beside the archive.
    """

    storage_id: str = ""
    dump_directory: str = ""
    pbs: PbsTarget | None = None
    to_stdout: bool = False
    temp_directory: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleecingOptions:
    """Old data goes to scratch images on that storage before guest writes hit the target.

    Attributes:
        limit_bytes: what one scratch image may grow to, where it is a file; 0 means no limit.
    """

    enabled: bool = False
    storage_id: str = ""
    limit_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HookOptions:
    """The operator's script that is called around a job and its runs.

    Attributes:
        script: absolute path, or empty for none.
        timeout_s: limit of one call; 0 for none.
    """

    script: str = ""
    timeout_s: float = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepOptions:
    """What becomes of backups once they are made.

    Attributes:
        retention: which older ones go after a new one was proved.
        protected: mark the new one as protected from removal; storages only.
        protected_max: how many protected ones of a VM the storage allows.
        notes_template: of the new one's notes, or empty; storages only.
        cluster_name: for the notes; empty for a node in no cluster.
    """

    retention: RetentionSettings = _KEEPS_ALL
    protected: bool = False
    protected_max: int = NO_PROTECTED_LIMIT
    notes_template: str = ""
    cluster_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageLimits:
    """How many runs may touch one storage at once.

    Attributes:
        of_each: for every storage without a limit of its own; None for no limit.
        by_storage: limits of single storages.
    """

    of_each: int | None = None
    by_storage: tuple[tuple[str, int], ...] = ()

    def of(self, storage_id: str) -> int | None:
        """The limit of one storage; None for none."""
        return dict(self.by_storage).get(storage_id, self.of_each)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """What concerns the job as a whole.

    Attributes:
        parallel_max: so many runs at once.
        deadline_wall_s: no run begins after it, seconds since the epoch; None for no deadline.
        external_vmids: asked for, but of other nodes: told and left alone.
        refusals: VMs that are known to fail, by VMID, and why.
    """

    parallel_max: int = 1
    storage_limits: StorageLimits = StorageLimits()
    deadline_wall_s: float | None = None
    external_vmids: tuple[int, ...] = ()
    refusals: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupOptions:
    """The effective options of a job.

    Attributes:
        mode: as asked; a stopped VM always runs as STOP.
        compressor: argument vector of the filter, empty for none.
        archive_extension: of the compressor, with its dot, or empty.
        rate_limit_bytes_per_s: 0 means unlimited.
        stop_wait_s: limit for the guest's own shutdown in STOP mode.
        lock_wait_s: limit for the node's global lock.
        max_workers: parallel copy requests inside QEMU.
        io_priority: 0 to 8, logged and applied to the compressor.
    """

    target: TargetOptions = field(default_factory=TargetOptions)
    mode: BackupMode = BackupMode.SNAPSHOT
    compressor: tuple[str, ...] = ()
    archive_extension: str = ""
    rate_limit_bytes_per_s: int = 0
    stop_wait_s: float = 600.0
    lock_wait_s: float = 10800.0
    max_workers: int | None = 16
    io_priority: int | None = 7
    fleecing: FleecingOptions = field(default_factory=FleecingOptions)
    hook: HookOptions = HookOptions()
    keep: KeepOptions = KeepOptions()
    batch: BatchOptions = BatchOptions()
    data_path: DataPathChoice = DataPathChoice.AUTO
    command_line: str = "vzdump"
    log_directory: str = "/var/log/vzdump"
