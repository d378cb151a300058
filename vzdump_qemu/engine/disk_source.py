"""Where a reading data path gets the disks from: a Protocol and nothing else.

A source fixes a point in time and shows the disks as they were then; what is made of them is left
to the path that reads them. See architecture, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vzdump_qemu.disk_ports import DiskOrigin
from vzdump_qemu.engine.run_state import GuestLook
from vzdump_qemu.engine.undo import UndoStack
from vzdump_qemu.errors import BackupError
from vzdump_qemu.pbs_ports import DiskSize


class DiskSource(Protocol):
    """The disks of one run at one point in time."""

    async def prepare(self, undo: UndoStack) -> None:
        """Everything that can be done before the freeze; its reversal is registered first."""
        ...

    @property
    def disk_sizes(self) -> Sequence[DiskSize]:
        """Of all disks, in the order of `expose`; once it is prepared."""
        ...

    def refuse_reuse(self, device_id: str, reason: str) -> None:
        """All of a disk is to be read, as the target cannot build upon what it holds."""
        ...

    async def fix(self) -> None:
        """Fix one point in time of all disks; inside the freeze window."""
        ...

    async def guest_silent(self) -> GuestLook:
        """As `DataPath.guest_silent`."""
        ...

    async def expose(self) -> Sequence[DiskOrigin]:
        """Make the disks readable, after the window."""
        ...

    async def check(self) -> None:
        """Whether what is read still stands for the point in time.

        Raises: JobError, DiskReadError.
        """
        ...

    async def explain(self, error: BackupError) -> BackupError:
        """The first cause of a failed reading, as far as the source can tell; never raises."""
        ...

    async def release(self) -> None:
        """All was read: put everything back; failures of that are told, not raised.

        Raises: JobError, DiskReadError if what was read cannot be trusted after all.
        """
        ...

    async def keep_changes(self, backup_id: str) -> None:
        """The target has made this backup final: the next one may build upon it.

        What cannot be kept is told, not raised.
        """
        ...
