"""Which disks take part in a backup, and why others do not; pure.

Source: host behaviour, section 3.6.
"""

from __future__ import annotations

from dataclasses import dataclass

from vzdump_qemu.formats.vm_config import DriveConfig, VmConfig

TPM_KEY = "tpmstate0"
TPM_DEVICE_ID = "drive-tpmstate0-backup"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskChoice:
    """One candidate disk and the verdict.

    Attributes:
        size_text: as the configuration gives it, may be empty.
        reason: why it is excluded; empty for an included one.
        device_id: its name inside QEMU during the backup.
        format: as the configuration gives it, may be empty.
    """

    key: str
    volid: str
    size_text: str
    included: bool
    reason: str
    device_id: str
    format: str = ""


def device_id_of(key: str) -> str:
    """Name of a drive inside QEMU; the TPM state is attached under a name of its own."""
    return TPM_DEVICE_ID if key == TPM_KEY else f"drive-{key}"


def select_disks(config: VmConfig) -> tuple[DiskChoice, ...]:
    """Judge every drive but CD-ROMs, in the fixed order of drive keys."""
    return tuple(_judge(config, drive) for drive in config.drives if drive.media != "cdrom")


def _judge(config: VmConfig, drive: DriveConfig) -> DiskChoice:
    reason = ""
    if not drive.backup:
        reason = "backup=no"
    elif drive.key == "efidisk0" and config.bios != "ovmf":
        reason = "efidisk but no OVMF BIOS"
    return DiskChoice(
        key=drive.key,
        volid=drive.volid,
        size_text=drive.size_text,
        included=not reason,
        reason=reason,
        device_id=device_id_of(drive.key),
        format=drive.format,
    )
