"""Volumes that QEMU gets for the length of a run: TPM state and fleecing images.

Owns attaching, detaching, and the record of what was allocated. Source: host behaviour, sections
5.6, 6.7 and 6.8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from vzdump_qemu import events
from vzdump_qemu.engine.context import EnginePorts
from vzdump_qemu.engine.undo import UndoStack
from vzdump_qemu.errors import BackupError, ConfigError, QmpCommandError, StorageError
from vzdump_qemu.formats.disk_address import is_disk_address, protocol_node
from vzdump_qemu.journal_ports import Reversal, ReversalKind
from vzdump_qemu.ports import Machine, Qmp, VolumeFacts

CONNECT_TIMEOUT_S = 60.0
QUERY_TIMEOUT_S = 5.0
ADD_TIMEOUT_S = 60.0
DELETE_TIMEOUT_S = 600.0
TPM_NODE = "drive-tpmstate0-backup"
TPM_FILE_NODE = "tpmstate0-backup-file"
FLEECING_SUFFIX = "-fleecing"
# From this version on a device list may name block nodes; before, a legacy drive is needed.
BLOCK_NODES_SINCE = (10, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDisk:
    """One disk of this run: its key, its name inside QEMU, and where its bytes are.

    Attributes:
        is_format_guessed: nobody but the disk's own content says that it is of that format.
    """

    key: str
    device_id: str
    facts: VolumeFacts
    is_format_guessed: bool = False

    @property
    def wants_fleecing(self) -> bool:
        """EFI variables and TPM state are tiny and never get a fleecing image."""
        return not self.key.startswith(("efidisk", "tpmstate"))


def file_node(facts: VolumeFacts, node_name: str | None = None) -> dict[str, Any]:
    """Options of the node that a format node stands on (5.6).

    Raises: ConfigError for an address that such a node cannot be told.
    """
    if is_disk_address(facts.path):
        node = protocol_node(facts.path)
    else:
        driver = "host_device" if facts.is_block_device else "file"
        node = {"driver": driver, "filename": facts.path}
    if node_name is not None:
        node["node-name"] = node_name
    return node


async def _supports_block_nodes(qmp: Qmp) -> bool:
    version = (await qmp.execute("query-version", timeout_s=QUERY_TIMEOUT_S))["qemu"]
    return (int(version["major"]), int(version["minor"])) >= BLOCK_NODES_SINCE


async def _attach(qmp: Qmp, name: str, facts: VolumeFacts, options: Mapping[str, Any]) -> None:
    """Add a volume under a name a device list can carry, in the way this QEMU's age asks for."""
    if await _supports_block_nodes(qmp):
        below = file_node(facts, TPM_FILE_NODE if name == TPM_NODE else None)
        node = {"driver": facts.format or "raw", "node-name": name, "file": below, **options}
        await qmp.execute("blockdev-add", node, timeout_s=ADD_TIMEOUT_S)
        return
    path = facts.path.replace(",", ",,").replace("\\", "\\\\").replace('"', '\\"')
    parts = [f"file={path}", "if=none", f"id={name}", f"format={facts.format or 'raw'}"]
    parts += ["read-only=on"] if options.get("read-only") else ["discard=unmap"]
    line = f'drive_add auto "{",".join(parts)}"'
    answer = await qmp.execute(
        "human-monitor-command", {"command-line": line}, timeout_s=ADD_TIMEOUT_S
    )
    if str(answer).strip() != "OK":
        raise BackupError(f"attaching drive '{name}' failed - {str(answer).strip()}")


async def _detach(qmp: Qmp, name: str) -> None:
    """Remove a node or legacy drive; one that is not there is no error."""
    try:
        await qmp.execute("blockdev-del", {"node-name": name}, timeout_s=DELETE_TIMEOUT_S)
    except QmpCommandError as error:
        if "Failed to find" not in error.description:
            raise
        await qmp.execute(
            "human-monitor-command",
            {"command-line": f"drive_del {name}"},
            timeout_s=DELETE_TIMEOUT_S,
        )


class Attachments:
    """What one run attaches to its VM's QEMU."""

    def __init__(self, ports: EnginePorts, machine: Machine) -> None:
        self._ports = ports
        self._machine = machine

    async def attach_tpm(self, disk: RunDisk, undo: UndoStack) -> None:
        """Attach the TPM state read-only, replacing what a crashed run left attached."""
        await undo.push(
            "detach the TPM state",
            lambda: self.detach((TPM_NODE,)),
            Reversal(kind=ReversalKind.DETACH, names=(TPM_NODE,)),
        )
        async with self._machine.connect_qmp(timeout_s=CONNECT_TIMEOUT_S) as qmp:
            if TPM_NODE in await _attached_names(qmp):
                await _detach(qmp, TPM_NODE)
            self._ports.emit(events.TpmAttaching())
            await _attach(qmp, TPM_NODE, disk.facts, {"read-only": True})

    async def attach_fleecing(
        self, disks: Sequence[RunDisk], storage_id: str, undo: UndoStack
    ) -> None:
        """Allocate and attach one fleecing image per disk, recorded before they exist."""
        vmid = self._machine.vmid
        storages = self._ports.node.storages
        wanted = [disk for disk in disks if disk.wants_fleecing]
        async with self._machine.connect_qmp(timeout_s=CONNECT_TIMEOUT_S) as qmp:
            sizes = await _block_sizes(qmp)
            await _detach_left_over(qmp)
        names = tuple(disk.device_id + FLEECING_SUFFIX for disk in wanted)
        volids = tuple(
            storages.fleecing_volid(storage_id, vmid=vmid, name=str(index))
            for index in range(len(wanted))
        )
        await undo.push(
            "delete the fleecing images",
            lambda: self.free(volids, old=False),
            Reversal(kind=ReversalKind.FREE_FLEECING, names=volids),
            timeout_s=1200.0,
        )
        await undo.push(
            "detach the fleecing images",
            lambda: self.detach(names),
            Reversal(kind=ReversalKind.DETACH, names=names),
            timeout_s=1200.0,
        )
        await self._ports.node.record_fleecing(vmid, volids)
        for index, disk in enumerate(wanted):
            size_bytes = sizes.get(disk.device_id)
            if size_bytes is None:
                self._ports.emit(events.FleecingSizeUnknown(key=disk.key))
                size_bytes = disk.facts.size_bytes
            facts = await storages.allocate_fleecing(
                storage_id, vmid=vmid, name=str(index), size_bytes=size_bytes
            )
            self._ports.emit(events.FleecingAttaching(device_id=disk.device_id, volid=facts.volid))
            options: dict[str, Any] = {"discard": "unmap"}
            if facts.format == "raw":
                # Storages round up; QEMU wants exactly the size of the disk.
                options["size"] = size_bytes
            async with self._machine.connect_qmp(timeout_s=CONNECT_TIMEOUT_S) as qmp:
                await _attach(qmp, disk.device_id + FLEECING_SUFFIX, facts, options)

    async def remove_left_over_fleecing(self, volids: Sequence[str]) -> None:
        """Detach and delete what an earlier run recorded and could not remove."""
        if await self._machine.is_running():
            async with self._machine.connect_qmp(timeout_s=CONNECT_TIMEOUT_S) as qmp:
                await _detach_left_over(qmp)
        if volids:
            # What stays is told and recorded; this run can do its work all the same.
            with suppress(StorageError, ConfigError):
                await self.free(volids, old=True)

    async def detach(self, names: Sequence[str]) -> None:
        """Detach what of these is attached to a running QEMU."""
        if not await self._machine.is_running():
            return
        async with self._machine.connect_qmp(timeout_s=CONNECT_TIMEOUT_S) as qmp:
            attached = await _attached_names(qmp)
            for name in names:
                if name in attached:
                    await _detach(qmp, name)

    async def free(self, volids: Sequence[str], *, old: bool) -> None:
        """Delete fleecing images; what cannot be deleted stays recorded.

        Args:
            old: an earlier run left them.
        Raises:
            StorageError: the first that was refused, after all were tried.
        """
        kept = []
        refusal: BackupError | None = None
        for volid in volids:
            self._ports.emit(events.FleecingRemoving(volid=volid, old=old))
            try:
                await self._ports.node.storages.free(volid)
            except (StorageError, ConfigError) as error:
                text = f"error removing fleecing image '{volid}' - {error}"
                self._ports.emit(events.Warned(text=text))
                kept.append(volid)
                refusal = refusal or error
        await self._ports.node.record_fleecing(self._machine.vmid, kept)
        if refusal is not None:
            raise refusal


async def _detach_left_over(qmp: Qmp) -> None:
    """Detach every fleecing image; we hold the VM's lock, so none is in anybody's use."""
    for name in sorted(await _attached_names(qmp)):
        if name.endswith(FLEECING_SUFFIX):
            await _detach(qmp, name)


async def _attached_names(qmp: Qmp) -> set[str]:
    nodes = await qmp.execute("query-named-block-nodes", {"flat": True}, timeout_s=QUERY_TIMEOUT_S)
    backends = await qmp.execute("query-block", timeout_s=QUERY_TIMEOUT_S)
    names = {str(node.get("node-name", "")) for node in nodes}
    return names | {str(backend.get("device", "")) for backend in backends}


async def _block_sizes(qmp: Qmp) -> dict[str, int]:
    sizes = {}
    for backend in await qmp.execute("query-block", timeout_s=QUERY_TIMEOUT_S):
        inserted = backend.get("inserted")
        if inserted:
            size_bytes = int(inserted["image"]["virtual-size"])
            for name in (backend.get("device"), inserted.get("node-name")):
                if name:
                    sizes[str(name)] = size_bytes
    return sizes
