"""Which disks take part: verdicts, reasons and names."""

from __future__ import annotations

import pytest

from vzdump_qemu.formats.vm_config import parse_vm_config
from vzdump_qemu.plan.disks import DiskChoice, device_id_of, select_disks


def _select(text: str) -> tuple[DiskChoice, ...]:
    return select_disks(parse_vm_config(text.encode(), vmid=100))


def _verdicts(text: str) -> dict[str, str]:
    """Key to reason, empty for an included disk."""
    choices = _select(text)
    assert all(choice.included == (not choice.reason) for choice in choices)
    return {choice.key: choice.reason for choice in choices}


def test_row_10_2_reference_configuration_is_judged_in_the_order_of_drives() -> None:
    choices = _select(
        "bios: ovmf\nefidisk0: local-lvm:vm-100-disk-2,size=4M\nide2: none,media=cdrom\n"
        "scsi0: local-lvm:vm-100-disk-0,size=32G\nscsi10: tank:vm-100-disk-0,backup=0,size=1T\n"
        "scsi2: nas:100/vm-100-disk-0.qcow2,size=4098K\nunused0: local-lvm:vm-100-disk-9\n"
    )
    assert [(choice.key, choice.size_text, choice.reason) for choice in choices] == [
        ("scsi0", "32G", ""),
        ("scsi2", "4098K", ""),
        ("scsi10", "1T", "backup=no"),
        ("efidisk0", "4M", ""),
    ]


def test_included_disk_carries_its_volume_size_and_device() -> None:
    assert _select("virtio0: ceph:vm-101-disk-0,size=8G") == (
        DiskChoice(
            key="virtio0",
            volid="ceph:vm-101-disk-0",
            size_text="8G",
            included=True,
            reason="",
            device_id="drive-virtio0",
        ),
    )


@pytest.mark.parametrize(
    "line",
    [
        "ide2: none,media=cdrom",
        "ide2: cdrom,media=cdrom",
        "ide2: local:iso/debian.iso,media=cdrom,size=600M",
        "ide2: local-lvm:vm-100-cloudinit,media=cdrom",
        "scsi3: local:100/vm-100-cloudinit.qcow2,media=cdrom",
        "unused0: local-lvm:vm-100-disk-9",
    ],
)
def test_row_10_1_5_cdroms_cloud_init_and_unused_volumes_are_not_listed(line: str) -> None:
    assert _select(line) == ()


@pytest.mark.parametrize("word", ["0", "no", "off", "FALSE"])
def test_row_10_1_5_disk_with_backup_off_is_excluded_with_its_reason(word: str) -> None:
    assert _verdicts(f"scsi0: a:b,backup={word}") == {"scsi0": "backup=no"}


def test_disk_with_backup_on_is_included() -> None:
    assert _verdicts("scsi0: a:b,backup=1") == {"scsi0": ""}


@pytest.mark.parametrize("bios", ["", "bios: seabios\n"])
def test_row_10_1_5_efidisk_without_ovmf_is_excluded_with_its_reason(bios: str) -> None:
    assert _verdicts(f"{bios}efidisk0: a:b") == {"efidisk0": "efidisk but no OVMF BIOS"}


def test_row_10_1_5_tpm_state_is_included_under_a_device_of_its_own() -> None:
    (choice,) = _select("tpmstate0: a:b,size=4M,version=v2.0")
    assert choice.included
    assert choice.device_id == "drive-tpmstate0-backup"


def test_row_10_1_5_disk_by_absolute_path_is_included() -> None:
    assert _verdicts("sata0: /dev/disk/by-id/x") == {"sata0": ""}


def test_disk_with_iothread_is_included_like_any_other() -> None:
    assert _verdicts("scsi0: a:b,iothread=1") == {"scsi0": ""}


def test_disks_of_pending_changes_and_of_other_sections_do_not_count() -> None:
    text = "scsi0: a:b\n[PENDING]\nscsi1: a:c\n[before]\nscsi2: a:d\n"
    assert _verdicts(text) == {"scsi0": ""}


def test_device_is_named_after_the_drive() -> None:
    assert device_id_of("scsi10") == "drive-scsi10"
