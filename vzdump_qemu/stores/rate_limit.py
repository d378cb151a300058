"""A limit of the reading rate over all disks of a transfer: a token bucket.

Owns the arithmetic; waiting is left to whoever is told to wait.
"""

from __future__ import annotations

import threading
from typing import Final

from vzdump_qemu.ports import Clock
from vzdump_qemu.units import NS_PER_S

# What was not used is kept for this long: enough to even out pieces, too little for a burst.
_BURST_NS: Final = NS_PER_S // 4


class RateLimit:
    """Tells each reader how long to wait before it reads. For any thread.

    Args:
        rate_bytes_per_s: 0 means unlimited.
    """

    def __init__(self, rate_bytes_per_s: int, clock: Clock) -> None:
        self._rate_bytes_per_s = rate_bytes_per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at_ns = clock.now_ns()

    def reserve(self, count_bytes: int) -> float:
        """Take so many bytes out of the bucket; seconds to wait before they may be read."""
        if not self._rate_bytes_per_s:
            return 0.0
        now_ns = self._clock.now_ns()
        with self._lock:
            begin_ns = max(self._free_at_ns, now_ns - _BURST_NS)
            self._free_at_ns = begin_ns + count_bytes * NS_PER_S // self._rate_bytes_per_s
        return max(begin_ns - now_ns, 0) / NS_PER_S
