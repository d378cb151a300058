"""Volumes of a folder node's storages: where they are on this host, and whether they are there.

Owns looking; names become paths in `formats.storage_volumes`. Nothing is activated, mapped or
logged in to: on a host that is no PVE node whoever set a volume up keeps it active. Source: host
behaviour, sections 5.3 to 5.5.
"""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import dataclass

from vzdump_qemu.errors import StorageError
from vzdump_qemu.formats.disk_address import is_disk_address
from vzdump_qemu.formats.storage_config import StorageSection
from vzdump_qemu.formats.storage_volumes import HostFacts, VolumePlace, locate_volume
from vzdump_qemu.node.layout import NodeLayout
from vzdump_qemu.node.storage_activation import LOOK_TIMEOUT_S, within
from vzdump_qemu.ports import CommandRunner

_COMMAND_TIMEOUT_S = 10.0
_FSID = re.compile(r"^\s*fsid\s*=\s*(\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostDirectories:
    """Where the kernel and Ceph keep what is looked at."""

    devices: str = "/dev"
    block_devices: str = "/sys/block"
    ceph_conf: str = "/etc/ceph/ceph.conf"


class VolumePlaces:
    """Finds the volumes of one folder node."""

    def __init__(
        self, layout: NodeLayout, *, commands: CommandRunner, host: HostDirectories | None = None
    ) -> None:
        self._layout = layout
        self._commands = commands
        self._host = host or HostDirectories()

    def locate(self, section: StorageSection, name: str) -> VolumePlace:
        """Where a volume must be. Raises StorageError for a name or type without a place."""
        if section.type != "rbd":
            return locate_volume(section, name, self._facts())
        ceph = self._ceph_facts(section)
        place = locate_volume(section, name, ceph)
        if not section.has("krbd") or os.path.exists(place.path):
            return place
        return self._locate_plain_rbd(section, name, ceph) or place

    async def require(self, section: StorageSection, volid: str, place: VolumePlace) -> None:
        """Raise StorageError, with what would help, unless the volume is there."""
        if is_disk_address(place.path) or await exists(place.path):
            return
        match section.type:
            case "lvm" | "lvmthin":
                raise await self._explain_logical_volume(volid, place)
            case "zfspool":
                raise StorageError(
                    f"volume '{volid}' has no device link '{place.path}'",
                    hint="import the pool: only a PVE node does that by itself",
                )
            case "rbd":
                raise StorageError(
                    f"volume '{volid}' is not mapped: there is no '{place.path}'",
                    hint="rbd map IMAGE: only a PVE node does that by itself",
                )
            case "iscsi":
                raise StorageError(
                    f"volume '{volid}' not part of target '{section.options['target']}'",
                    hint="iscsiadm --login: only a PVE node does that by itself",
                )
            case _:
                raise StorageError(f"volume '{volid}' does not exist")

    def _facts(self) -> HostFacts:
        return HostFacts(
            local_path=self._layout.default_storage_path, device_directory=self._host.devices
        )

    def _ceph_facts(self, section: StorageSection) -> HostFacts:
        directory = os.path.join(self._layout.pve_directory, "priv/ceph")
        stem = os.path.join(directory, section.storage_id)
        conf_paths = [f"{stem}.conf"]
        if "monhost" not in section.options:
            conf_paths = [os.path.join(self._layout.pve_directory, "ceph.conf")]
            conf_paths.append(self._host.ceph_conf)
        conf_path = next((path for path in conf_paths if os.path.exists(path)), "")
        keyring_path = f"{stem}.keyring"
        return HostFacts(
            local_path=self._layout.default_storage_path,
            device_directory=self._host.devices,
            ceph_conf_path=conf_path,
            keyring_path=keyring_path if os.path.exists(keyring_path) else "",
            ceph_fsid=_read_fsid(conf_path),
        )

    def _locate_plain_rbd(
        self, section: StorageSection, name: str, ceph: HostFacts
    ) -> VolumePlace | None:
        """Ceph's own link, which tells no cluster: its device must be of ours."""
        facts = HostFacts(local_path=ceph.local_path, device_directory=ceph.device_directory)
        place = locate_volume(section, name, facts)
        device = os.path.basename(os.path.realpath(place.path))
        path = os.path.join(self._host.block_devices, device, "device/cluster_fsid")
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                fsid = file.read().strip()
        except OSError:
            return None
        return place if ceph.ceph_fsid in ("", fsid) else None

    async def _explain_logical_volume(self, volid: str, place: VolumePlace) -> StorageError:
        name = place.logical_volume
        lvs = self._commands.find("lvs")
        if lvs is not None:
            try:
                argv = [lvs, "--noheadings", "-o", "lv_name", name]
                status = await run_within(self._commands, argv, _COMMAND_TIMEOUT_S)
            except TimeoutError:
                return StorageError(f"volume '{volid}': 'lvs' does not answer")
            if status[0] != 0:
                return StorageError(f"no such logical volume {name}")
        return StorageError(
            f"volume '{volid}' is not active: there is no '{place.path}'",
            hint=f"lvchange -ay -K {name}: only a PVE node does that by itself",
        )


async def exists(path: str) -> bool:
    """Whether something is there; raises StorageError if its file system does not answer."""
    try:
        return await within(LOOK_TIMEOUT_S, lambda: os.path.exists(path))
    except TimeoutError:
        raise StorageError(f"'{path}' does not answer") from None


async def run_within(
    commands: CommandRunner, argv: list[str], timeout_s: float
) -> tuple[int, list[str]]:
    """A program's status and lines; it is ended at the limit. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        status, lines = await commands.run(argv)
    return status, list(lines)


def _read_fsid(conf_path: str) -> str:
    if not conf_path:
        return ""
    try:
        with open(conf_path, encoding="utf-8", errors="replace") as file:
            match = _FSID.search(file.read())
    except OSError:
        return ""
    return match[1] if match else ""
