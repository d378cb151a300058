"""The offline source: the disks of a VM without a QEMU process.

Owns what is read directly (raw images and block devices), what a storage daemon of ours serves
(every other format, and what only QEMU's drivers reach), and that no QEMU has the disks meanwhile.
The daemon opens them read-only with QEMU's own image locks and ends with us, also if we are
killed. Source: architecture, section 4; failure modes 35, 93.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from vzdump_qemu.disk_ports import DiskOrigin
from vzdump_qemu.engine.attachments import RunDisk, file_node
from vzdump_qemu.engine.context import EnginePorts
from vzdump_qemu.engine.run_state import GuestLook, wait_for_silence
from vzdump_qemu.engine.undo import UndoHandle, UndoStack
from vzdump_qemu.errors import BackupError, ConfigError, DiskReadError, JobError
from vzdump_qemu.formats.disk_address import is_disk_address, protocol_node
from vzdump_qemu.journal_ports import Reversal, ReversalKind
from vzdump_qemu.pbs_ports import DiskSize
from vzdump_qemu.ports import Machine
from vzdump_qemu.units import SECTOR_BYTES, round_up

DAEMON = "qemu-storage-daemon"
# Opening an image with a long chain on slow storage.
DAEMON_START_TIMEOUT_S = 60.0
_POLL_S = 0.05
_SOCKET_NAME = "s"
_PID_NAME = "p"


class OfflineSource:
    """One run's disks while their VM is off; a `DiskSource`."""

    def __init__(self, ports: EnginePorts, machine: Machine, disks: Sequence[RunDisk]) -> None:
        self._ports = ports
        self._machine = machine
        self._disks = tuple(disks)
        self._served = tuple(disk for disk in disks if _needs_daemon(disk))
        self._socket_path = f"{machine.private_directory}/{_SOCKET_NAME}"
        self._pid_path = f"{machine.private_directory}/{_PID_NAME}"
        self._daemon: asyncio.Task[tuple[int, Sequence[str]]] | None = None
        self._handles: list[UndoHandle] = []

    async def prepare(self, undo: UndoStack) -> None:
        """Have the daemon running, if there is something for it to serve."""
        self._refuse_guessed_formats()
        self._refuse_addresses()
        await self._refuse_qemu()
        if not self._served:
            return
        path = self._machine.private_directory
        self._handles.append(
            await undo.push(
                "remove the directory of the NBD socket",
                lambda: self._ports.store.remove_tree(path),
                Reversal(kind=ReversalKind.REMOVE_TREE, names=(path,)),
            )
        )
        await self._ports.store.create_directory(path)
        self._handles.append(undo.push_own("end the storage daemon", self._end_daemon))
        self._daemon = asyncio.ensure_future(self._ports.commands.run(self._command_line()))
        await self._await_daemon()
        for disk in self._served:
            if not disk.facts.size_bytes:
                raise DiskReadError(f"the size of '{disk.facts.path}' cannot be told")

    @property
    def disk_sizes(self) -> Sequence[DiskSize]:
        """See `DiskSource.disk_sizes`."""
        return tuple(
            DiskSize(device_id=disk.device_id, size_bytes=_size_bytes(disk)) for disk in self._disks
        )

    def refuse_reuse(self, device_id: str, reason: str) -> None:
        """Without a QEMU nobody counts changes: everything is read in any case."""

    async def fix(self) -> None:
        """The point in time is the VM's last power-off, as long as nobody starts it."""
        await self._refuse_qemu()

    async def guest_silent(self) -> GuestLook:
        """See `DiskSource.guest_silent`."""
        return await wait_for_silence(None)

    async def expose(self) -> Sequence[DiskOrigin]:
        """What was prepared is readable."""
        return tuple(self._origin(disk) for disk in self._disks)

    async def check(self) -> None:
        """As the Protocol says."""
        await self._refuse_qemu()

    async def explain(self, error: BackupError) -> BackupError:
        """What the daemon said when it ended, if it did."""
        if self._daemon is None or not self._daemon.done():
            return error
        return JobError(f"{error}: {self._last_words()}")

    async def release(self) -> None:
        """End the daemon. Raises JobError if the VM was started while it was read."""
        while self._handles:
            await self._handles.pop().run()
        await self._refuse_qemu()

    async def keep_changes(self, backup_id: str) -> None:
        """Nobody counts changes while the VM is off."""

    def _origin(self, disk: RunDisk) -> DiskOrigin:
        size_bytes = _size_bytes(disk)
        if disk in self._served:
            return DiskOrigin(
                device_id=disk.device_id,
                size_bytes=size_bytes,
                nbd_socket=self._socket_path,
                export_name=disk.device_id,
            )
        return DiskOrigin(
            device_id=disk.device_id, size_bytes=size_bytes, file_path=disk.facts.path
        )

    def _refuse_guessed_formats(self) -> None:
        """A guest may have written that header, and with it the name of any file of this host."""
        for disk in self._disks:
            if disk.is_format_guessed:
                image_format = disk.facts.format
                raise DiskReadError(
                    f"disk '{disk.key}' looks like {image_format}, and nothing says that it is",
                    hint=f"its drive needs format={image_format}, or format=raw if the guest's own "
                    "data begins like that",
                )

    def _refuse_addresses(self) -> None:
        """Before anything is done: no daemon could be told of these."""
        for disk in self._disks:
            path = disk.facts.path
            if is_disk_address(path):
                protocol_node(path)
            elif not path.startswith("/"):
                raise ConfigError(
                    f"volume '{disk.facts.volid}' cannot be read by its address '{path}'",
                    hint="map it to a block device, or start the VM: its QEMU then reads it",
                )

    async def _refuse_qemu(self) -> None:
        """Nothing locks a raw image: a QEMU that writes to it would tear what we read."""
        if await self._machine.is_running():
            raise JobError(
                f"VM {self._machine.vmid} is running: its disks cannot be read offline",
                hint="leave --data-path at auto, or stop the VM and keep it off",
            )

    # -- the daemon ----------------------------------------------------------------------------

    def _command_line(self) -> tuple[str, ...]:
        daemon = self._ports.commands.find(DAEMON)
        if daemon is None:
            first = self._served[0]
            what = (
                "reached over a network"
                if first.facts.format == "raw"
                else (f"of format '{first.facts.format}'")
            )
            raise ConfigError(
                f"disk '{first.key}' {what} needs '{DAEMON}' to be read offline",
                hint="install qemu-utils or qemu-system-common, or start the VM",
            )
        argv = [daemon]
        for index, disk in enumerate(self._served):
            for node in _nodes(index, disk):
                argv += ["--blockdev", json.dumps(node)]
        server = {"addr": {"type": "unix", "path": self._socket_path}, "max-connections": 0}
        argv += ["--nbd-server", json.dumps(server)]
        for index, disk in enumerate(self._served):
            export = {
                "type": "nbd",
                "id": f"vzdump-{index}",
                "node-name": f"disk-{index}",
                "name": disk.device_id,
                "writable": False,
            }
            argv += ["--export", json.dumps(export)]
        argv += ["--pidfile", self._pid_path]
        setpriv = self._ports.commands.find("setpriv")
        # Whatever kills us ends the daemon.
        return (setpriv, "--pdeathsig", "KILL", *argv) if setpriv else tuple(argv)

    async def _await_daemon(self) -> None:
        """The daemon writes its pid file once it has carried out all its options."""
        assert self._daemon is not None
        waited_s = 0.0
        while not await self._ports.store.exists(self._pid_path):
            if self._daemon.done():
                raise DiskReadError(f"unable to open the disks - {self._last_words()}")
            if waited_s >= DAEMON_START_TIMEOUT_S:
                raise DiskReadError(
                    f"unable to open the disks - no end within {DAEMON_START_TIMEOUT_S:g} seconds"
                )
            await self._ports.clock.sleep(_POLL_S)
            waited_s += _POLL_S

    def _last_words(self) -> str:
        assert self._daemon is not None
        if self._daemon.cancelled():
            return "the storage daemon was ended"
        status, lines = self._daemon.result()
        return lines[-1] if lines else f"the storage daemon ended with status {status}"

    async def _end_daemon(self) -> None:
        if self._daemon is not None:
            self._daemon.cancel()
            await asyncio.wait([self._daemon])


def _size_bytes(disk: RunDisk) -> int:
    """As a guest sees the disk: whole sectors."""
    return round_up(disk.facts.size_bytes, SECTOR_BYTES)


def _needs_daemon(disk: RunDisk) -> bool:
    return disk.facts.format != "raw" or is_disk_address(disk.facts.path)


def _nodes(index: int, disk: RunDisk) -> tuple[dict[str, Any], ...]:
    return (
        {**file_node(disk.facts, f"file-{index}"), "read-only": True},
        {
            "driver": disk.facts.format,
            "node-name": f"disk-{index}",
            "file": f"file-{index}",
            "read-only": True,
        },
    )
