"""From names of volumes to paths: the rows of section 5.4, as far as a name tells."""

from __future__ import annotations

import pytest

from vzdump_qemu.errors import StorageError
from vzdump_qemu.formats.storage_config import StorageSection, parse_storage_config
from vzdump_qemu.formats.storage_volumes import (
    HostFacts,
    VolumePlace,
    content_directory,
    locate_volume,
    storage_path,
)

HOST = HostFacts(local_path="/var/lib/vz", ceph_conf_path="/etc/pve/ceph.conf")
SECTIONS = {
    "dir": "\tpath /x/\n",
    "nfs": "\tserver s\n\texport /e\n",
    "cifs": "\tserver s\n\tshare e\n\tpath /x\n",
    "cephfs": "",
    "btrfs": "\tpath /x\n",
    "lvm": "\tvgname vg\n",
    "lvmthin": "\tvgname vg\n\tthinpool data\n",
    "zfspool": "\tpool tank/vm\n",
    "zfs": "\tpool t\n\tportal p\n\ttarget q\n\tblocksize 4k\n\tiscsiprovider LIO\n",
    "rbd": "\tpool vms\n",
    "iscsi": "\tportal p\n\ttarget q\n",
    "iscsidirect": "\tportal 192.0.2.1\n\ttarget iqn.x:y\n",
    "pbs": "\tserver s\n\tdatastore d\n",
    "esxi": "\tserver s\n\tusername u\n",
}


def _section(kind: str, *, more: str = "") -> StorageSection:
    return parse_storage_config(f"{kind}: a1\n{SECTIONS[kind]}{more}".encode()).sections["a1"]


@pytest.mark.parametrize(
    ("kind", "name", "path", "image_format"),
    [
        ("dir", "100/vm-100-disk-0.raw", "/x/images/100/vm-100-disk-0.raw", "raw"),
        ("dir", "100/vm-100-disk-0.vmdk", "/x/images/100/vm-100-disk-0.vmdk", "vmdk"),
        (
            "dir",
            "9/base-9-disk-0.qcow2/100/vm-100-disk-0.qcow2",
            "/x/images/100/vm-100-disk-0.qcow2",
            "qcow2",
        ),
        ("dir", "iso/x.iso", "/x/template/iso/x.iso", "raw"),
        ("dir", "backup/x.vma", "/x/dump/x.vma", "raw"),
        ("nfs", "100/vm-100-disk-0.raw", "/mnt/pve/a1/images/100/vm-100-disk-0.raw", "raw"),
        ("cifs", "100/vm-100-disk-0.raw", "/x/images/100/vm-100-disk-0.raw", "raw"),
        ("cephfs", "iso/x.iso", "/mnt/pve/a1/template/iso/x.iso", "raw"),
        ("btrfs", "100/vm-100-disk-0.raw", "/x/images/100/vm-100-disk-0/disk.raw", "raw"),
        ("btrfs", "100/vm-100-disk-0.qcow2", "/x/images/100/vm-100-disk-0.qcow2", "qcow2"),
        ("lvm", "vm-100-disk-0", "/dev/vg/vm-100-disk-0", "raw"),
        ("lvm", "vm-100-disk-0.qcow2", "/dev/vg/vm-100-disk-0.qcow2", "qcow2"),
        ("lvmthin", "base-100-disk-0", "/dev/vg/base-100-disk-0", "raw"),
        ("zfspool", "vm-100-disk-0", "/dev/zvol/tank/vm/vm-100-disk-0", "raw"),
        ("zfspool", "base-9-disk-0/vm-100-disk-0", "/dev/zvol/tank/vm/vm-100-disk-0", "raw"),
        ("rbd", "vm-100-disk-0", "rbd:vms/vm-100-disk-0:conf=/etc/pve/ceph.conf", "raw"),
        (
            "rbd",
            "base-9-disk-0/vm-100-disk-0",
            "rbd:vms/vm-100-disk-0:conf=/etc/pve/ceph.conf",
            "raw",
        ),
        ("iscsi", "0.0.1.scsi-3600", "/dev/disk/by-id/scsi-3600", "raw"),
        ("iscsidirect", "lun3", "iscsi://192.0.2.1/iqn.x:y/3", "raw"),
    ],
)
def test_row_5_4_path_and_format(kind: str, name: str, path: str, image_format: str) -> None:
    place = locate_volume(_section(kind), name, HOST)
    assert (place.path, place.format) == (path, image_format)
    is_volume = kind in ("lvm", "lvmthin")
    assert place.logical_volume == (path.removeprefix("/dev/") if is_volume else "")


@pytest.mark.parametrize(
    ("more", "fsid", "path"),
    [
        ("\tkrbd\n", "f-1", "/dev/rbd-pve/f-1/vms/vm-100-disk-0"),
        ("\tkrbd\n\tnamespace n\n", "f-1", "/dev/rbd-pve/f-1/vms/n/vm-100-disk-0"),
        ("\tkrbd\n", "", "/dev/rbd/vms/vm-100-disk-0"),
    ],
)
def test_row_5_5_krbd(more: str, fsid: str, path: str) -> None:
    facts = HostFacts(local_path="/var/lib/vz", ceph_fsid=fsid)
    place = locate_volume(_section("rbd", more=more), "vm-100-disk-0", facts)
    assert place == VolumePlace(path=path, format="raw")


def test_row_5_4_portal_of_ipv6_gets_brackets() -> None:
    text = b"iscsidirect: a1\n\tportal 2001:db8::1\n\ttarget t\n"
    section = parse_storage_config(text).sections["a1"]
    assert locate_volume(section, "lun0", HOST).path == "iscsi://[2001:db8::1]/t/0"


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("dir", "vm-100-disk-0", "unable to parse directory volume name 'vm-100-disk-0'"),
        ("dir", "../../etc/passwd", "unable to parse directory volume name '../../etc/passwd'"),
        ("cephfs", "1/vm-1-d.raw", "unable to parse directory volume name '1/vm-1-d.raw'"),
        ("lvm", "../sda", "unable to parse lvm volume name '../sda'"),
        ("lvmthin", "vm-1/../sda", "unable to parse lvm volume name 'vm-1/../sda'"),
        ("zfspool", "..", "unable to parse zfs volume name '..'"),
        ("rbd", "vm-1-disk:mon_host=x", "unable to parse rbd volume name 'vm-1-disk:mon_host=x'"),
        ("iscsi", "0.0.1...", "unable to parse iscsi volume name '0.0.1...'"),
        ("iscsidirect", "lun", "unable to parse iscsi volume name 'lun'"),
        ("zfs", "vm-100-disk-0", "storage 'a1' of type 'zfs' needs a PVE node"),
        ("pbs", "backup/vm/1/x", "storage 'a1' of type 'pbs' has no disks"),
        ("esxi", "a/b/c", "storage 'a1' of type 'esxi' has no disks"),
    ],
)
def test_name_without_a_place_is_refused(kind: str, name: str, text: str) -> None:
    with pytest.raises(StorageError) as caught:
        locate_volume(_section(kind), name, HOST)
    assert caught.value.message == text


def test_row_5_1_content_dirs_replace_the_usual_directories() -> None:
    section = _section("dir", more="\tcontent-dirs backup=save/here,images=/disks/\n")
    assert content_directory(section, "backup", "/var/lib/vz") == "/x/save/here"
    assert content_directory(section, "images", "/var/lib/vz") == "/x/disks"
    assert content_directory(section, "iso", "/var/lib/vz") == "/x/template/iso"


def test_storage_local_lies_where_the_node_has_it() -> None:
    local = parse_storage_config(b"").sections["local"]
    assert storage_path(local, "/lab/var/lib/vz") == "/lab/var/lib/vz"
    assert content_directory(local, "backup", "/lab/var/lib/vz") == "/lab/var/lib/vz/dump"
