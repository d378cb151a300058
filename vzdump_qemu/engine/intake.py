"""Opening the way into an archive, so that no unfinished file outlives the run."""

from __future__ import annotations

from vzdump_qemu.engine.context import EnginePorts
from vzdump_qemu.engine.undo import UndoStack
from vzdump_qemu.journal_ports import Reversal, ReversalKind
from vzdump_qemu.ports import ArchiveTarget, VmaIntake


async def open_noted_intake(
    ports: EnginePorts, target: ArchiveTarget, undo: UndoStack
) -> VmaIntake:
    """Open an intake whose discarding is registered; its temporary file is noted first."""
    opened: list[VmaIntake] = []

    async def discard() -> None:
        if opened:
            await opened[0].discard()
        elif target.temp_path:
            # Opening was given up half way, and taking the file back may have failed.
            await ports.store.remove_file(target.temp_path)

    names = (target.temp_path,) if target.temp_path else ()
    await undo.push(
        "discard the unfinished archive",
        discard,
        Reversal(kind=ReversalKind.REMOVE_FILE, names=names),
    )
    opened.append(await ports.store.open_intake(target))
    return opened[0]
