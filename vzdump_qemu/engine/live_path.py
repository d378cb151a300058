"""Making the data path of a VM whose QEMU is there: its own job, or pulled.

Owns what the QEMU is asked for beforehand, what is attached for its own job, and that the choice
is told. Source: host behaviour, sections 1.10, 5.6 and 6.7; architecture, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

from vzdump_qemu import events
from vzdump_qemu.engine.attachments import Attachments
from vzdump_qemu.engine.backup_place import BackupContent, BackupPlace, QemuFeatures
from vzdump_qemu.engine.context import DataPath, EnginePorts
from vzdump_qemu.engine.data_path_choice import choose_live_path, query_abilities
from vzdump_qemu.engine.native_job import NativeJob
from vzdump_qemu.engine.pull_source import PullSource
from vzdump_qemu.engine.reading_path import ReadingPath
from vzdump_qemu.engine.run_state import CONNECT_TIMEOUT_S
from vzdump_qemu.engine.undo import UndoStack
from vzdump_qemu.errors import QmpError
from vzdump_qemu.formats.vm_config import VmConfig
from vzdump_qemu.plan.options import BackupOptions, DataPathChoice
from vzdump_qemu.ports import Machine

SUPPORT_TIMEOUT_S = 5.0
_NATIVE_REASON = "QEMU has a backup job of its own"


@dataclass(frozen=True, slots=True, kw_only=True)
class LivePathMaker:
    """What a data path is made from."""

    ports: EnginePorts
    options: BackupOptions
    machine: Machine
    config: VmConfig
    attachments: Attachments
    place: BackupPlace
    content: BackupContent

    async def make(self, undo: UndoStack) -> DataPath:
        """Choose, tell the choice, attach what belongs to it. Raises ConfigError, QmpError."""
        choice, features = await self._choose()
        if choice is DataPathChoice.PULL:
            await self._remove_left_over_fleecing()
            return self._make_pull()
        self.place.check_features(features)
        await self._attach(features, undo)
        return self._make_native(features)

    async def _choose(self) -> tuple[DataPathChoice, QemuFeatures]:
        """The path, and the feature list of a patched QEMU or why it could not be had."""
        asked = self.options.data_path
        features: QemuFeatures = {}
        if asked is not DataPathChoice.PULL:
            try:
                features = await self._query_features()
                self._tell(DataPathChoice.NATIVE, _NATIVE_REASON)
                return DataPathChoice.NATIVE, features
            except QmpError as error:
                features = error
        async with self.machine.connect_qmp(timeout_s=CONNECT_TIMEOUT_S) as qmp:
            choice, reason = choose_live_path(asked, await query_abilities(qmp))
        self._tell(choice, reason)
        if choice is DataPathChoice.NATIVE and isinstance(features, QmpError):
            return choice, await self._query_features_again()
        return choice, features

    async def _query_features_again(self) -> QemuFeatures:
        """What failed once need not mean anything; very old patched builds have no such list."""
        try:
            return await self._query_features()
        except QmpError as error:
            return error

    def _tell(self, choice: DataPathChoice, reason: str) -> None:
        asked = self.options.data_path is choice
        self.ports.emit(events.DataPathChosen(name=choice.value, reason="" if asked else reason))

    # -- pulled --------------------------------------------------------------------------------

    def _make_pull(self) -> DataPath:
        return ReadingPath(
            self.ports,
            lambda incremental: PullSource(
                self.ports,
                self.machine,
                self.content.disks,
                self.options.fleecing,
                incremental=incremental,
            ),
            self.place.make_side(self.content),
        )

    # -- QEMU's own job ------------------------------------------------------------------------

    def _make_native(self, features: QemuFeatures) -> DataPath:
        config_paths = self.content.config_paths
        job = NativeJob(
            device_ids=self.content.device_ids,
            config_path=config_paths[0],
            firewall_path=config_paths[1] if len(config_paths) > 1 else "",
            rate_limit_bytes_per_s=self.options.rate_limit_bytes_per_s,
            max_workers=self._supported_max_workers(features),
            fleecing=self._uses_fleecing(features),
            is_template=self.config.template,
        )
        return self.place.make_native(job, features)

    async def _query_features(self) -> dict[str, object]:
        async with self.machine.connect_qmp(timeout_s=CONNECT_TIMEOUT_S) as qmp:
            reply = await qmp.execute("query-proxmox-support", timeout_s=SUPPORT_TIMEOUT_S)
        return dict(reply or {})

    def _supported_max_workers(self, features: QemuFeatures) -> int | None:
        if self.options.max_workers is None:
            return None
        if isinstance(features, QmpError):
            text = "ignoring setting(s): max-workers - issue checking if supported"
        elif features.get("backup-max-workers") is True:
            return self.options.max_workers
        else:
            text = "ignoring 'max-workers' setting - not supported by running QEMU"
        self.ports.emit(events.Warned(text=text))
        return None

    def _uses_fleecing(self, features: QemuFeatures) -> bool:
        return (
            self.options.fleecing.enabled
            and not self.config.template
            and not isinstance(features, QmpError)
            and features.get("backup-fleecing") is True
        )

    async def _attach(self, features: QemuFeatures, undo: UndoStack) -> None:
        for disk in self.content.disks:
            if disk.key == "tpmstate0":
                await self.attachments.attach_tpm(disk, undo)
        await self._remove_left_over_fleecing()
        if self._uses_fleecing(features):
            storage_id = self.options.fleecing.storage_id
            await self.attachments.attach_fleecing(self.content.disks, storage_id, undo)
        elif self.options.fleecing.enabled and not self.config.template:
            text = "running QEMU version does not support backup fleecing - continuing without"
            self.ports.emit(events.Warned(text=text))

    async def _remove_left_over_fleecing(self) -> None:
        if self.config.fleecing_images:
            await self.attachments.remove_left_over_fleecing(self.config.fleecing_images)
