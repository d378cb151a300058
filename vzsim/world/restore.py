"""What a VMA stream restores to, as plain bytes per device."""

from __future__ import annotations

from vzdump_qemu.formats.vma import DataRead, VmaReader


def restore_disks(stream: bytes) -> dict[str, bytearray]:
    """Decode a whole, plain VMA stream. Raises VmaError if it is not whole."""
    reader = VmaReader()
    reader.feed(stream)
    disks: dict[int, bytearray] = {}
    while (event := reader.next_event()) is not None:
        header = reader.check.header
        if header is not None and not disks:
            disks = {device.vma_dev_id: bytearray(device.size_bytes) for device in header.devices}
        if isinstance(event, DataRead):
            disk = disks[event.vma_dev_id]
            end = min(len(disk), event.disk_offset_bytes + len(event.data))
            disk[event.disk_offset_bytes : end] = event.data[: end - event.disk_offset_bytes]
    reader.finish()
    assert reader.check.header is not None
    return {device.name: disks[device.vma_dev_id] for device in reader.check.header.devices}
