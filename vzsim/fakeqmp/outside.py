"""What a simulated machine needs from outside: time, identifiers, files and descriptors.

The machine itself touches none of these. `host` fills them for a real process; `memory` fills them
for a machine that lives in one process and in virtual time.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Protocol

from vzsim.fakeqmp.disks import Disk


class Timer(Protocol):
    """A call that was asked for and has not come yet."""

    def cancel(self) -> None: ...


class Timebase(Protocol):
    """Time as the machine sees it, virtual or real."""

    def now_s(self) -> float:
        """Seconds since the epoch."""

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call once, after all calls due earlier; 0 means as soon as the caller has returned."""


class Sink(Protocol):
    """Where a backup job writes; never blocks."""

    def write(self, data: memoryview) -> int:
        """Take some of the bytes and say how many; 0 means full for now.

        Raises: OSError, as the write would.
        """

    def when_writable(self, callback: Callable[[], None]) -> None:
        """Call once as soon as `write` would take something or fail."""

    def close(self) -> None: ...


class Host(Protocol):
    """Files, descriptors and identifiers. Failures are OSError."""

    def new_uuid(self) -> uuid.UUID: ...

    def read_file(self, path: str) -> bytes: ...

    def open_disk(self, path: str, *, format_name: str, read_only: bool) -> Disk:
        """Raises: OSError, or ConfigError for a kind of image that is not simulated."""

    def open_target(self, path: str) -> Sink:
        """Open a new file, a FIFO with a reader, or (``exec:``) the input of a command."""

    def remove_target(self, path: str) -> None:
        """Remove a file that `open_target` created."""

    def fd_sink(self, fd: int, *, keep_open: bool) -> Sink:
        """A sink over a descriptor that was passed; ``keep_open`` leaves the original open."""

    def close_fd(self, fd: int) -> None: ...

    def keep_disk(self, directory: str, device_id: str, disk: Disk) -> None:
        """Store a copy of the disk as it is now as DIRECTORY/DEVICE_ID.raw."""
