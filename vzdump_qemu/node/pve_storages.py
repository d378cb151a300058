"""The `Storages` port on a PVE node: every storage type, through the platform's library.

Owns limits and what stays outside storages (absolute paths); how a storage works is the
library's business, reached over `bridge`. Source: host behaviour, sections 5.3, 5.4, 5.7, 6.8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vzdump_qemu.errors import StorageError
from vzdump_qemu.node.bridge import PveBridge
from vzdump_qemu.node.outside_volumes import describe_outside
from vzdump_qemu.node.storage_sections import FleecingNames, StorageSections
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.ports import CommandRunner, VolumeFacts

# A ZFS volume's link alone may take 300 s to appear.
_ACTIVATE_TIMEOUT_S = 600.0
_QUERY_TIMEOUT_S = 120.0
# Cluster-wide allocation: 60 s for the lock, 60 s of work, and the storage's own time.
_ALLOCATE_TIMEOUT_S = 600.0


class PveStorages:
    """`ports.Storages` through the Perl child.

    Args:
        sections: the storages as configured; used for the names of volumes only.
    """

    def __init__(
        self, bridge: PveBridge, *, sections: StorageSections, commands: CommandRunner
    ) -> None:
        self._bridge = bridge
        self._sections = sections
        self._commands = commands

    async def activate(self, volids: Sequence[str]) -> None:
        """See `ports.Storages.activate`; absolute paths are taken as they are."""
        inside = [volid for volid in volids if not volid.startswith("/")]
        if inside:
            await self._call("activate_volumes", {"volids": inside}, _ACTIVATE_TIMEOUT_S)

    async def describe(self, volid: str) -> VolumeFacts:
        """See `ports.Storages.describe`."""
        if volid.startswith("/"):
            return await describe_outside(volid, commands=self._commands)
        facts = await self._call("volume_facts", {"volid": volid}, _QUERY_TIMEOUT_S)
        return _read_facts(facts)

    async def backup_directory(self, storage_id: str) -> str:
        """See `ports.Storages.backup_directory`."""
        params = {"storage_id": storage_id}
        return str(await self._call("backup_directory", params, _ACTIVATE_TIMEOUT_S))

    async def backup_server(self, storage_id: str) -> PbsTarget | None:
        """See `ports.Storages.backup_server`."""
        return self._sections.backup_server(storage_id)

    async def allocate_fleecing(
        self, storage_id: str, *, vmid: int, name: str, size_bytes: int
    ) -> VolumeFacts:
        """See `ports.Storages.allocate_fleecing`."""
        names = self._fleecing_names(storage_id, vmid=vmid, name=name)
        params = {
            "storage_id": storage_id,
            "vmid": vmid,
            "format": names.format,
            "name": names.file_name,
            "size_bytes": size_bytes,
        }
        facts = _read_facts(await self._call("allocate", params, _ALLOCATE_TIMEOUT_S))
        if facts.volid != names.volid:
            await self.free(facts.volid)
            raise StorageError(f"storage '{storage_id}' named '{names.volid}' '{facts.volid}'")
        return facts

    async def free(self, volid: str) -> None:
        """See `ports.Storages.free`."""
        await self._call("free", {"volid": volid}, _ALLOCATE_TIMEOUT_S)

    def fleecing_volid(self, storage_id: str, *, vmid: int, name: str) -> str:
        """See `ports.Storages.fleecing_volid`."""
        return self._fleecing_names(storage_id, vmid=vmid, name=name).volid

    def _fleecing_names(self, storage_id: str, *, vmid: int, name: str) -> FleecingNames:
        return self._sections.fleecing_names(storage_id, vmid=vmid, name=name)

    async def _call(self, method: str, params: Mapping[str, Any], timeout_s: float) -> Any:
        reply = await self._bridge.call(
            method, params, timeout_s=timeout_s, error_type=StorageError
        )
        return reply.result


def _read_facts(result: Any) -> VolumeFacts:
    try:
        return VolumeFacts(
            volid=str(result["volid"]),
            storage_id=str(result["storage_id"]),
            path=str(result["path"]),
            size_bytes=int(result["size_bytes"]),
            format=str(result["format"]),
            is_block_device=bool(result["is_block_device"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError("the storage library gave no facts of a volume") from error
