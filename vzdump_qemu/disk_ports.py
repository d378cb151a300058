"""What moves disks from where they are read to where they go, as blocking Protocols for threads.

Owns the values and the two ports between the readers (`qemu.nbd_disk`, `stores.raw_disk`), the
pump (`stores.disk_pump`) and the sinks (`stores.vma_sink`). The awaits that the engine sees of all
this are in `ports`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from vzdump_qemu.units import MIB

# What sinks are given at a time: the size of a chunk of the backup server, and a little over the
# 58 vma_clusters of a full VmaExtent.
PIECE_BYTES: Final = 4 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskOrigin:
    """Where one disk's bytes at the point in time are read from: an NBD export or a raw file.

    Attributes:
        device_id: its name in the archive.
        size_bytes: of the whole disk.
        nbd_socket: path of the UNIX socket that serves it; empty for a raw file.
        export_name: NBD export name.
        bitmap_name: dirty bitmap served with the export that marks what may have changed since
            the base of an incremental backup; empty means everything may have.
        file_path: raw image or block device; empty for an NBD export.
    """

    device_id: str
    size_bytes: int
    nbd_socket: str = ""
    export_name: str = ""
    bitmap_name: str = ""
    file_path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferProgress:
    """How far a transfer is; all amounts in bytes, over all disks.

    Attributes:
        done_bytes: of `total_bytes`, dealt with in any way.
        read_bytes: read from the disks.
        zero_bytes: found or known to be zero.
        reused_bytes: known to be unchanged and not read.
    """

    total_bytes: int
    done_bytes: int
    read_bytes: int
    zero_bytes: int
    reused_bytes: int = 0


class ExtentKind(enum.Enum):
    """What is known of a part of a disk without reading it."""

    DATA = "data"
    ZERO = "zero"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Extent:
    """A part of a disk of one kind.

    Attributes:
        offset_bytes, length_bytes: place and length on the disk; never empty.
        kind: DATA may still turn out to be zero. UNCHANGED is the same as at the base of an
            incremental backup, whatever it holds.
    """

    offset_bytes: int
    length_bytes: int
    kind: ExtentKind

    @property
    def end_bytes(self) -> int:
        return self.offset_bytes + self.length_bytes


class DiskReader(Protocol):
    """One disk at its point in time, read by any number of threads at once."""

    @property
    def size_bytes(self) -> int: ...

    def extents(self, offset_bytes: int, length_bytes: int) -> Sequence[Extent]:
        """What lies there: gapless from the offset on, for the whole range or a first part of it.

        Args:
            length_bytes: over 0; the range ends at the disk's end at the latest.
        Raises:
            DiskReadError: it could not be told, or not in time.
        """
        ...

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill a writable buffer of bytes.

        Raises:
            DiskReadError: the disk could not be read, or not in time; the buffer's content is
                then undefined.
        """
        ...

    def interrupt(self) -> None:
        """Let calls that wait end with DiskReadError soon, and later ones at once. Idempotent."""
        ...

    def close(self) -> None:
        """Let go of the disk; no other call may be under way. Idempotent."""
        ...


class DiskSink(Protocol):
    """Takes disks in pieces, from any number of threads at once and in any order.

    A piece begins at a multiple of `PIECE_BYTES` and ends at one or at the end of its disk. Each
    part of each disk is put once, in one of the three ways.
    """

    def put(self, disk_index: int, offset_bytes: int, data: memoryview) -> int:
        """Take one piece, at most `PIECE_BYTES`; the buffer is the caller's again on return.

        Returns:
            How much of it was found to be zero, in bytes.
        Raises:
            BackupError: it could not be taken.
        """
        ...

    def put_zeroes(self, disk_index: int, offset_bytes: int, length_bytes: int) -> None:
        """Take any number of adjacent pieces of zeroes. Raises as `put`."""
        ...

    def put_unchanged(self, disk_index: int, offset_bytes: int, length_bytes: int) -> None:
        """Take any number of adjacent pieces that are as in the base. Raises as `put`."""
        ...

    def finish(self) -> None:
        """Everything was put, by calls that returned. Raises as `put`."""
        ...

    def interrupt(self) -> None:
        """Take nothing more: calls that wait end with an error soon. Idempotent."""
        ...

    def close(self) -> None:
        """Let go of the target, finished or not. Idempotent."""
        ...
