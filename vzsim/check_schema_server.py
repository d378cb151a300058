"""A backup server's side of the session that `check_schema` has: a client library that never waits.

Owns no bytes: it agrees to everything at once, so that the machine goes through a whole backup on
a clock without an event loop. What reaches a server is tested where there is one.
"""

from __future__ import annotations

from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from vzsim.fakeqmp.outside import Timebase
from vzsim.fakeqmp.pbs_port import PbsRequest


class InstantLibrary:
    """`PbsLibrary` whose every call succeeds."""

    def __init__(self, timebase: Timebase) -> None:
        self._timebase = timebase

    def open(self, request: PbsRequest) -> InstantWriter:
        """As the port says."""
        return InstantWriter()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """As the port says; the work has nothing to wait for, so one step ends it."""

        def carry_out() -> None:
            with suppress(StopIteration):
                work.send(None)

        self._timebase.call_later(0.0, carry_out)


class InstantWriter:
    """`PbsWriter` to a server that has the previous backup a disk is based on."""

    async def connect(self) -> None:
        """As the port says."""

    async def register(self, device_id: str, size_bytes: int, *, base_csum: bytes) -> bool:
        """As the port says."""
        return bool(base_csum)

    async def add_config(self, file_name: str, content: bytes) -> None:
        """As the port says."""

    async def write(self, device_id: str, chunk_index: int, data: bytes | None) -> bool:
        """As the port says."""
        return data is None

    async def close_image(self, device_id: str) -> bytes:
        """As the port says."""
        return device_id.encode()

    async def finish(self) -> None:
        """As the port says."""

    def abort(self) -> None:
        """As the port says."""
