"""The archive step of a run: from the stored configuration to a proved backup.

Owns the order freeze, start, thaw, continue, watch, prove, restore the power state. Source: host
behaviour, sections 1.9, 1.10 and 7.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass

from vzdump_qemu import events
from vzdump_qemu.engine.attachments import Attachments, RunDisk
from vzdump_qemu.engine.backup_place import BackupContent, BackupPlace
from vzdump_qemu.engine.context import DataPath, EnginePorts, ProvedBackup
from vzdump_qemu.engine.freeze import FreezeWindow
from vzdump_qemu.engine.live_path import LivePathMaker
from vzdump_qemu.engine.offline_source import OfflineSource
from vzdump_qemu.engine.power import PowerFound, PowerState
from vzdump_qemu.engine.reading_path import ReadingPath
from vzdump_qemu.engine.undo import UndoStack
from vzdump_qemu.engine.watch import JobWatch
from vzdump_qemu.errors import (
    INTERRUPTED_TEXT,
    BackupError,
    PowerError,
)
from vzdump_qemu.events import BackupMode, Consistency, FreezeSkip
from vzdump_qemu.formats.vm_config import VmConfig
from vzdump_qemu.formats.vma import ConfigBlob
from vzdump_qemu.journal_ports import Reversal, ReversalKind
from vzdump_qemu.plan.assemble import MapEntry, assemble_config
from vzdump_qemu.plan.names import RunNames
from vzdump_qemu.plan.options import BackupOptions, DataPathChoice
from vzdump_qemu.ports import Machine

CONFIG_NAME = "qemu-server.conf"


@dataclass(slots=True, kw_only=True)
class ArchiveStep:
    """One run's backup up to its name; `execute` after `make_temp_directory` and `assemble`."""

    ports: EnginePorts
    options: BackupOptions
    machine: Machine
    names: RunNames
    place: BackupPlace
    undo: UndoStack
    config: VmConfig
    disks: tuple[RunDisk, ...]
    mode: BackupMode
    found: PowerFound
    power: PowerState
    attachments: Attachments
    _configs: tuple[ConfigBlob, ...] = ()
    _window: FreezeWindow | None = None

    @property
    def consistency(self) -> Consistency:
        """What the data stands for; a late thaw may still tell more."""
        if self._window is None or self.mode is BackupMode.STOP:
            return Consistency.STOPPED
        return self._window.consistency

    @property
    def freeze_window_s(self) -> float | None:
        """From sending freeze to the thaw reply; None if nothing was frozen, or still is."""
        return None if self._window is None else self._window.freeze_window_s

    async def make_temp_directory(self) -> None:
        """A directory of this run alone: a stray job never reads another VM's files."""
        path = self.names.temp_directory
        await self.undo.push(
            "remove the temporary directory",
            lambda: self.ports.store.remove_tree(path),
            Reversal(kind=ReversalKind.REMOVE_TREE, names=(path,)),
        )
        await self.ports.store.create_directory(path)

    async def assemble(self, raw: bytes) -> None:
        """Write the configuration and the firewall rules as they will be stored."""
        entries = [
            MapEntry(
                key=disk.key,
                device_id=disk.device_id,
                storage_id=disk.facts.storage_id,
                format=disk.facts.format,
            )
            for disk in self.disks
        ]
        assembled = assemble_config(raw, entries)
        for volid in assembled.unused_volids:
            self.ports.emit(events.UnusedDiskSkipped(volid=volid))
        for kind in assembled.skipped_kinds:
            self.ports.emit(events.ConfigSectionSkipped(kind=kind))
        configs = [ConfigBlob(name=CONFIG_NAME, data=assembled.data)]
        firewall = await self.ports.node.read_firewall(self.machine.vmid)
        if firewall is not None:
            configs.append(ConfigBlob(name=self.place.firewall_name, data=firewall))
        for config in configs:
            await self.ports.store.write_file(self._path_of(config), config.data)
        self._configs = tuple(configs)

    def _path_of(self, config: ConfigBlob) -> str:
        return f"{self.names.temp_directory}/{config.name}"

    async def execute(self) -> ProvedBackup:
        """Make and prove the backup; what is returned is ready to be published."""
        is_external = self.config.template and self.options.data_path is DataPathChoice.EXTERNAL
        if not self.disks or is_external:
            return await self._run_external()
        if await self._is_offline():
            return await self._run_offline()
        await self.power.ensure_qemu(self.undo)
        await self._hold_alive()
        backup = await self._run_job()
        await self.power.restore()
        return backup

    @property
    def _content(self) -> BackupContent:
        return BackupContent(
            disks=self.disks,
            configs=self._configs,
            config_paths=tuple(self._path_of(config) for config in self._configs),
        )

    async def _is_offline(self) -> bool:
        """Whether the disks are read without a QEMU; a guest that was on is not kept off for it."""
        match self.options.data_path:
            case DataPathChoice.OFFLINE:
                reason = ""
            case DataPathChoice.AUTO if not (
                self.found.was_running or await self.machine.has_backup_job()
            ):
                reason = "the VM is off, and its QEMU has no 'backup' command"
            case _:
                return False
        name = DataPathChoice.OFFLINE.value
        self.ports.emit(events.DataPathChosen(name=name, reason=reason))
        return True

    async def _run_offline(self) -> ProvedBackup:
        if self.config.fleecing_images:
            await self.attachments.remove_left_over_fleecing(self.config.fleecing_images)
        path = ReadingPath(
            self.ports,
            lambda _: OfflineSource(self.ports, self.machine, self.disks),
            self.place.make_side(self._content),
        )
        return await self._carry_out(path, has_qemu=False)

    async def _hold_alive(self) -> None:
        """From here on a guest that powers off does not take QEMU, and our job, with it."""
        handle = AsyncExitStack()
        self.undo.push_own("let go of the event daemon", handle.aclose)
        try:
            await handle.enter_async_context(self.machine.keep_alive())
        except PowerError as error:
            self.ports.emit(events.Warned(text=str(error)))

    async def _run_external(self) -> ProvedBackup:
        if self.disks:
            self.ports.emit(events.TemplateStarted())
        else:
            self.ports.emit(events.NoDisksFound())
            self.ports.emit(events.DisklessStarted())
        return await self.place.run_external(self._content, self.undo)

    async def _run_job(self) -> ProvedBackup:
        path = await LivePathMaker(
            ports=self.ports,
            options=self.options,
            machine=self.machine,
            config=self.config,
            attachments=self.attachments,
            place=self.place,
            content=self._content,
        ).make(self.undo)
        return await self._carry_out(path)

    async def _carry_out(self, path: DataPath, *, has_qemu: bool = True) -> ProvedBackup:
        try:
            await path.prepare(self.undo)
            if has_qemu:
                uuid = await self._fix_point_in_time(path)
                self.ports.emit(events.JobAccepted(uuid=uuid))
                await self.power.continue_after_start(self.undo)
            else:
                self.ports.emit(events.JobAccepted(uuid=await path.start()))
                await path.started()
            await JobWatch(self.ports, self.machine, path).until_done()
            return await path.finish()
        except BackupError as error:
            self.ports.emit(events.JobAborting(text=str(error)))
            raise
        except asyncio.CancelledError:
            self.ports.emit(events.JobAborting(text=INTERRUPTED_TEXT))
            raise

    async def _fix_point_in_time(self, path: DataPath) -> str:
        window = FreezeWindow(self.ports, self.machine, path.guest_silent)
        self._window = window
        uuid = await self._start(window, path)
        await path.started()
        return uuid

    async def _start(self, window: FreezeWindow, path: DataPath) -> str:
        found = self.found
        if self.mode is BackupMode.STOP or not found.was_running or found.was_paused:
            return await window.start_unfrozen(path.start)
        if not (self.config.agent.enabled and self.config.agent.freeze_fs):
            self.ports.emit(events.FreezeSkipped(reason=FreezeSkip.DISABLED))
            return await window.start_unfrozen(path.start)
        if self.mode is BackupMode.SUSPEND:
            # A guest whose vCPUs stand still cannot answer, and what is sent to it now would
            # be carried out when it runs on.
            self.ports.emit(events.FreezeSkipped(reason=FreezeSkip.NOT_RUNNING))
            return await window.start_unfrozen(path.start)
        return await window.start_frozen(path.start, self.undo)
