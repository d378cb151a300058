"""Raw files into an archive, the way a backup packs them, without a run around it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from vzdump_qemu.disk_ports import DiskOrigin
from vzdump_qemu.formats.vma import ConfigBlob, VmaDevice, VmaWriter
from vzdump_qemu.stores.disk_pump import DiskPump
from vzdump_qemu.stores.raw_disk import RawDisk
from vzdump_qemu.stores.system import SystemClock
from vzdump_qemu.stores.vma_sink import VmaSink
from vzdump_qemu.units import SECTOR_BYTES, round_up


def pack_raw_files(
    archive_path: Path,
    disks: Mapping[str, Path],
    *,
    configs: Sequence[ConfigBlob] = (),
    uuid: bytes = bytes(16),
    ctime_s: int = 0,
) -> None:
    """Make an archive of whole disks, by their device ids. Raises BackupError."""
    origins = [
        DiskOrigin(
            device_id=device_id,
            size_bytes=round_up(path.stat().st_size, SECTOR_BYTES),
            file_path=str(path),
        )
        for device_id, path in disks.items()
    ]
    devices = [
        VmaDevice(vma_dev_id=index, name=origin.device_id, size_bytes=origin.size_bytes)
        for index, origin in enumerate(origins, start=1)
    ]
    writer = VmaWriter(uuid, ctime_s, configs, devices)
    fd = os.open(archive_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
    pump = DiskPump(
        [RawDisk(origin) for origin in origins], VmaSink(fd, writer), clock=SystemClock()
    )
    pump.ended.result()
    if (failure := pump.failure()) is not None:
        raise failure
