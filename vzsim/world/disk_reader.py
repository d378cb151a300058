"""What a simulated export or image is to a tool that reads disks piece by piece.

The `DiskReader` port in memory; nothing blocks. How fast disks are read is the reader's affair.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vzdump_qemu.disk_ports import DiskOrigin, Extent, ExtentKind
from vzdump_qemu.errors import DiskReadError
from vzsim.world.packer import SimulatedPacker


def list_extents(
    changed: Iterable[tuple[int, int]] | None, offset_bytes: int, end_bytes: int
) -> Sequence[Extent]:
    """What a range holds of changed pieces, each a begin and a length in order; None for all."""
    if changed is None:
        return [Extent(offset_bytes, end_bytes - offset_bytes, ExtentKind.DATA)]
    found: list[Extent] = []
    at = offset_bytes
    for begin, count in changed:
        begin, stop = max(begin, at), min(begin + count, end_bytes)
        if begin >= stop:
            continue
        if begin > at:
            found.append(Extent(at, begin - at, ExtentKind.UNCHANGED))
        found.append(Extent(begin, stop - begin, ExtentKind.DATA))
        at = stop
    if at < end_bytes:
        found.append(Extent(at, end_bytes - at, ExtentKind.UNCHANGED))
    return found


class SimulatedDiskReader:
    """One disk. Raises: DiskReadError if it cannot be opened."""

    def __init__(self, packer: SimulatedPacker, origin: DiskOrigin) -> None:
        self._name = origin.device_id
        try:
            self._reader, self._changed = packer.open_disk(origin)
        except OSError as error:
            raise DiskReadError(f"unable to open disk '{self._name}' - {error}") from error
        self.size_bytes = self._reader.size_bytes

    def extents(self, offset_bytes: int, length_bytes: int) -> Sequence[Extent]:
        """As the port says; everything changed that no bitmap is given for."""
        end = min(offset_bytes + length_bytes, self.size_bytes)
        return list_extents(self._changed, offset_bytes, end)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """As the port says."""
        try:
            buffer[:] = self._reader.read(offset_bytes, len(buffer))
        except OSError as error:
            text = error.strerror or str(error)
            raise DiskReadError(f"unable to read disk '{self._name}' - {text}") from error

    def interrupt(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """As the port says."""
        self._reader.close()
