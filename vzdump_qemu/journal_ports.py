"""What a run has to put back, and where that is kept: the values and the port of its journal.

Owns the kinds of reversals and what is true of each; doing them is `engine.recovery`'s, keeping
them `stores.run_journal`'s. Source: architecture, section 6.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol


class ReversalKind(enum.Enum):
    """What can have to be put back, by this process or by another after its death."""

    THAW = "thaw"
    CANCEL_JOB = "cancel-job"
    CLOSE_FD = "close-fd"
    RESUME = "resume"
    START = "start"
    STOP_QEMU = "stop-qemu"
    DETACH = "detach"
    RELEASE_DISK = "release-disk"
    STOP_NBD = "stop-nbd"
    DROP_BITMAPS = "drop-bitmaps"
    FREE_FLEECING = "free-fleecing"
    REMOVE_FILE = "remove-file"
    REMOVE_TREE = "remove-tree"
    UNLOCK = "unlock"

    @property
    def outlives_reboot(self) -> bool:
        """Whether what it puts back is still there once the host has started anew.

        Everything else ended with the processes; a VM that runs then was started by its operator,
        and one that is off is left so.
        """
        return self in _OUTLIVING

    @property
    def waits_for(self) -> frozenset[ReversalKind]:
        """Kinds that come first: while one of them is open, this one is not done.

        The VM stays locked while its QEMU has something of ours, and an image stays while QEMU
        has it open. A guest that is frozen or stands still does not keep the lock: its operator
        must get at it.
        """
        match self:
            case ReversalKind.UNLOCK:
                return _IN_QEMU | {ReversalKind.FREE_FLEECING}
            case ReversalKind.FREE_FLEECING:
                return _IN_QEMU
            case _:
                return frozenset()


_OUTLIVING = frozenset(
    {
        ReversalKind.FREE_FLEECING,
        ReversalKind.REMOVE_FILE,
        ReversalKind.REMOVE_TREE,
        ReversalKind.UNLOCK,
    }
)
_IN_QEMU = frozenset(
    {
        ReversalKind.CANCEL_JOB,
        ReversalKind.CLOSE_FD,
        ReversalKind.STOP_QEMU,
        ReversalKind.DETACH,
        ReversalKind.RELEASE_DISK,
        ReversalKind.STOP_NBD,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reversal:
    """One act that puts something back; idempotent.

    Attributes:
        names: what it is about: a descriptor name, node names, volume ids or a path, by kind;
            empty where the VM itself is meant. CANCEL_JOB: the job's target, and what else tells
            it from others; RELEASE_DISK: number of the
            disk, QOM path of its device, its own node; STOP_NBD: socket path, then export ids;
            DROP_BITMAPS: the bitmaps' name, then the nodes.
    """

    kind: ReversalKind
    names: tuple[str, ...] = ()


class Journal(Protocol):
    """What one run on one VM would have to put back, kept where a killed run cannot lose it."""

    @property
    def open_entries(self) -> Sequence[tuple[int, Reversal]]:
        """Noted and not struck, oldest first: on opening, what a killed run left."""
        ...

    async def note(self, reversal: Reversal) -> int:
        """Keep a reversal durably, before the act it reverses; return its index."""
        ...

    def strike(self, index: int) -> None:
        """It was put back, or nothing is left of it. Cheap; losing it costs a second try."""
        ...


class Journals(Protocol):
    """The journals of a node's VMs."""

    def open(self, vmid: int) -> AbstractAsyncContextManager[Journal]:
        """Own one VM's journal, and have somebody watch over our death meanwhile.

        Raises VmLocked on entering if a living process owns it. On leaving, a journal without
        open entries is forgotten.
        """
        ...

    async def list_vmids(self) -> Sequence[int]:
        """VMs with a journal, ascending."""
        ...
