"""From the name of a volume to where its bytes are, by name alone.

Owns directories of file storages, names of volumes and devices by type; looks at nothing. Types
whose volumes have no place that a name tells need the platform. Source: host behaviour, sections
5.4 and 5.5.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vzdump_qemu.errors import StorageError
from vzdump_qemu.formats.disk_address import render_rbd_address
from vzdump_qemu.formats.storage_config import (
    FILE_TYPES,
    LOCAL_ID,
    StorageSection,
    parse_content_directories,
)

MOUNT_DIRECTORY = "/mnt/pve"
SUBDIRECTORIES = {
    "images": "images",
    "rootdir": "private",
    "vztmpl": "template/cache",
    "iso": "template/iso",
    "backup": "dump",
    "snippets": "snippets",
    "import": "import",
}
_IMAGE_NAME = re.compile(
    r"(?:[0-9]+/[^/\s]+/)?(?P<owner>[0-9]+)/(?P<name>[^/\s]+\.(?P<format>raw|qcow2?|qed|vmdk|cloop))"
)
_FILE_NAME = re.compile(r"(?P<content>iso|vztmpl|snippets|backup|import)/(?P<name>[^/\s]+)")
_VOLUME_NAME = re.compile(r"(?:vm|base)-[0-9]+-[A-Za-z0-9_.+-]+")
_CHILD_NAME = re.compile(r"(?:base-[0-9]+-[^/\s]+/)?((?:vm|base|subvol|basevol)-[0-9]+-[^/\s]+)")
# A colon would begin an option of the address.
_RBD_NAME = re.compile(r"(?:base-[0-9]+-[^/\s:]+/)?((?:vm|base)-[0-9]+-[^/\s:@]+)")
_ISCSI_NAME = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+\.([^/\s]+)")
_LUN_NAME = re.compile(r"lun([0-9]+)")
_ELSEWHERE_HINT = (
    "use a storage of files, or one whose volumes are block devices or that QEMU reaches by itself"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What a volume's place depends on besides its storage.

    Attributes:
        local_path: directory of the storage ``local``.
        device_directory: ``/dev``.
        ceph_conf_path: configuration for RBD; empty for none.
        keyring_path: of that storage; empty for none.
        ceph_fsid: of the cluster; empty if unknown.
    """

    local_path: str
    device_directory: str = "/dev"
    ceph_conf_path: str = ""
    keyring_path: str = ""
    ceph_fsid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumePlace:
    """Where a volume's bytes are.

    Attributes:
        path: file, block device, or QEMU's own address.
        logical_volume: ``VG/LV``; empty for what is none.
    """

    path: str
    format: str
    logical_volume: str = ""


def storage_path(section: StorageSection, local_path: str) -> str:
    """The directory of a storage of files.

    Args:
        local_path: that of the storage ``local``.
    """
    if section.storage_id == LOCAL_ID:
        return local_path
    return section.options.get("path") or f"{MOUNT_DIRECTORY}/{section.storage_id}"


def content_directory(section: StorageSection, content: str, local_path: str) -> str:
    """The directory that holds one kind of content."""
    own = parse_content_directories(section.options.get("content-dirs", ""))
    relative = own.get(content, SUBDIRECTORIES[content])
    return f"{storage_path(section, local_path).rstrip('/')}/{relative}"


def locate_volume(section: StorageSection, name: str, host: HostFacts) -> VolumePlace:
    """The place of a volume of that storage.

    Raises: StorageError for a name that this type has none of, or a type without places.
    """
    if section.type in FILE_TYPES:
        return _locate_file(section, name, host.local_path)
    match section.type:
        case "lvm" | "lvmthin":
            return _locate_logical_volume(section, name, host)
        case "zfspool":
            pool = section.options["pool"]
            child = _require(_CHILD_NAME, name, "zfs")
            return VolumePlace(path=f"{host.device_directory}/zvol/{pool}/{child}", format="raw")
        case "rbd":
            return VolumePlace(path=_rbd_path(section, name, host), format="raw")
        case "iscsi":
            link = _require(_ISCSI_NAME, name, "iscsi")
            return VolumePlace(path=f"{host.device_directory}/disk/by-id/{link}", format="raw")
        case "iscsidirect":
            lun = _require(_LUN_NAME, name, "iscsi")
            portal, target = _with_port(section.options["portal"]), section.options["target"]
            return VolumePlace(path=f"iscsi://{portal}/{target}/{lun}", format="raw")
        case "pbs" | "esxi":
            raise StorageError(
                f"storage '{section.storage_id}' of type '{section.type}' has no disks"
            )
        case _:
            raise StorageError(
                f"storage '{section.storage_id}' of type '{section.type}' needs a PVE node",
                hint=_ELSEWHERE_HINT,
            )


def _locate_file(section: StorageSection, name: str, local_path: str) -> VolumePlace:
    image = _IMAGE_NAME.fullmatch(name)
    if image is not None and section.type != "cephfs":
        directory = f"{content_directory(section, 'images', local_path)}/{image['owner']}"
        if section.type == "btrfs" and image["format"] == "raw":
            stem = image["name"].removesuffix(".raw")
            return VolumePlace(path=f"{directory}/{stem}/disk.raw", format="raw")
        return VolumePlace(path=f"{directory}/{image['name']}", format=image["format"])
    file = _FILE_NAME.fullmatch(name)
    if file is None or file["name"] == "..":
        raise StorageError(f"unable to parse directory volume name '{name}'")
    directory = content_directory(section, file["content"], local_path)
    return VolumePlace(path=f"{directory}/{file['name']}", format="raw")


def _locate_logical_volume(section: StorageSection, name: str, host: HostFacts) -> VolumePlace:
    if _VOLUME_NAME.fullmatch(name) is None:
        raise StorageError(f"unable to parse lvm volume name '{name}'")
    group = section.options["vgname"]
    is_qcow2 = section.type == "lvm" and name.endswith(".qcow2")
    return VolumePlace(
        path=f"{host.device_directory}/{group}/{name}",
        format="qcow2" if is_qcow2 else "raw",
        logical_volume=f"{group}/{name}",
    )


def _rbd_path(section: StorageSection, name: str, host: HostFacts) -> str:
    image = _require(_RBD_NAME, name, "rbd")
    if not section.has("krbd"):
        return render_rbd_address(
            section, image, conf_path=host.ceph_conf_path, keyring_path=host.keyring_path
        )
    pool, namespace = section.options.get("pool", "rbd"), section.options.get("namespace", "")
    inner = f"{pool}/{namespace}/{image}" if namespace else f"{pool}/{image}"
    if host.ceph_fsid:
        return f"{host.device_directory}/rbd-pve/{host.ceph_fsid}/{inner}"
    return f"{host.device_directory}/rbd/{inner}"


def _require(pattern: re.Pattern[str], name: str, kind: str) -> str:
    match = pattern.fullmatch(name)
    if match is None or match[1] in (".", ".."):
        raise StorageError(f"unable to parse {kind} volume name '{name}'")
    return match[1]


def _with_port(portal: str) -> str:
    """As QEMU's driver wants it: an IPv6 address in brackets."""
    if portal.count(":") > 1 and not portal.startswith("["):
        return f"[{portal}]"
    return portal
