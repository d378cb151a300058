"""Journals of simulated runs: they outlive the tool, as files do, and a power loss as synced ones.

A note is synced with everything before it. A strike is not, nor is the removal of a journal that
lists nothing any more: a power loss may bring back what they struck.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from vzdump_qemu.errors import VmLocked
from vzdump_qemu.journal_ports import Reversal


@dataclass(slots=True)
class SimulatedJournal:
    """The `Journal` port; `owned` while a living run has it."""

    entries: dict[int, Reversal] = field(default_factory=dict)
    noted_count: int = 0
    owned: bool = False
    _struck: dict[int, Reversal] = field(default_factory=dict)

    @property
    def open_entries(self) -> Sequence[tuple[int, Reversal]]:
        return tuple(sorted(self.entries.items()))

    async def note(self, reversal: Reversal) -> int:
        """Durable at once."""
        self.noted_count += 1
        self.entries[self.noted_count] = reversal
        self._struck.clear()
        return self.noted_count

    def strike(self, index: int) -> None:
        """Forget one entry."""
        reversal = self.entries.pop(index, None)
        if reversal is not None:
            self._struck[index] = reversal

    def lose_power(self, stream: random.Random) -> None:
        """The owner is gone; the last strikes may be lost."""
        self.owned = False
        kept_count = stream.randint(0, len(self._struck))
        self.entries.update(list(self._struck.items())[kept_count:])
        self._struck.clear()
        for index, reversal in list(self.entries.items()):
            if not reversal.kind.outlives_reboot:
                del self.entries[index]


class SimulatedJournals:
    """The `Journals` port."""

    def __init__(self) -> None:
        self.journals: dict[int, SimulatedJournal] = {}
        self._forgotten: dict[int, SimulatedJournal] = {}

    @asynccontextmanager
    async def open(self, vmid: int) -> AsyncIterator[SimulatedJournal]:
        """Own one journal; forgotten on leaving if nothing is open."""
        journal = self.journals.setdefault(vmid, SimulatedJournal())
        if journal.owned:
            raise VmLocked(f"another run on VM {vmid} is alive")
        journal.owned = True
        # The new one's name is synced, and with it the old one's removal.
        self._forgotten.pop(vmid, None)
        try:
            yield journal
        finally:
            journal.owned = False
            if not journal.entries and self.journals.get(vmid) is journal:
                self._forgotten[vmid] = self.journals.pop(vmid)

    def owner_died(self) -> None:
        """The kernel lets go of a dead process's locks."""
        for journal in self.journals.values():
            journal.owned = False

    def lose_power(self, stream: random.Random) -> None:
        """Owners are gone; what was not synced is lost or not."""
        for vmid, journal in sorted(self._forgotten.items()):
            if vmid not in self.journals and stream.random() < 0.5:
                self.journals[vmid] = journal
        self._forgotten.clear()
        for _, journal in sorted(self.journals.items()):
            journal.lose_power(stream)

    async def list_vmids(self) -> Sequence[int]:
        """VMs with a journal."""
        return sorted(self.journals)
