"""The storage port of a real process: image files, locks within the process, NBD sockets."""

from __future__ import annotations

import asyncio
import os

from vzsim.fakeqmp.bitmaps import Bitmap
from vzsim.fakeqmp.copy_before_write import PIECE_BYTES
from vzsim.fakeqmp.disks import Disk
from vzsim.fakeqmp.locks import ImageLocks
from vzsim.fakeqmp.nbd_server import NbdServer
from vzsim.fakeqmp.qcow2 import Qcow2Disk
from vzsim.fakeqmp.qcow2_bitmaps import read_bitmaps
from vzsim.fakeqmp.storage_host import NbdDirectory, NbdListener


class RealStorage:
    """Images and sockets of this process. Other processes' locks are not seen."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._locks = ImageLocks()

    @property
    def locks(self) -> ImageLocks:
        return self._locks

    def create_disk(self, path: str, size_bytes: int) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(fd, size_bytes)
        finally:
            os.close(fd)

    def stored_bitmaps(self, path: str) -> list[Bitmap]:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return read_bitmaps(lambda offset, length: os.pread(fd, length, offset))
        finally:
            os.close(fd)

    def held_pieces(self, disk: Disk) -> set[int]:
        return disk.held_pieces(PIECE_BYTES) if isinstance(disk, Qcow2Disk) else set()

    def listen_nbd(self, path: str, directory: NbdDirectory) -> NbdListener:
        return NbdServer(path, directory, self._loop)
