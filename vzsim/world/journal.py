"""Journals of simulated runs: they outlive the tool, as files do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from vzdump_qemu.errors import VmLocked
from vzdump_qemu.ports import Reversal


@dataclass(slots=True)
class SimulatedJournal:
    """The `Journal` port; `owned` while a living run has it."""

    entries: dict[int, Reversal] = field(default_factory=dict)
    noted_count: int = 0
    owned: bool = False

    @property
    def open_entries(self) -> Sequence[tuple[int, Reversal]]:
        return tuple(sorted(self.entries.items()))

    async def note(self, reversal: Reversal) -> int:
        """Durable at once."""
        self.noted_count += 1
        self.entries[self.noted_count] = reversal
        return self.noted_count

    def strike(self, index: int) -> None:
        """Forget one entry."""
        self.entries.pop(index, None)


class SimulatedJournals:
    """The `Journals` port."""

    def __init__(self) -> None:
        self.journals: dict[int, SimulatedJournal] = {}

    @asynccontextmanager
    async def open(self, vmid: int) -> AsyncIterator[SimulatedJournal]:
        """Own one journal; forgotten on leaving if nothing is open."""
        journal = self.journals.setdefault(vmid, SimulatedJournal())
        if journal.owned:
            raise VmLocked(f"another run on VM {vmid} is alive")
        journal.owned = True
        try:
            yield journal
        finally:
            journal.owned = False
            if not journal.entries:
                del self.journals[vmid]

    def owner_died(self) -> None:
        """The kernel lets go of a dead process's locks."""
        for journal in self.journals.values():
            journal.owned = False

    async def list_vmids(self) -> Sequence[int]:
        """VMs with a journal."""
        return sorted(self.journals)
