"""What a simulated QEMU needs of its client library for backup servers.

Owns the port alone: the machine decides what is backed up and when, and does no I/O. `pbs_client`
of `vzsim` fills it. Source: PVE interface, sections 2 and 9.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

# What a library with content calls itself; the text of a stub is empty.
LIBRARY_VERSION = "2.0.2 (vzsim)"


class PbsFailed(Exception):
    """The library could not do it; the text is what it says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PbsRequest:
    """Where a backup shall go and how, as ``backup`` was told.

    Attributes:
        repository: as a string; the library understands it.
        fingerprint: of the server's certificate; empty for none.
        key_file: content of the key file; None for a backup without a key.
        key_password: of the key file; None if none was given.
        master_pem: content of the master key's file; None for none.
        encrypt: with a key: whether data is encrypted, or the manifest only signed.
    """

    repository: str
    backup_id: str
    backup_time_s: int
    namespace: str = ""
    password: str = field(repr=False)
    fingerprint: str = ""
    key_file: bytes | None = field(default=None, repr=False)
    key_password: str | None = field(default=None, repr=False)
    master_pem: bytes | None = field(default=None, repr=False)
    compress: bool = True
    encrypt: bool = True


class PbsWriter(Protocol):
    """One backup on its way to a server. Every method but `abort` raises PbsFailed."""

    async def connect(self) -> None:
        """Log in, begin the backup and look at the previous one."""

    async def register(self, device_id: str, size_bytes: int, *, base_csum: bytes) -> bool:
        """Begin a disk; whether what is not written is taken from the previous backup.

        Args:
            base_csum: index checksum that the previous backup must have for that; empty for a
                disk of which everything will be written.
        """
        ...

    async def add_config(self, file_name: str, content: bytes) -> None:
        """Send a configuration file."""

    async def write(self, device_id: str, chunk_index: int, data: bytes | None) -> bool:
        """Save a chunk, whole zeroes if None; whether the server had it already."""
        ...

    async def close_image(self, device_id: str) -> bytes:
        """End a disk; its index checksum."""
        ...

    async def finish(self) -> None:
        """Make the backup final."""

    def abort(self) -> None:
        """End the connection: the server forgets a backup that is not final. Idempotent."""


class PbsLibrary(Protocol):
    """The library as a QEMU process has it loaded."""

    def open(self, request: PbsRequest) -> PbsWriter:
        """Check everything that needs no server. Raises: PbsFailed."""
        ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Have this done beside everything else, beginning soon."""


# Loaded when a backup first needs it.
LoadLibrary: TypeAlias = Callable[[], PbsLibrary]
