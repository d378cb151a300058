"""The guest's own activity: writes to its disks, power-off, reset.

Writes are reproducible (seeded). They stop while the file systems are frozen and while the machine
does not run; one write at a time is under way, so a write held back by a backup holds the next.
"""

from __future__ import annotations

import random
from functools import cached_property

from vzsim.fakeqmp.machine import Machine

_WRITE_ALIGN_BYTES = 4096
# Asked again so often while frozen or stopped.
_IDLE_POLL_S = 0.02


class Guest:
    """Carries out the ``[guest]`` table of a script."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._rules = machine.script.guest
        self.write_count = 0
        self.failed_write_count = 0

    @cached_property
    def _random(self) -> random.Random:
        # Made when it is needed: that takes longer than the rest of a guest that writes nothing.
        return random.Random(self._rules.seed)

    def start(self) -> None:
        """Begin; the guest acts as soon as the machine runs."""
        call_later = self._machine.timebase.call_later
        if self._rules.writes_per_s > 0:
            call_later(1 / self._rules.writes_per_s, self._write)
        if self._rules.poweroff_after_s is not None:
            call_later(self._rules.poweroff_after_s, self._power_off)
        if self._rules.reset_after_s is not None:
            call_later(self._rules.reset_after_s, self._reset)

    def _power_off(self) -> None:
        if not self._machine.is_dead and self._machine.control.is_running:
            self._machine.control.guest_powers_off()

    def _reset(self) -> None:
        if not self._machine.is_dead and self._machine.control.is_running:
            self._machine.control.guest_resets()

    def _write(self) -> None:
        machine = self._machine
        if machine.is_dead:
            return
        is_frozen = machine.agent is not None and machine.agent.is_frozen
        disks = list(machine.block.disks())
        if is_frozen or not machine.control.is_running or not disks:
            machine.timebase.call_later(_IDLE_POLL_S, self._write)
            return
        name, disk = self._random.choice(disks)
        length = min(self._rules.write_bytes, disk.size_bytes)
        slot_count = (disk.size_bytes - length) // _WRITE_ALIGN_BYTES + 1
        offset = self._random.randrange(slot_count) * _WRITE_ALIGN_BYTES
        machine.requests.submit(name, offset, self._random.randbytes(length), self._written)

    def _written(self, errno_code: int) -> None:
        self.write_count += 1
        self.failed_write_count += errno_code != 0
        self._machine.timebase.call_later(1 / self._rules.writes_per_s, self._write)
