"""A backup that a server holds as final, told and handed back.

Owns what the run's end looks like for every way that leads to a server.
"""

from __future__ import annotations

from vzdump_qemu import events
from vzdump_qemu.engine.context import EnginePorts, PublishedBackup
from vzdump_qemu.engine.undo import UndoHandle, UndoStack
from vzdump_qemu.formats.pbs import BackupRef
from vzdump_qemu.pbs_ports import PbsFinished


class FinalPbsBackup:
    """A backup that another program sent and that was shown to be whole; a `ProvedBackup`.

    Args:
        untold: of `tell_if_unpublished`.
    """

    def __init__(
        self, ports: EnginePorts, backup: BackupRef, finished: PbsFinished, untold: UndoHandle
    ) -> None:
        self._ports = ports
        self._backup = backup
        self._finished = finished
        self._untold = untold

    async def publish(self) -> PublishedBackup:
        """It has its name already: whoever sent it had the server make it final."""
        self._untold.dismiss()
        return tell_published(self._ports, self._backup, self._finished)


def tell_if_unpublished(ports: EnginePorts, backup: BackupRef, undo: UndoStack) -> UndoHandle:
    """From when another program had a backup made final, until it is told as such.

    A run that ends in between has failed, and its server holds a backup all the same.
    """

    async def tell() -> None:
        ports.emit(
            events.Warned(text=f"backup '{backup.path}' is final at its server all the same")
        )

    return undo.push_own(f"tell of backup '{backup.path}'", tell)


def tell_published(ports: EnginePorts, backup: BackupRef, finished: PbsFinished) -> PublishedBackup:
    """Say what has been reached."""
    for text in finished.warnings:
        ports.emit(events.Warned(text=text))
    ports.emit(
        events.PbsBackupPublished(
            backup_path=backup.path,
            size_bytes=finished.size_bytes,
            sent_bytes=finished.sent_bytes,
        )
    )
    return PublishedBackup(
        location=backup.path, size_bytes=finished.size_bytes, backup_id=finished.backup_id
    )
