"""Archives made without a backup job: by the platform's `vma` tool, or by our own writer.

Owns the command line of `vma create` and the choice between the two; used for VMs without disks
and, where asked for, for templates. Source: host behaviour, section 1.10; VMA format, section 8.
"""

from __future__ import annotations

from collections.abc import Sequence

from vzdump_qemu.engine.attachments import RunDisk
from vzdump_qemu.engine.context import EnginePorts, ProvedBackup
from vzdump_qemu.engine.external_program import run_told
from vzdump_qemu.engine.intake import open_noted_intake
from vzdump_qemu.engine.undo import UndoStack
from vzdump_qemu.engine.vma_backup import prove_archive
from vzdump_qemu.errors import ConfigError
from vzdump_qemu.formats.vma import ConfigBlob
from vzdump_qemu.ports import ArchiveTarget, VmaExpectation, VmaIntake


class ExternalVmaPath:
    """One archive made by `vma create`, or by our own writer where that tool is missing."""

    def __init__(self, ports: EnginePorts, target: ArchiveTarget) -> None:
        self._ports = ports
        self._target = target

    async def run(
        self,
        config_paths: Sequence[str],
        configs: Sequence[ConfigBlob],
        disks: Sequence[RunDisk],
        undo: UndoStack,
    ) -> ProvedBackup:
        """Make the archive and prove it.

        Args:
            config_paths: files whose base names become the stored names.
            configs: the same as values.
            disks: of a template; empty for a VM without disks.
        """
        tool = self._ports.commands.find("vma")
        if tool is None and disks:
            raise ConfigError(
                "the external data path for a template needs the 'vma' tool",
                hint="install it, or leave --data-path at auto",
            )
        intake = await open_noted_intake(self._ports, self._target, undo)
        uuid = ""
        if tool is None:
            uuid = await self._write_configs(intake, configs)
        else:
            await self._create(intake, tool, config_paths, disks)
        intake.close_write_end()
        expectation = VmaExpectation(uuid=uuid, device_ids=tuple(disk.device_id for disk in disks))
        return await prove_archive(self._ports, intake, self._target, expectation)

    async def _write_configs(self, intake: VmaIntake, configs: Sequence[ConfigBlob]) -> str:
        uuid = self._ports.ids.uuid()
        from vzdump_qemu.formats.vma import VmaWriter

        writer = VmaWriter(
            uuid=bytes.fromhex(uuid.replace("-", "")),
            ctime_s=int(self._ports.clock.wall_s()),
            configs=configs,
            devices=(),
        )
        for part in (writer.header_bytes(), *writer.finish()):
            await intake.write(bytes(part))
        return uuid

    async def _create(
        self, intake: VmaIntake, tool: str, config_paths: Sequence[str], disks: Sequence[RunDisk]
    ) -> None:
        # The tool's output goes to our pipe by its descriptor: no path of ours ever stands in
        # a shell string, and the archive is proved on its way like any other.
        argv = [tool, "create", "-v"]
        for path in config_paths:
            argv += ["-c", path]
        for disk in disks:
            argv += [
                "-d",
                f"format={disk.facts.format or 'raw'}:{disk.device_id}={disk.facts.path}",
            ]
        argv.append(f"exec:cat > /dev/fd/{intake.write_fd}")
        of_tool = await run_told(self._ports, argv, pass_fds=(intake.write_fd,))
        failure = intake.failure() or of_tool
        if failure is not None:
            raise failure
