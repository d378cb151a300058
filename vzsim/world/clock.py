"""Time and identities of a simulated node, from the virtual loop and the seed.

The wall clock and the local one may jump; lengths, which come from the monotonic clock, never do.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from vzdump_qemu.units import NS_PER_S

# Any fixed instant would do; this one makes names in logs easy to recognise.
EPOCH_S = 1_767_323_045  # 2026-01-02 03:04:05 UTC
_EPOCH = datetime.fromtimestamp(0, UTC).replace(tzinfo=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reckoning:
    """How the node counted time from one instant until the next jump.

    Attributes:
        since_s: virtual instant from which it holds.
        skew_s: what the wall clock is ahead by.
        utc_offset_s: what the local time is ahead of UTC by.
    """

    since_s: float = 0.0
    skew_s: float = 0.0
    utc_offset_s: float = 0.0


class SimulatedClock:
    """The `Clock` port on virtual time.

    Attributes:
        reckonings: every one there was, oldest first; the last holds.
    """

    def __init__(self) -> None:
        self.reckonings = [Reckoning()]

    def now_ns(self) -> int:
        """Virtual nanoseconds since the start of the simulation; jumps leave it alone."""
        return round(asyncio.get_running_loop().time() * NS_PER_S)

    def wall_s(self) -> float:
        """Virtual seconds since the epoch, skew included."""
        return EPOCH_S + self.reckonings[-1].skew_s + asyncio.get_running_loop().time()

    def local_time(self, wall_s: float) -> datetime:
        """Local time of an instant; one before a change of the offset has the earlier offset."""
        chosen = self.reckonings[0]
        for reckoning in self.reckonings:
            if EPOCH_S + reckoning.skew_s + reckoning.since_s <= wall_s:
                chosen = reckoning
        return _EPOCH + timedelta(seconds=wall_s + chosen.utc_offset_s)

    async def sleep(self, seconds: float) -> None:
        """Wait in virtual time."""
        await asyncio.sleep(seconds)

    # -- jumps ---------------------------------------------------------------------------------

    def jump(self, seconds: float) -> None:
        """Somebody sets the wall clock, forward or back."""
        self._go_on(skew_s=self.reckonings[-1].skew_s + seconds)

    def change_utc_offset(self, seconds: float) -> None:
        """Summer time begins (3600) or ends (-3600): only the local time jumps."""
        self._go_on(utc_offset_s=self.reckonings[-1].utc_offset_s + seconds)

    def _go_on(self, **changes: float) -> None:
        now_s = asyncio.get_running_loop().time()
        self.reckonings.append(replace(self.reckonings[-1], since_s=now_s, **changes))

    def local_spans(self, began_s: float, ended_s: float) -> list[tuple[datetime, datetime]]:
        """All local times that a clock on the wall showed between two virtual instants."""
        spans = []
        ends_s = [reckoning.since_s for reckoning in self.reckonings[1:]] + [ended_s]
        for reckoning, until_s in zip(self.reckonings, ends_s, strict=True):
            first_s, last_s = max(began_s, reckoning.since_s), min(ended_s, until_s)
            if first_s <= last_s:
                ahead_s = EPOCH_S + reckoning.skew_s + reckoning.utc_offset_s
                first, last = (
                    _EPOCH + timedelta(seconds=ahead_s + instant_s)
                    for instant_s in (first_s, last_s)
                )
                spans.append((first, last))
        return spans


class SimulatedIds:
    """The `Ids` port on a seeded stream."""

    def __init__(self, stream: random.Random) -> None:
        self._stream = stream

    def uuid(self) -> str:
        """A fresh UUID of version 4's shape."""
        return str(uuid.UUID(int=self._stream.getrandbits(128), version=4))

    def process_id(self) -> int:
        """The simulated tool is always process 4242."""
        return 4242
