"""Backups at a server made without a backup job: by the platform's client program, or by our own.

Owns the command line of `proxmox-backup-client backup` and the choice between the two; used for
VMs without disks and, where asked for, for templates. The program's good end proves nothing: the
server is asked what it holds. Source: host behaviour, sections 1.10 and 5.8.
"""

from __future__ import annotations

from collections.abc import Sequence

from vzdump_qemu.engine.attachments import RunDisk
from vzdump_qemu.engine.context import EnginePorts, ProvedBackup
from vzdump_qemu.engine.external_program import run_told
from vzdump_qemu.engine.pbs_backup import PbsSide
from vzdump_qemu.engine.pbs_published import FinalPbsBackup, tell_if_unpublished
from vzdump_qemu.engine.undo import UndoStack
from vzdump_qemu.errors import ConfigError, PbsError
from vzdump_qemu.formats.pbs import BackupRef
from vzdump_qemu.formats.vma import ConfigBlob
from vzdump_qemu.pbs_ports import DiskSize
from vzdump_qemu.pbs_target import PbsTarget

PROGRAM = "proxmox-backup-client"


class ExternalPbsPath:
    """One backup made by the client program, or by our own client where that is missing."""

    def __init__(self, ports: EnginePorts, target: PbsTarget, backup: BackupRef) -> None:
        self._ports = ports
        self._target = target
        self._backup = backup

    async def run(
        self,
        config_paths: Sequence[str],
        configs: Sequence[ConfigBlob],
        disks: Sequence[RunDisk],
        undo: UndoStack,
    ) -> ProvedBackup:
        """Make the backup and prove it.

        Args:
            config_paths: the configurations as files.
            configs: the same as values, under the names that the server knows.
            disks: of a template; empty for a VM without disks.
        """
        program = self._ports.commands.find(PROGRAM)
        if program is not None:
            _refuse_formats(disks)
            return await self._run_program(program, config_paths, configs, disks, undo=undo)
        if disks:
            raise ConfigError(
                f"the external data path for a template needs '{PROGRAM}'",
                hint="install it, or leave --data-path at auto",
            )
        side = PbsSide(
            self._ports, self._target, self._backup, configs=configs, rate_limit_bytes_per_s=0
        )
        await side.open(undo)
        await side.announce(())
        return await side.prove()

    async def _run_program(
        self,
        program: str,
        config_paths: Sequence[str],
        configs: Sequence[ConfigBlob],
        disks: Sequence[RunDisk],
        *,
        undo: UndoStack,
    ) -> ProvedBackup:
        argv = [program, "backup", *self._options()]
        argv += [
            f"{config.name}:{path}" for config, path in zip(configs, config_paths, strict=True)
        ]
        argv += [f"{disk.device_id}.img:{disk.facts.path}" for disk in disks]
        target = self._target
        environment = {"PBS_PASSWORD": target.password.reveal()}
        if target.fingerprint is not None:
            environment["PBS_FINGERPRINT"] = str(target.fingerprint)
        if target.key_passphrase is not None:
            environment["PBS_ENCRYPTION_PASSWORD"] = target.key_passphrase.reveal()
        failure = await run_told(self._ports, argv, environment=environment, clean=target.hide_in)
        if failure is not None:
            raise failure
        untold = tell_if_unpublished(self._ports, self._backup, undo)
        sizes = [
            DiskSize(device_id=disk.device_id, size_bytes=disk.facts.size_bytes) for disk in disks
        ]
        names = [config.name for config in configs]
        try:
            finished = await self._ports.pbs.prove(target, self._backup, sizes, names)
        except PbsError:
            untold.dismiss()
            raise
        return FinalPbsBackup(self._ports, self._backup, finished, untold)

    def _options(self) -> list[str]:
        target, group = self._target, self._backup.backup_group
        options = [
            *("--repository", target.repository.render()),
            *("--backup-type", group.backup_type.value),
            *("--backup-id", group.backup_id),
            *("--backup-time", str(self._backup.backup_time_s)),
        ]
        if not target.namespace.is_root:
            options += ["--ns", str(target.namespace)]
        if target.key_path:
            options += ["--keyfile", target.key_path]
            if target.master_key_path:
                options += ["--master-pubkey-file", target.master_key_path]
        return options


def _refuse_formats(disks: Sequence[RunDisk]) -> None:
    """The program sends a file as it is: only of a raw image is that the disk."""
    for disk in disks:
        if disk.facts.format != "raw":
            raise ConfigError(
                f"'{PROGRAM}' cannot read disk '{disk.key}' of format '{disk.facts.format}'",
                hint="leave --data-path at auto",
            )
