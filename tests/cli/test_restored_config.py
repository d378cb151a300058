"""Rewriting a stored configuration for a new VM."""

import pytest

from vzdump_qemu.cli.restored_config import NewVolume, read_map, rewrite_config
from vzdump_qemu.errors import ConfigError
from vzdump_qemu.units import MIB

STORED = """\
#my web server
#vzdump#x
#qmdump#map:scsi0:drive-scsi0:local-lvm:raw:
#qmdump#map:efidisk0:drive-efidisk0:::
boot: order=scsi0
efidisk0: local-lvm:vm-100-disk-1,efitype=4m,size=4M
ide0: local:100/vm-100-cloudinit.qcow2,media=cdrom
ide2: local:iso/debian.iso,media=cdrom
lock: backup
name: web
parent: before
scsi0: file=local-lvm:vm-100-disk-0,iothread=1,format=raw,size=32G
scsi1: local-lvm:vm-100-disk-2,backup=0,size=8G
unused0: local-lvm:vm-100-disk-9
vmgenid: 1

[before]
scsi0: local-lvm:vm-100-disk-0
"""


def test_map_lines_are_read_with_their_defaults() -> None:
    disks = read_map(STORED, ["drive-scsi0", "drive-efidisk0"])
    assert [(disk.key, disk.device_id, disk.storage_id, disk.format) for disk in disks] == [
        ("scsi0", "drive-scsi0", "local-lvm", "raw"),
        ("efidisk0", "drive-efidisk0", "", "raw"),
    ]


def test_map_line_without_a_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not contain data for drive 'efidisk0'"):
        read_map(STORED, ["drive-scsi0"])


def test_device_without_a_map_line_is_refused() -> None:
    with pytest.raises(ConfigError, match="no device mapping information for device 'drive-x'"):
        read_map(STORED, ["drive-scsi0", "drive-efidisk0", "drive-x"])


def test_drive_mapped_twice_is_refused() -> None:
    line = "#qmdump#map:scsi0:drive-scsi0:s:raw:\n"
    with pytest.raises(ConfigError, match="'scsi0' is mapped twice"):
        read_map(line + line, ["drive-scsi0"])


def test_config_gets_new_volumes_and_loses_what_was_the_old_vms() -> None:
    volumes = {
        "scsi0": NewVolume(volid="local:101/vm-101-disk-0.raw", size_bytes=48 * MIB),
        "efidisk0": NewVolume(volid="local:101/vm-101-disk-1.raw", size_bytes=540672),
    }
    restored = rewrite_config(STORED, volumes)
    assert restored.text == (
        "#my web server\n"
        "boot: order=scsi0\n"
        "efidisk0: local:101/vm-101-disk-1.raw,efitype=4m,size=528K\n"
        "#ide0: local:100/vm-100-cloudinit.qcow2,media=cdrom\n"
        "ide2: local:iso/debian.iso,media=cdrom\n"
        "name: web\n"
        "scsi0: local:101/vm-101-disk-0.raw,iothread=1,size=48M\n"
        "#scsi1: local-lvm:vm-100-disk-2,backup=0,size=8G\n"
        "vmgenid: 1\n"
    )
    assert restored.left_out_keys == ("ide0", "scsi1")


def test_volume_without_its_drive_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no drive 'sata3'"):
        rewrite_config(STORED, {"sata3": NewVolume(volid="x:y", size_bytes=1)})


def test_line_end_of_unicode_inside_a_description_is_no_line_end() -> None:
    stored = "#a\u2028[x] \x0clock: x\nscsi0: a:b,size=1G\n"
    volumes = {"scsi0": NewVolume(volid="local:101/vm-101-disk-0.raw", size_bytes=1024 * MIB)}
    restored = rewrite_config(stored, volumes)
    assert restored.text.startswith("#a\u2028[x] \x0clock: x\nscsi0: local:101/")
