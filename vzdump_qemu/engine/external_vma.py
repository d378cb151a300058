"""Archives made without a backup job: by the platform's `vma` tool, or by our own writer.

Owns the command line of `vma create` and the choice between the two; used for VMs without disks
and, where asked for, for templates. Source: host behaviour, section 1.10; VMA format, section 8.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from vzdump_qemu import events
from vzdump_qemu.engine.attachments import RunDisk
from vzdump_qemu.engine.context import EnginePorts
from vzdump_qemu.engine.intake import open_noted_intake
from vzdump_qemu.engine.undo import UndoStack
from vzdump_qemu.errors import BackupError, ConfigError
from vzdump_qemu.formats.vma import ConfigBlob
from vzdump_qemu.ports import ArchiveTarget, VmaExpectation, VmaIntake, VmaProof

STREAM_END_TIMEOUT_S = 3600.0


class ExternalVmaPath:
    """One archive made by `vma create`, or by our own writer where that tool is missing."""

    def __init__(self, ports: EnginePorts, target: ArchiveTarget) -> None:
        self._ports = ports
        self._target = target
        self._intake: VmaIntake | None = None

    @property
    def intake(self) -> VmaIntake:
        assert self._intake is not None
        return self._intake

    async def run(
        self,
        config_paths: Sequence[str],
        configs: Sequence[ConfigBlob],
        disks: Sequence[RunDisk],
        undo: UndoStack,
    ) -> VmaProof:
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
        self._intake = await open_noted_intake(self._ports, self._target, undo)
        uuid = ""
        if tool is None:
            uuid = await self._write_configs(self._intake, configs)
        else:
            await self._create(self._intake, tool, config_paths, disks)
        self._intake.close_write_end()
        return await self._intake.finish(
            VmaExpectation(uuid=uuid, device_ids=tuple(disk.device_id for disk in disks)),
            timeout_s=STREAM_END_TIMEOUT_S,
        )

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
        self._ports.emit(events.CommandStarted(command_line=shlex.join(argv)))
        status, lines = await self._ports.commands.run(argv, pass_fds=(intake.write_fd,))
        for line in lines:
            self._ports.emit(events.OutputSeen(line=line))
        failure = intake.failure()
        if failure is not None:
            raise failure
        if status != 0:
            kind = f"got signal {-status}" if status < 0 else f"exit code {status}"
            raise BackupError(f"command '{shlex.join(argv)}' failed: {kind}")
