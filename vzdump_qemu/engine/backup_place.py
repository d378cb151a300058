"""What kind of target a run has: a VMA archive or a backup server, as the steps of a run use it.

Owns which data paths lead there; each path's own rules live in its module. See architecture,
section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from vzdump_qemu import events
from vzdump_qemu.engine.attachments import RunDisk
from vzdump_qemu.engine.context import DataPath, EnginePorts, ProvedBackup
from vzdump_qemu.engine.external_vma import ExternalVmaPath
from vzdump_qemu.engine.native_job import NativeJob
from vzdump_qemu.engine.native_vma import NativeVmaPath
from vzdump_qemu.engine.reading_path import TargetSide
from vzdump_qemu.engine.undo import UndoStack
from vzdump_qemu.engine.vma_backup import VmaSide
from vzdump_qemu.errors import QmpError
from vzdump_qemu.formats.vma import ConfigBlob
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.plan.names import RunNames
from vzdump_qemu.plan.options import BackupOptions
from vzdump_qemu.ports import ArchiveTarget, Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpDirectory:
    """A directory of archives; empty for standard output."""

    path: str


JobTarget: TypeAlias = DumpDirectory | PbsTarget
QemuFeatures: TypeAlias = Mapping[str, object] | QmpError
"""What a QEMU says it can do, or why that could not be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupContent:
    """What goes into one backup.

    Attributes:
        configs: as they are stored, in their order.
        config_paths: the same as files, for programs that open them themselves.
    """

    disks: Sequence[RunDisk]
    configs: Sequence[ConfigBlob]
    config_paths: Sequence[str]

    @property
    def device_ids(self) -> tuple[str, ...]:
        return tuple(disk.device_id for disk in self.disks)


class BackupPlace(Protocol):
    """One run's target."""

    @property
    def firewall_name(self) -> str:
        """Under which the firewall's rules are stored."""
        ...

    @property
    def location(self) -> str:
        """Where the backup will be: path of an archive, ``-``, or path at a server."""
        ...

    async def check(self) -> None:
        """Show that the backup can go there, before the VM is touched. Raises BackupError."""
        ...

    def tell(self) -> None:
        """Say where the backup goes."""
        ...

    def make_side(self, content: BackupContent) -> TargetSide:
        """What our own reader fills."""
        ...

    def check_features(self, features: QemuFeatures) -> None:
        """What the QEMU that is there must say that it can do. Raises JobError."""
        ...

    def make_native(self, job: NativeJob, features: QemuFeatures) -> DataPath:
        """QEMU's own job, after `check_features`."""
        ...

    async def run_external(self, content: BackupContent, undo: UndoStack) -> ProvedBackup:
        """By a program of the platform where there is one."""
        ...


class ArchivePlace:
    """One VMA archive as a `BackupPlace`."""

    firewall_name = "qemu-server.fw"

    def __init__(
        self, ports: EnginePorts, options: BackupOptions, machine: Machine, names: RunNames
    ) -> None:
        self._ports = ports
        self._options = options
        self._machine = machine
        self._target = ArchiveTarget(
            final_path=names.final_path,
            temp_path=names.temp_path,
            compressor=options.compressor,
            vmid=machine.vmid,
        )

    @property
    def location(self) -> str:
        """See `BackupPlace.location`."""
        return self._target.final_path or "-"

    async def check(self) -> None:
        """The directory was looked at when the job began; what fails later is discarded."""

    def tell(self) -> None:
        """See `BackupPlace.tell`."""
        if self._target.final_path:
            self._ports.emit(events.ArchiveCreating(archive_path=self._target.final_path))
        else:
            self._ports.emit(events.ArchiveToStdout())

    def make_side(self, content: BackupContent) -> TargetSide:
        """See `BackupPlace.make_side`."""
        return VmaSide(
            self._ports,
            self._target,
            configs=content.configs,
            device_ids=content.device_ids,
            rate_limit_bytes_per_s=self._options.rate_limit_bytes_per_s,
        )

    def check_features(self, features: QemuFeatures) -> None:
        """An archive needs none of them."""
        if isinstance(features, QmpError):
            text = f"QMP command query-proxmox-support failed - {features}"
            self._ports.emit(events.Warned(text=text))

    def make_native(self, job: NativeJob, features: QemuFeatures) -> DataPath:
        """See `BackupPlace.make_native`."""
        return NativeVmaPath(self._ports, self._machine, job, self._target)

    async def run_external(self, content: BackupContent, undo: UndoStack) -> ProvedBackup:
        """See `BackupPlace.run_external`."""
        path = ExternalVmaPath(self._ports, self._target)
        return await path.run(content.config_paths, content.configs, content.disks, undo)
