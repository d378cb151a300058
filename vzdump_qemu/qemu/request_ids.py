"""Numbers that tell our requests from those of other clients of the same socket.

Both the monitor and the agent may deliver a late reply to whoever is connected by then, so ids
must differ between clients, not only within one. Source: host behaviour, sections 6.2 and 6.5.
"""

from __future__ import annotations

import itertools


class RequestIds:
    """Hands out ids made of the process id and a counter; one instance per process.

    Args:
        process_id: distinguishes this process among those of the node.
    """

    def __init__(self, process_id: int) -> None:
        self._process_id = process_id
        self._counter = itertools.count(1)

    def next_qmp_prefix(self) -> str:
        """Prefix for all request ids of one monitor connection."""
        return f"{self._process_id}:{next(self._counter)}:"

    def next_sync_id(self) -> int:
        """Id of one agent sync; larger than all that this process handed out before."""
        return int(f"{self._process_id}0{next(self._counter):09d}")
