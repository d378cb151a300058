"""Time and identities of a simulated node, from the virtual loop and the seed."""

from __future__ import annotations

import asyncio
import random
import uuid
from datetime import UTC, datetime, timedelta

from vzdump_qemu.units import NS_PER_S

# Any fixed instant would do; this one makes names in logs easy to recognise.
EPOCH_S = 1_767_323_045  # 2026-01-02 03:04:05 UTC


class SimulatedClock:
    """The `Clock` port on virtual time; `skew_s` makes the wall clock jump."""

    def __init__(self) -> None:
        self.skew_s = 0.0

    def now_ns(self) -> int:
        """Virtual nanoseconds since the start of the simulation."""
        return round(asyncio.get_running_loop().time() * NS_PER_S)

    def wall_s(self) -> float:
        """Virtual seconds since the epoch, skew included."""
        return EPOCH_S + self.skew_s + asyncio.get_running_loop().time()

    def local_time(self, wall_s: float) -> datetime:
        """The simulated node lives in UTC."""
        return datetime.fromtimestamp(0, UTC).replace(tzinfo=None) + timedelta(seconds=wall_s)

    async def sleep(self, seconds: float) -> None:
        """Wait in virtual time."""
        await asyncio.sleep(seconds)


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
