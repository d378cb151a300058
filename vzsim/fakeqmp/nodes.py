"""Block nodes and backends as values: what hangs on what, and the way of a write through them.

The layer that names and opens them is `block`, their replies are `block_replies`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vzsim.fakeqmp.bitmaps import Bitmap
from vzsim.fakeqmp.copy_before_write import CopyBeforeWrite
from vzsim.fakeqmp.disks import Disk


@dataclass(slots=True, kw_only=True, eq=False)
class Node:
    """One block node with its file below; `disk` is None where there is no medium.

    Attributes:
        parents: nodes and jobs that use this one.
        roots: devices and exports on top of it.
        below: the node that a filter passes its requests to.
        backing: the node that an overlay is based on.
        guards: filters that copy old bytes away before a write goes on.
        filter_node: the node of a job that sits on top, whatever names this one.
    """

    name: str
    file_name: str
    driver: str
    path: str
    disk: Disk | None
    read_only: bool = False
    is_direct: bool = False
    file_is_direct: bool = False
    force_share: bool = False
    parents: set[str] = field(default_factory=set)
    roots: set[str] = field(default_factory=set)
    below: Node | None = None
    owns_below: bool = False
    backing: Node | None = None
    guards: list[CopyBeforeWrite] = field(default_factory=list)
    bitmaps: dict[str, Bitmap] = field(default_factory=dict)
    filter_node: Node | None = None

    @property
    def source(self) -> Node:
        """The node whose bytes a backup takes: a throttle filter is looked through."""
        return self.below if self.driver == "throttle" and self.below else self

    @property
    def top(self) -> Node:
        """The filter that a job put on this node, else the node."""
        return self.filter_node or self

    @property
    def size_bytes(self) -> int:
        """Size of the disk; 0 without medium."""
        return self.disk.size_bytes if self.disk else 0

    def write(self, offset_bytes: int, data: bytes) -> None:
        """A write from above. Raises: OSError."""
        for guard in self.guards:
            guard.before_write(offset_bytes, len(data))
        if self.below is not None:
            self.below.write(offset_bytes, data)
        elif self.disk is not None:
            self.disk.write(offset_bytes, data)
        if self.bitmaps:
            self.note_write(offset_bytes, len(data))

    def note_write(self, offset_bytes: int, length_bytes: int) -> None:
        """Mark a write in the bitmaps that record."""
        for bitmap in self.bitmaps.values():
            bitmap.note(offset_bytes, length_bytes)


@dataclass(slots=True, kw_only=True)
class Backend:
    """One block backend; `device_id` is empty for a device that uses a node directly."""

    device_id: str
    node: Node | None
    qdev: str = ""
    qdev_kind: str = "scsi-hd"
    removable: bool = False
    io_status: str = "ok"

    @property
    def name(self) -> str:
        """What names this disk in commands: its id, else its node."""
        return self.device_id or (self.node.name if self.node else "")


class EmptyDrive(Exception):
    """A backup's device list names a drive without a medium."""
