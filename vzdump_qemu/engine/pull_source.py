"""The pull source: all disks of a running QEMU at one point in time, shown over NBD.

Owns the order of attaching and detaching and who may read: an NBD server on a socket in a
directory that only we may enter. The guest's writes wait for the fleecing image alone, never for
a reader; a fleecing image that is full or slow costs the backup, not the guest. How the nodes
work, and why so, is `pull_nodes`. Source: architecture, section 4; failure modes 37, 45 to 49, 57.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack

from vzdump_qemu import events
from vzdump_qemu.disk_ports import DiskOrigin
from vzdump_qemu.engine.attachments import Attachments, RunDisk
from vzdump_qemu.engine.change_tracking import (
    ChangeTracking,
    IncrementalPlan,
    IncrementalRequest,
)
from vzdump_qemu.engine.context import EnginePorts
from vzdump_qemu.engine.pull_disks import QUERY_TIMEOUT_S, PullDisk, find_pull_disks
from vzdump_qemu.engine.pull_nodes import (
    CHANGE_TIMEOUT_S,
    PullNodes,
    add_fleecing,
    add_view,
    insert_passing_node,
    release_disk,
    release_reversal,
    reopen_passing,
)
from vzdump_qemu.engine.run_state import HALT_EVENTS, GuestLook, wait_for_silence
from vzdump_qemu.engine.undo import UndoHandle, UndoStack
from vzdump_qemu.errors import (
    BackupError,
    ConfigError,
    DiskReadError,
    JobError,
    QmpCommandError,
    QmpError,
)
from vzdump_qemu.formats.disk_address import is_disk_address
from vzdump_qemu.journal_ports import Reversal, ReversalKind
from vzdump_qemu.pbs_ports import DiskSize
from vzdump_qemu.plan.options import FleecingOptions
from vzdump_qemu.ports import Machine, Qmp, QmpEvent

MONITOR_TIMEOUT_S = 60.0
FIX_TIMEOUT_S = 30.0
RELEASE_TIMEOUT_S = 1200.0
# Where images of a VM without a storage of its own go.
DEFAULT_STORAGE_ID = "local"
_SOCKET_NAME = "s"
_EXPORT_PREFIX = "vzdump-"
_VIEW_PREFIX = "vzdump-view-"
_IMAGE_SUFFIX = ".qcow2"


class PullSource:
    """One run's point in time inside a running QEMU; a `DiskSource`.

    Args:
        incremental: what the target asks for that can take up an earlier backup; None means that
            every disk is read whole and no bitmap is made.
    """

    def __init__(
        self,
        ports: EnginePorts,
        machine: Machine,
        disks: Sequence[RunDisk],
        fleecing: FleecingOptions,
        *,
        incremental: IncrementalRequest | None = None,
    ) -> None:
        self._ports = ports
        self._machine = machine
        self._fleecing = fleecing
        self._attachments = Attachments(ports, machine)
        # Nobody but its own helper process writes the TPM state, past QEMU: it is read as it is.
        self._files = tuple(disk for disk in disks if disk.key == "tpmstate0")
        self._disks = tuple(disk for disk in disks if disk not in self._files)
        self._order = tuple(disk.device_id for disk in disks)
        self._found: tuple[PullDisk, ...] = ()
        self._connection = AsyncExitStack()
        self._qmp: Qmp | None = None
        self._halts: AsyncIterator[QmpEvent] | None = None
        self._changes: ChangeTracking | None = None
        if incremental is not None:
            token = ports.ids.uuid().replace("-", "")
            self._changes = ChangeTracking(machine, incremental, ports.emit, token=token)
        self._views: list[DiskOrigin] = []
        self._handles: list[UndoHandle] = []
        self._socket_path = f"{machine.private_directory}/{_SOCKET_NAME}"

    async def prepare(self, undo: UndoStack) -> None:
        """Attach everything, without effect yet; the monitor stays connected for `fix`."""
        self._refuse_unreadable_files()
        async with self._machine.connect_qmp(timeout_s=MONITOR_TIMEOUT_S) as qmp:
            self._found = await find_pull_disks(qmp, self._disks)
        await self._make_directory(undo)
        if self._guarded:
            await self._attach(undo)
            if self._changes is not None:
                await self._changes.begin([found for _, found in self._guarded], undo)
        undo.push_own("close the monitor connection", self._close)
        await self._push(undo, "end the NBD server", self._stop_server, self._server_reversal())
        self._qmp = await self._connection.enter_async_context(
            self._machine.connect_qmp(timeout_s=MONITOR_TIMEOUT_S)
        )
        self._halts = await self._connection.enter_async_context(self._qmp.events(*HALT_EVENTS))
        address = {"type": "unix", "data": {"path": self._socket_path}}
        try:
            await self._qmp.execute(
                "nbd-server-start", {"addr": address}, timeout_s=CHANGE_TIMEOUT_S
            )
        except QmpCommandError as error:
            raise JobError(
                f"QEMU cannot serve the disks of VM {self._machine.vmid} - {error}",
                hint="another tool's NBD server may be running in this VM",
            ) from error

    @property
    def disk_sizes(self) -> Sequence[DiskSize]:
        """See `DiskSource.disk_sizes`."""
        sizes = {found.disk.device_id: found.size_bytes for found in self._found}
        sizes |= {disk.device_id: disk.facts.size_bytes for disk in self._files}
        return tuple(
            DiskSize(device_id=device_id, size_bytes=sizes[device_id]) for device_id in self._order
        )

    def refuse_reuse(self, device_id: str, reason: str) -> None:
        """See `DiskSource.refuse_reuse`."""
        if self._changes is not None:
            self._changes.refuse(device_id, reason)

    async def fix(self) -> None:
        """One command for all disks; disks that nobody can write need none."""
        assert self._qmp is not None
        if not self._guarded:
            return
        if self._changes is not None:
            await self._changes.clear(self._qmp)
        below = [(nodes, nodes.filter) for nodes, _ in self._guarded]
        try:
            await reopen_passing(self._qmp, below, timeout_s=FIX_TIMEOUT_S)
        except QmpError as error:
            raise JobError(f"fixing the point in time failed - {error}") from error

    async def guest_silent(self) -> GuestLook:
        """See `DiskSource.guest_silent`."""
        return await wait_for_silence(self._halts)

    async def expose(self) -> Sequence[DiskOrigin]:
        """Export every disk read-only, the ones without a writer as they are."""
        assert self._qmp is not None
        origins = {}
        for index, found in enumerate(self._found):
            node_name = found.node_name
            if found.device_path:
                nodes = PullNodes(index=index)
                await add_view(self._qmp, nodes)
                self._views.append(
                    await self._export(self._qmp, found, _VIEW_PREFIX + str(index), nodes.view)
                )
                node_name = nodes.fleecing
            bitmap_name = await self._copy_changes(self._qmp, index, found)
            export_id = _EXPORT_PREFIX + str(index)
            origin = await self._export(
                self._qmp, found, export_id, node_name, bitmap_name=bitmap_name
            )
            origins[origin.device_id] = origin
        for disk in self._files:
            if self._changes is not None:
                reason = "its volume is read directly"
                self._changes.read_all(disk.device_id, disk.facts.size_bytes, reason)
            origins[disk.device_id] = DiskOrigin(
                device_id=disk.device_id,
                size_bytes=disk.facts.size_bytes,
                file_path=disk.facts.path,
            )
        await self._close()
        return tuple(origins[device_id] for device_id in self._order)

    async def _copy_changes(self, qmp: Qmp, index: int, found: PullDisk) -> str:
        """Name of the bitmap to export with a disk; empty if all of it is to be read."""
        if self._changes is None:
            return ""
        if found.device_path:
            return await self._changes.copy(qmp, PullNodes(index=index), found)
        reason = "QEMU has opened it read-only"
        self._changes.read_all(found.disk.device_id, found.size_bytes, reason)
        return ""

    async def _export(
        self,
        qmp: Qmp,
        found: PullDisk,
        export_id: str,
        node_name: str,
        *,
        bitmap_name: str = "",
    ) -> DiskOrigin:
        arguments = {
            "type": "nbd",
            "id": export_id,
            "node-name": node_name,
            "name": export_id,
            "writable": False,
        }
        if bitmap_name:
            arguments["bitmaps"] = [bitmap_name]
        await qmp.execute("block-export-add", arguments, timeout_s=CHANGE_TIMEOUT_S)
        return DiskOrigin(
            device_id=found.disk.device_id,
            size_bytes=found.size_bytes,
            nbd_socket=self._socket_path,
            export_name=export_id,
            bitmap_name=bitmap_name,
        )

    async def check(self) -> None:
        """Raise the reason once the point in time was given up for the guest's sake."""
        try:
            await self._ports.packer.check_readable(self._views)
        except DiskReadError as error:
            raise await self.explain(error) from error

    async def explain(self, error: BackupError) -> BackupError:
        """Whether QEMU is gone, or the point in time was given up for the guest's sake."""
        vmid = self._machine.vmid
        if not await self._machine.is_running():
            return JobError(f"VM {vmid} not running: QEMU ended during the backup")
        if not self._guarded:
            return error
        return JobError(
            f"the point in time of VM {vmid} cannot be read any more - {error}",
            hint="the fleecing image was full or too slow, and the guest's writes went first: "
            "give --fleecing a storage with more room",
        )

    @property
    def plans(self) -> tuple[IncrementalPlan, ...]:
        """How each disk is read, once they are exposed; empty where nothing was asked for."""
        return self._changes.plans if self._changes is not None else ()

    async def keep_changes(self, backup_id: str) -> None:
        """The target has proved the backup whole: the next one may build upon it.

        Without this call the changes are those since the earlier base, as before the run. What
        cannot be kept is told, not raised.
        """
        if self._changes is not None:
            await self._changes.keep(backup_id)

    async def release(self) -> None:
        """Detach everything now: the guest need not wait for the archive's last steps."""
        await self.check()
        while self._handles:
            await self._handles.pop().run()

    # -- attaching -----------------------------------------------------------------------------

    @property
    def _guarded(self) -> tuple[tuple[PullNodes, PullDisk], ...]:
        """Disks that somebody may write during the backup, with their nodes."""
        return tuple(
            (PullNodes(index=index), found)
            for index, found in enumerate(self._found)
            if found.device_path
        )

    @property
    def _export_ids(self) -> tuple[str, ...]:
        return tuple(
            f"{prefix}{index}"
            for index in range(len(self._found))
            for prefix in (_EXPORT_PREFIX, _VIEW_PREFIX)
        )

    def _refuse_unreadable_files(self) -> None:
        for disk in self._files:
            if is_disk_address(disk.facts.path):
                raise JobError(
                    f"'{disk.key}' lies at '{disk.facts.path}' and cannot be read directly",
                    hint="map it to a block device (krbd)",
                )
            if disk.facts.format != "raw":
                raise JobError(
                    f"'{disk.key}' is of format '{disk.facts.format}' and cannot be read directly",
                    hint="move it to a storage that keeps it raw",
                )

    async def _push(self, undo: UndoStack, what: str, act: object, reversal: Reversal) -> None:
        assert callable(act)
        handle = await undo.push(what, act, reversal, timeout_s=RELEASE_TIMEOUT_S)
        self._handles.append(handle)

    async def _make_directory(self, undo: UndoStack) -> None:
        path = self._machine.private_directory
        await self._push(
            undo,
            "remove the directory of the NBD socket",
            lambda: self._ports.store.remove_tree(path),
            Reversal(kind=ReversalKind.REMOVE_TREE, names=(path,)),
        )
        await self._ports.store.create_directory(path)

    async def _attach(self, undo: UndoStack) -> None:
        volids = tuple(
            self._fleecing_volid(self._storage_id(found.disk), nodes.index)
            for nodes, found in self._guarded
        )
        for volid in volids:
            if not volid.endswith(_IMAGE_SUFFIX):
                raise ConfigError(
                    f"storage '{volid.partition(':')[0]}' keeps no qcow2 images for fleecing",
                    hint="give --fleecing a directory storage",
                )
        await self._push(
            undo,
            "delete the fleecing images",
            lambda: self._attachments.free(volids, old=False),
            Reversal(kind=ReversalKind.FREE_FLEECING, names=volids),
        )
        await self._ports.node.record_fleecing(self._machine.vmid, volids)
        for nodes, found in self._guarded:
            await self._attach_disk(nodes, found, undo)

    async def _attach_disk(self, nodes: PullNodes, found: PullDisk, undo: UndoStack) -> None:
        facts = await self._ports.node.storages.allocate_fleecing(
            self._storage_id(found.disk),
            vmid=self._machine.vmid,
            name=str(nodes.index),
            size_bytes=found.size_bytes,
        )
        device_id = found.disk.device_id
        self._ports.emit(events.FleecingAttaching(device_id=device_id, volid=facts.volid))
        await self._push(
            undo,
            f"release the disk '{device_id}'",
            lambda: release_pulled_disk(
                self._machine,
                index=nodes.index,
                device_path=found.device_path,
                node_name=found.node_name,
            ),
            release_reversal(nodes.index, found),
        )
        async with self._machine.connect_qmp(timeout_s=MONITOR_TIMEOUT_S) as qmp:
            await add_fleecing(qmp, nodes, found, facts, limit_bytes=self._fleecing.limit_bytes)
            await insert_passing_node(qmp, nodes, found)

    def _storage_id(self, disk: RunDisk) -> str:
        """Where the operator says, else where the disk itself lies: its writes go there anyway."""
        if self._fleecing.enabled and self._fleecing.storage_id:
            return self._fleecing.storage_id
        own_id = disk.facts.storage_id
        if own_id and self._fleecing_volid(own_id, 0).endswith(_IMAGE_SUFFIX):
            return own_id
        return DEFAULT_STORAGE_ID

    def _fleecing_volid(self, storage_id: str, index: int) -> str:
        return self._ports.node.storages.fleecing_volid(
            storage_id, vmid=self._machine.vmid, name=str(index)
        )

    # -- detaching -----------------------------------------------------------------------------

    def _server_reversal(self) -> Reversal:
        return Reversal(kind=ReversalKind.STOP_NBD, names=(self._socket_path, *self._export_ids))

    async def _close(self) -> None:
        self._qmp = None
        await self._connection.aclose()

    async def _stop_server(self) -> None:
        await self._close()
        await stop_nbd_server(
            self._ports, self._machine, self._socket_path, export_ids=self._export_ids
        )


async def stop_nbd_server(
    ports: EnginePorts, machine: Machine, socket_path: str, *, export_ids: Sequence[str]
) -> None:
    """Remove our exports, whoever reads them, and the server if the socket shows it is ours."""
    if not await machine.is_running():
        return
    async with machine.connect_qmp(timeout_s=MONITOR_TIMEOUT_S) as qmp:
        exports = await qmp.execute("query-block-exports", timeout_s=QUERY_TIMEOUT_S)
        present = {str(export.get("id", "")) for export in exports}
        for export_id in export_ids:
            if export_id in present:
                arguments = {"id": export_id, "mode": "hard"}
                await qmp.execute("block-export-del", arguments, timeout_s=RELEASE_TIMEOUT_S)
        if await ports.store.exists(socket_path):
            await qmp.execute("nbd-server-stop", timeout_s=RELEASE_TIMEOUT_S)


async def release_pulled_disk(
    machine: Machine, *, index: int, device_path: str, node_name: str
) -> None:
    """Take one disk's nodes out of a running QEMU; idempotent."""
    if not await machine.is_running():
        return
    async with machine.connect_qmp(timeout_s=MONITOR_TIMEOUT_S) as qmp:
        await release_disk(qmp, index=index, device_path=device_path, node_name=node_name)
