"""A backup server as the target of a run, with every way that leads there.

Owns the choice between our own client, QEMU's job and the platform's client program; each one's
rules live in its module. Source: host behaviour, 1.10; architecture, section 4.
"""

from __future__ import annotations

from vzdump_qemu import events
from vzdump_qemu.engine.backup_place import BackupContent, QemuFeatures
from vzdump_qemu.engine.context import DataPath, EnginePorts, ProvedBackup
from vzdump_qemu.engine.external_pbs import ExternalPbsPath
from vzdump_qemu.engine.native_job import NativeJob
from vzdump_qemu.engine.native_pbs import (
    STORED_FIREWALL_NAME,
    NativePbsPath,
    PbsRequest,
    refuse_features,
)
from vzdump_qemu.engine.pbs_backup import PbsSide
from vzdump_qemu.engine.reading_path import TargetSide
from vzdump_qemu.engine.undo import UndoStack
from vzdump_qemu.errors import QmpError
from vzdump_qemu.formats.pbs import BackupRef
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.plan.options import BackupOptions
from vzdump_qemu.ports import Machine


class PbsPlace:
    """One backup at a server as a `BackupPlace`."""

    firewall_name = STORED_FIREWALL_NAME

    def __init__(
        self,
        ports: EnginePorts,
        options: BackupOptions,
        machine: Machine,
        target: PbsTarget,
        *,
        backup: BackupRef,
    ) -> None:
        self._ports = ports
        self._options = options
        self._machine = machine
        self._target = target
        self._backup = backup

    @property
    def location(self) -> str:
        """See `BackupPlace.location`."""
        return self._backup.path

    async def check(self) -> None:
        """See `BackupPlace.check`: what was right when the job began may not be any more."""
        await self._ports.pbs.check(self._target)

    def tell(self) -> None:
        """See `BackupPlace.tell`."""
        emit, target = self._ports.emit, self._target
        emit(events.PbsBackupCreating(backup_path=self._backup.path, storage_id=target.storage_id))
        if target.key_path:
            emit(events.EncryptionEnabled(has_master_key=bool(target.master_key_path)))
        if target.warning:
            emit(events.Warned(text=target.warning))

    def make_side(self, content: BackupContent) -> TargetSide:
        """See `BackupPlace.make_side`."""
        return PbsSide(
            self._ports,
            self._target,
            self._backup,
            configs=content.configs,
            rate_limit_bytes_per_s=self._options.rate_limit_bytes_per_s,
        )

    def check_features(self, features: QemuFeatures) -> None:
        """See `BackupPlace.check_features`."""
        refuse_features(features, self._target)

    def make_native(self, job: NativeJob, features: QemuFeatures) -> DataPath:
        """See `BackupPlace.make_native`."""
        assert not isinstance(features, QmpError)
        request = PbsRequest(target=self._target, backup=self._backup, features=features)
        return NativePbsPath(self._ports, self._machine, job, request)

    async def run_external(self, content: BackupContent, undo: UndoStack) -> ProvedBackup:
        """See `BackupPlace.run_external`."""
        path = ExternalPbsPath(self._ports, self._target, self._backup)
        return await path.run(content.config_paths, content.configs, content.disks, undo)
