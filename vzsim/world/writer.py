"""A guest that writes to its disks while it is being backed up, and notices what that costs.

Owns the pace: fast while a backup begins, ever slower after, so that hours of simulated waiting
stay cheap. Each write knows when it was asked for and when it ended.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

from vzsim.world.machine import SimulatedMachine

_PACE_GROWTH = 1.2
_INTERVAL_S_MAX = 5.0
# Asked again so often while frozen or stopped.
_IDLE_POLL_S = 0.5
_WRITE_ALIGN_BYTES = 4096


@dataclass(slots=True)
class WriteRecord:
    """What the guest saw of its writes; times in seconds."""

    ended_count: int = 0
    failed_count: int = 0
    longest_s: float = 0.0
    pending_since_s: float | None = None


class GuestWriter:
    """One guest's writing, from `start` to `stop`."""

    def __init__(
        self, machine: SimulatedMachine, *, writes_per_s: float, stream: random.Random
    ) -> None:
        self._machine = machine
        self._first_interval_s = 1 / writes_per_s if writes_per_s > 0 else 0.0
        self._interval_s = self._first_interval_s
        self._stream = stream
        self._timer: asyncio.TimerHandle | None = None
        self.record = WriteRecord()

    def start(self) -> None:
        """Begin, at full pace."""
        if self._first_interval_s:
            self._interval_s = self._first_interval_s
            self._schedule(self._interval_s)

    def hurry(self) -> None:
        """Full pace again: something is going on."""
        if self._timer is not None:
            self.start()

    def stop(self) -> None:
        """No new writes."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self, delay_s: float) -> None:
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._write)

    def _write(self) -> None:
        machine = self._machine
        alive = machine.run_state is not None and machine.process.control.is_running
        frozen = alive and machine.process.agent is not None and machine.process.agent.is_frozen
        if not alive or frozen or self.record.pending_since_s is not None:
            self._schedule(_IDLE_POLL_S)
            return
        process = machine.process
        own = [(name, disk) for name, disk in process.block.disks() if name in machine.disk_names]
        if not own:
            return
        name, disk = self._stream.choice(own)
        length = min(_WRITE_ALIGN_BYTES, disk.size_bytes)
        slot_count = (disk.size_bytes - length) // _WRITE_ALIGN_BYTES + 1
        offset = self._stream.randrange(slot_count) * _WRITE_ALIGN_BYTES
        began_s = asyncio.get_running_loop().time()
        self.record.pending_since_s = began_s
        process.guest_write(name, offset, self._stream.randbytes(length), self._ended(began_s))
        self._interval_s = min(_INTERVAL_S_MAX, self._interval_s * _PACE_GROWTH)
        self._schedule(self._interval_s)

    def _ended(self, began_s: float) -> Callable[[int], None]:
        def ended(errno_code: int) -> None:
            lasted_s = asyncio.get_running_loop().time() - began_s
            record = self.record
            record.pending_since_s = None
            record.ended_count += 1
            record.failed_count += errno_code != 0
            record.longest_s = max(record.longest_s, lasted_s)

        return ended
