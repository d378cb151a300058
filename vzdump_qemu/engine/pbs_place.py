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
from vzdump_qemu.errors import PbsError, QmpError
from vzdump_qemu.formats.pbs import BackupGroup, BackupRef, BackupType
from vzdump_qemu.formats.pbs.times import render_utc
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.plan.options import BackupOptions
from vzdump_qemu.ports import Machine

# Names have whole seconds; a clock that is further behind than this was set back.
TIME_WAIT_S_MAX = 3


async def name_backup(ports: EnginePorts, target: PbsTarget, vmid: int) -> BackupRef:
    """Name a backup of this instant; in the second of the last one the run waits for the next.

    Raises: PbsError for a server whose last backup is yet to come, by this machine's clock.
    """
    group = BackupGroup(backup_type=BackupType.VM, backup_id=str(vmid))
    last_s = await ports.pbs.last_time_s(target, group)
    for _ in range(TIME_WAIT_S_MAX):
        if int(ports.clock.wall_s()) > last_s:
            break
        await ports.clock.sleep(1.0)
    now_s = int(ports.clock.wall_s())
    if now_s <= last_s:
        raise PbsError(
            f"backup timestamp is older than last backup ({render_utc(last_s)})",
            hint="look at the clocks of this machine and of the server",
        )
    return BackupRef(backup_group=group, backup_time_s=now_s)


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
