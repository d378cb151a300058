"""Removing archives of VMs, each with its log and notes: the one place that does.

Owns what is never removed, whoever asks, and the order: the archive first, so that nothing which
stays has lost its notes, whatever fails or dies in between. Which archives go is
`plan.retention`'s. Source: host behaviour, sections 2.6 and 2.8.
"""

from __future__ import annotations

from collections.abc import Sequence

from vzdump_qemu import events
from vzdump_qemu.errors import TargetError
from vzdump_qemu.events import Emit
from vzdump_qemu.plan.names import notes_name, parse_standard_name, protection_name, side_log_name
from vzdump_qemu.ports import ArchiveStore

PRUNING_FAILED = "error pruning backups - check log"

_GUEST_TYPE = "qemu"


class ArchiveRemoval:
    """Removes archives from one directory.

    Args:
        storage_id: that the directory is of; empty for none.
    """

    def __init__(
        self, store: ArchiveStore, emit: Emit, *, directory: str, storage_id: str = ""
    ) -> None:
        self._store = store
        self._emit = emit
        self._directory = directory.rstrip("/")
        self._storage_id = storage_id

    async def remove_all(self, names: Sequence[str]) -> int:
        """Remove these, in this order; one that stays does not keep the others.

        Returns:
            How many are gone.
        """
        removed_count = 0
        for name in names:
            removed_count += await self._remove(name)
        return removed_count

    async def _remove(self, name: str) -> bool:
        emit = self._emit
        path = f"{self._directory}/{name}"
        emit(events.BackupRemoving(storage_id=self._storage_id, name=name, path=path))
        try:
            warnings = await self.remove(name)
        except TargetError as error:
            label = f"{self._storage_id}:backup/{name}" if self._storage_id else path
            emit(events.BackupRemovalFailed(name=label, text=str(error)))
            return False
        for text in warnings:
            emit(events.Warned(text=text))
        return True

    async def remove(self, name: str) -> tuple[str, ...]:
        """Remove an archive, then its log and notes, durably; a missing one is no error.

        Returns:
            A warning for each side file that stayed.
        Raises:
            TargetError: the name is not a standard one, the archive is protected or its
                protection cannot be told, or it could not be removed.
        """
        store, path = self._store, f"{self._directory}/{name}"
        standard = parse_standard_name(name)
        if standard is None or standard.guest_type != _GUEST_TYPE:
            raise TargetError(f"'{path}' is not named as an archive of a VM and is not removed")
        # Looked at right before: an operator may have protected it meanwhile.
        if await store.exists(protection_name(path)):
            raise TargetError(f"cannot remove protected archive '{path}'")
        await store.remove_file(path)
        warnings = []
        for side_path in (f"{self._directory}/{side_log_name(name)}", notes_name(path)):
            try:
                await store.remove_file(side_path)
            except TargetError as error:
                warnings.append(str(error))
        return tuple(warnings)
