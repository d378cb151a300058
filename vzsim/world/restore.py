"""What a VMA stream restores to, per device."""

from __future__ import annotations

from vzdump_qemu.formats.vma import DataRead, VmaReader
from vzsim.fakeqmp.disks import DiskContent, MemoryDisk


def restore_disks(stream: bytes) -> dict[str, DiskContent]:
    """Decode a whole, plain VMA stream. Raises VmaError if it is not whole."""
    reader = VmaReader()
    reader.feed(stream)
    disks: dict[int, MemoryDisk] = {}
    sizes: dict[int, int] = {}
    while (event := reader.next_event()) is not None:
        header = reader.check.header
        if header is not None and not disks:
            sizes = {device.vma_dev_id: device.size_bytes for device in header.devices}
            disks = {index: MemoryDisk() for index in sizes}
            for index, disk in disks.items():
                # Not rounded to sectors: a wrong size is to be seen.
                disk.resize(sizes[index])
        if isinstance(event, DataRead):
            room_bytes = max(sizes[event.vma_dev_id] - event.disk_offset_bytes, 0)
            disks[event.vma_dev_id].write(event.disk_offset_bytes, event.data[:room_bytes])
    reader.finish()
    assert reader.check.header is not None
    return {
        device.name: disks[device.vma_dev_id].content() for device in reader.check.header.devices
    }
