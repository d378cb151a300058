"""Which VM of a job begins next, where several may be backed up at once; pure.

Owns the order and the limits: the lowest VMID that no limit holds back goes first. What a run is
and when it ends is left to `engine.batch_runs`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from vzdump_qemu.plan.options import StorageLimits


class BatchSchedule:
    """The VMs of one job on their way from waiting to begun to ended.

    Args:
        storage_ids: of each VM, the storages that its run reads or writes.
        parallel_max: so many runs at once at most.
        limits: so many that touch one storage.
    """

    def __init__(
        self,
        storage_ids: Mapping[int, frozenset[str]],
        *,
        parallel_max: int,
        limits: StorageLimits,
    ) -> None:
        self._storage_ids = storage_ids
        self._parallel_max = parallel_max
        self._limits = limits
        self._waiting = sorted(storage_ids)
        self._begun: set[int] = set()
        self._busy: Counter[str] = Counter()

    @property
    def waiting(self) -> tuple[int, ...]:
        """VMs that did not begin, ascending."""
        return tuple(self._waiting)

    def begin_next(self) -> int | None:
        """The VM that begins now; None if none may, or none is left."""
        if len(self._begun) >= self._parallel_max:
            return None
        for vmid in self._waiting:
            if all(self._has_room(storage_id) for storage_id in self._storage_ids[vmid]):
                self._waiting.remove(vmid)
                self._begun.add(vmid)
                self._busy.update(self._storage_ids[vmid])
                return vmid
        return None

    def end(self, vmid: int) -> None:
        """That VM's run is over: others have its room."""
        self._begun.remove(vmid)
        self._busy.subtract(self._storage_ids[vmid])

    def _has_room(self, storage_id: str) -> bool:
        limit = self._limits.of(storage_id)
        return limit is None or self._busy[storage_id] < limit
