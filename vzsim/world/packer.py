"""Disks packed by a simulated tool: the `VmaPacker` port on simulated exports, images and pipes.

Reads what a QEMU of `fakeqmp` serves, in memory and in virtual time; sockets are paths in a table.
A reader loses its export when the server, the export or the process behind it goes.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass

from vzdump_qemu.disk_ports import DiskOrigin, TransferProgress
from vzdump_qemu.errors import BackupError, DiskReadError
from vzdump_qemu.formats.vma import ConfigBlob, VmaDevice, VmaWriter
from vzdump_qemu.ports import VmaIntake
from vzdump_qemu.units import MIB, SECTOR_BYTES
from vzsim.fakeqmp.disks import Disk
from vzsim.fakeqmp.nbd_session import bitmap_extents
from vzsim.fakeqmp.storage_host import MemoryStorage, NbdDirectory, NbdExport
from vzsim.world.clock import EPOCH_S
from vzsim.world.files import SimulatedFiles

VMA_CLUSTER_BYTES = 65536
READ_BYTES = 4 * VMA_CLUSTER_BYTES
_ZEROES = bytes(READ_BYTES)


class SimulatedSockets:
    """Listening NBD servers of a node, by the path of their socket, which is a file as well."""

    def __init__(self, files: SimulatedFiles) -> None:
        self._files = files
        self._servers: dict[str, SimulatedListener] = {}

    def listen(self, path: str, directory: NbdDirectory) -> SimulatedListener:
        """Raises: OSError if there is no directory for the socket."""
        if os.path.dirname(path) not in self._files.directories:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        self._files.create(path)
        listener = SimulatedListener(self, path, directory)
        self._servers[path] = listener
        return listener

    def connect(self, path: str, name: str) -> SimulatedClient:
        """Connect to an export. Raises: OSError."""
        listener = self._servers.get(path)
        export = listener.directory.find_export(name) if listener is not None else None
        if listener is None or export is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        client = SimulatedClient(export)
        export.client_came()
        listener.clients.append(client)
        return client

    def forget(self, path: str, *, keeps_socket: bool) -> None:
        """The server is gone; a process that was killed leaves its socket behind."""
        self._servers.pop(path, None)
        if path in self._files.files and not keeps_socket:
            self._files.unlink(path)


class SocketStorage(MemoryStorage):
    """What one QEMU process needs beyond its images."""

    def __init__(self, sockets: SimulatedSockets, disks: dict[str, Disk]) -> None:
        super().__init__(disks)
        self._sockets = sockets
        self._listeners: list[SimulatedListener] = []

    def listen_nbd(self, path: str, directory: NbdDirectory) -> SimulatedListener:
        listener = self._sockets.listen(path, directory)
        self._listeners.append(listener)
        return listener

    def end(self) -> None:
        """The process is gone, in whatever way."""
        for listener in self._listeners:
            listener.end()


class SimulatedListener:
    """One NBD server."""

    def __init__(self, sockets: SimulatedSockets, path: str, directory: NbdDirectory) -> None:
        self._sockets = sockets
        self._path = path
        self.directory = directory
        self.clients: list[SimulatedClient] = []
        self._is_over = False

    def drop_clients(self, name: str) -> None:
        """Clients of that export lose it."""
        for client in [each for each in self.clients if each.name == name]:
            client.close()
            self.clients.remove(client)

    def close(self) -> None:
        """Nobody is served any more, in order."""
        self._end(keeps_socket=False)

    def end(self) -> None:
        """The process behind it is gone. Idempotent."""
        self._end(keeps_socket=True)

    def _end(self, *, keeps_socket: bool) -> None:
        if self._is_over:
            return
        self._is_over = True
        for client in self.clients:
            client.close()
        self.clients.clear()
        self._sockets.forget(self._path, keeps_socket=keeps_socket)


class SimulatedClient:
    """One connection to one export."""

    def __init__(self, export: NbdExport) -> None:
        self._export: NbdExport | None = export
        self.name = export.name

    @property
    def size_bytes(self) -> int:
        """Size of the export."""
        return self._export.disk.size_bytes if self._export else 0

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Raises: OSError."""
        if self._export is None:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return bytes(self._export.disk.read(offset_bytes, length_bytes))

    def changed_parts(self, bitmap_name: str) -> list[tuple[int, int]]:
        """Offset and length of what a bitmap served with the export marks. Raises: OSError."""
        if self._export is None:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        for bitmap in self._export.bitmaps:
            if bitmap.name == bitmap_name:
                found, at = [], 0
                for length, flags in bitmap_extents(bitmap, 0, self.size_bytes):
                    if flags:
                        found.append((at, length))
                    at += length
                return found
        raise OSError(errno.EINVAL, f"no bitmap '{bitmap_name}'")

    def close(self) -> None:
        """Leave. Idempotent."""
        if self._export is not None:
            self._export.client_left()
            self._export = None


class _ImageReader:
    """A raw image that is read directly."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    @property
    def size_bytes(self) -> int:
        return self._disk.size_bytes

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        return bytes(self._disk.read(offset_bytes, length_bytes))

    def close(self) -> None:
        """Nothing is held open."""


@dataclass(slots=True, kw_only=True)
class PackerRules:
    """How fast the disks can be read, over all of them."""

    bytes_per_s: float = 4 * MIB


class SimulatedPacker:
    """The `VmaPacker` port."""

    def __init__(self, sockets: SimulatedSockets, images: dict[str, Disk]) -> None:
        self._sockets = sockets
        self._images = images
        self.rules = PackerRules()

    async def begin(
        self,
        origins: Sequence[DiskOrigin],
        intake: VmaIntake,
        *,
        uuid: str,
        configs: Sequence[tuple[str, bytes]],
        rate_limit_bytes_per_s: int,
    ) -> SimulatedTransfer:
        """Connect to every disk, then begin."""
        readers: list[SimulatedClient | _ImageReader] = []
        try:
            for origin in origins:
                readers.append(self._open(origin))
        except OSError as error:
            for reader in readers:
                reader.close()
            raise DiskReadError(f"unable to open disk '{origin.device_id}' - {error}") from error
        writer = VmaWriter(
            uuid=bytes.fromhex(uuid.replace("-", "")),
            ctime_s=int(EPOCH_S),
            configs=[ConfigBlob(name=name, data=data) for name, data in configs],
            devices=[
                VmaDevice(vma_dev_id=index, name=origin.device_id, size_bytes=origin.size_bytes)
                for index, origin in enumerate(origins, start=1)
            ],
        )
        bytes_per_s = self.rules.bytes_per_s
        if rate_limit_bytes_per_s:
            bytes_per_s = min(bytes_per_s, rate_limit_bytes_per_s)
        return SimulatedTransfer(origins, readers, intake, writer, bytes_per_s=bytes_per_s)

    async def check_readable(self, origins: Sequence[DiskOrigin]) -> None:
        """Read a little of each disk."""
        for origin in origins:
            try:
                reader = self._open(origin)
                try:
                    reader.read(0, SECTOR_BYTES)
                finally:
                    reader.close()
            except OSError as error:
                raise DiskReadError(f"unable to read disk {origin.device_id} - {error}") from error

    def open_disk(
        self, origin: DiskOrigin
    ) -> tuple[SimulatedClient | _ImageReader, list[tuple[int, int]] | None]:
        """A disk, with the parts that its bitmap marks, or None if it has none. Raises: OSError."""
        reader = self._open(origin)
        if not origin.bitmap_name or not isinstance(reader, SimulatedClient):
            return reader, None
        try:
            return reader, reader.changed_parts(origin.bitmap_name)
        except OSError:
            reader.close()
            raise

    def _open(self, origin: DiskOrigin) -> SimulatedClient | _ImageReader:
        if origin.nbd_socket:
            reader: SimulatedClient | _ImageReader = self._sockets.connect(
                origin.nbd_socket, origin.export_name
            )
        elif origin.file_path in self._images:
            reader = _ImageReader(self._images[origin.file_path])
        else:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), origin.file_path)
        if reader.size_bytes != origin.size_bytes:
            reader.close()
            raise OSError(errno.EINVAL, f"size is {reader.size_bytes}, not {origin.size_bytes}")
        return reader


class SimulatedTransfer:
    """The `DiskTransfer` port: one task that reads and writes in turn."""

    def __init__(
        self,
        origins: Sequence[DiskOrigin],
        readers: Sequence[SimulatedClient | _ImageReader],
        intake: VmaIntake,
        writer: VmaWriter,
        *,
        bytes_per_s: float,
    ) -> None:
        self._origins = origins
        self._readers = readers
        self._intake = intake
        self._writer = writer
        self._bytes_per_s = bytes_per_s
        self._failure: BackupError | None = None
        self._done_bytes = self._zero_bytes = 0
        self._task = asyncio.ensure_future(self._run())

    def progress(self) -> TransferProgress:
        """As the port says."""
        return TransferProgress(
            total_bytes=sum(origin.size_bytes for origin in self._origins),
            done_bytes=self._done_bytes,
            read_bytes=self._done_bytes,
            zero_bytes=self._zero_bytes,
        )

    def failure(self) -> BackupError | None:
        """As the port says."""
        return self._failure

    async def finish(self) -> None:
        """As the port says."""
        await asyncio.shield(self._task)
        if self._failure is not None:
            raise self._failure

    async def cancel(self) -> None:
        """As the port says."""
        self._task.cancel()
        await asyncio.wait([self._task])

    def abandon(self) -> None:
        """The process that held us is gone."""
        self._task.cancel()

    async def _run(self) -> None:
        try:
            await self._write([self._writer.header_bytes()])
            for index, origin in enumerate(self._origins):
                await self._move(index, origin)
            await self._write(self._writer.finish())
        except OSError as error:
            self._failure = DiskReadError(f"reading failed - {error.strerror or error}")
        finally:
            for reader in self._readers:
                reader.close()
            self._intake.close_write_end()

    async def _move(self, index: int, origin: DiskOrigin) -> None:
        for offset in range(0, origin.size_bytes, READ_BYTES):
            length = min(READ_BYTES, origin.size_bytes - offset)
            data = self._readers[index].read(offset, length)
            first_index = offset // VMA_CLUSTER_BYTES
            await self._write(self._writer.add_clusters(index + 1, first_index, data))
            self._done_bytes += length
            self._zero_bytes += length if data == _ZEROES[:length] else 0
            await asyncio.sleep(length / self._bytes_per_s)

    async def _write(self, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        for part in parts:
            await self._intake.write(bytes(part))
