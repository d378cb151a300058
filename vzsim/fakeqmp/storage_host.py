"""What the block layer needs of its host beyond opening images: locks, NBD sockets, new images.

Owns the port and its in-memory and empty fillings. `nbd_server` fills it for a real process.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Protocol

from vzsim.fakeqmp.bitmaps import Bitmap
from vzsim.fakeqmp.disks import Disk, MemoryDisk
from vzsim.fakeqmp.locks import ImageLocks


class NbdExport(Protocol):
    """One disk offered over NBD."""

    @property
    def name(self) -> str: ...

    @property
    def disk(self) -> Disk: ...

    @property
    def writable(self) -> bool: ...

    @property
    def bitmaps(self) -> Sequence[Bitmap]: ...

    def client_came(self) -> None: ...

    def client_left(self) -> None: ...

    def write(self, offset_bytes: int, data: bytes) -> None:
        """Write as a client. Raises: OSError."""


class NbdDirectory(Protocol):
    """The exports of one server."""

    def find_export(self, name: str) -> NbdExport | None: ...

    def export_names(self) -> list[str]: ...


class NbdListener(Protocol):
    """A listening NBD server."""

    def drop_clients(self, name: str) -> None:
        """Close the connections to that export."""

    def close(self) -> None:
        """Stop listening and close every connection."""


class StorageHost(Protocol):
    """Images and sockets. Failures are OSError."""

    @property
    def locks(self) -> ImageLocks: ...

    def create_disk(self, path: str, size_bytes: int) -> None:
        """Make a raw image of zeros."""

    def stored_bitmaps(self, path: str) -> list[Bitmap]:
        """Persistent bitmaps of a qcow2 image."""

    def held_pieces(self, disk: Disk) -> set[int]:
        """Which pieces a just opened image holds itself."""

    def listen_nbd(self, path: str, directory: NbdDirectory) -> NbdListener: ...


class _SilentListener:
    def drop_clients(self, name: str) -> None:
        """Nobody is connected."""

    def close(self) -> None:
        """Nothing listens."""


class MemoryStorage:
    """In memory: exports are read by asking the directory, sockets do not exist.

    Attributes:
        bitmaps: persistent bitmaps by image path.
        missing_folders: paths of folders that do not exist.
    """

    def __init__(self, disks: dict[str, Disk] | None = None) -> None:
        self._disks = {} if disks is None else disks
        self._locks = ImageLocks()
        self.bitmaps: dict[str, list[Bitmap]] = {}
        self.missing_folders: set[str] = set()

    @property
    def locks(self) -> ImageLocks:
        return self._locks

    def create_disk(self, path: str, size_bytes: int) -> None:
        self._disks[path] = MemoryDisk(bytes(size_bytes))

    def stored_bitmaps(self, path: str) -> list[Bitmap]:
        return self.bitmaps.get(path, [])

    def held_pieces(self, disk: Disk) -> set[int]:
        return set()

    def listen_nbd(self, path: str, directory: NbdDirectory) -> NbdListener:
        if os.path.dirname(path) in self.missing_folders:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return _SilentListener()
