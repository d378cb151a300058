"""One NBD connection without its socket: bytes in, bytes out.

Speaks fixed newstyle negotiation, simple and structured replies, and block status for
``base:allocation`` and ``qemu:dirty-bitmap:NAME``. Errors of the disk become error replies.
Source: the public NBD protocol description.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum

from vzdump_qemu.units import MIB
from vzsim.fakeqmp.bitmaps import Bitmap
from vzsim.fakeqmp.copy_before_write import PIECE_BYTES
from vzsim.fakeqmp.disks import Disk
from vzsim.fakeqmp.storage_host import NbdDirectory, NbdExport

_GREETING = struct.pack(">QQH", 0x4E42444D41474943, 0x49484156454F5054, 0b11)
_OPTION_MAGIC = 0x49484156454F5054
_OPTION_REPLY_MAGIC = 0x3E889045565A9
_REQUEST = struct.Struct(">IHHQQI")
_REQUEST_MAGIC = 0x25609513
_SIMPLE_MAGIC = 0x67446698
_CHUNK_MAGIC = 0x668E33EF

_REP_ACK, _REP_SERVER, _REP_INFO, _REP_META = 1, 2, 3, 4
_REP_ERR_UNSUPPORTED, _REP_ERR_INVALID, _REP_ERR_UNKNOWN = (0x80000001, 0x80000003, 0x80000006)
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
_FLAG_HAS, _FLAG_READ_ONLY, _FLAG_FLUSH, _FLAG_FUA = 1, 2, 4, 8
_FLAG_MULTI_CONN = 1 << 8
_CMD_READ, _CMD_WRITE, _CMD_DISCONNECT, _CMD_FLUSH, _CMD_BLOCK_STATUS = 0, 1, 2, 3, 7
_CHUNK_DONE, _CHUNK_NONE, _CHUNK_DATA, _CHUNK_STATUS, _CHUNK_ERROR = 1, 0, 1, 5, 0x8001
_REQUEST_ONE_EXTENT = 1 << 3
_HOLE_AND_ZERO = 3
_OPTION_BYTES_MAX = 64 * 1024
_REQUEST_BYTES_MAX = 32 * MIB
_ALLOCATION = "base:allocation"
_DIRTY_PREFIX = "qemu:dirty-bitmap:"
_WIRE_ERRNOS = {errno.EPERM: 1, errno.EIO: 5, errno.ENOMEM: 12, errno.EINVAL: 22, errno.ENOSPC: 28}


def allocation_extents(disk: Disk, offset_bytes: int, length_bytes: int) -> list[tuple[int, int]]:
    """(length, flags) of a range: pieces that read as zero are holes. Raises: OSError."""
    found: list[tuple[int, int]] = []
    position, end = offset_bytes, offset_bytes + length_bytes
    while position < end:
        count = min((position // PIECE_BYTES + 1) * PIECE_BYTES, end) - position
        is_zero = not bytes(disk.read(position, count)).strip(b"\0")
        _append(found, count, _HOLE_AND_ZERO if is_zero else 0)
        position += count
    return found


def bitmap_extents(bitmap: Bitmap, offset_bytes: int, length_bytes: int) -> list[tuple[int, int]]:
    """(length, 1 where dirty) of a range."""
    found: list[tuple[int, int]] = []
    position, end = offset_bytes, offset_bytes + length_bytes
    step = bitmap.granularity_bytes
    while position < end:
        count = min((position // step + 1) * step, end) - position
        _append(found, count, int(bitmap.is_dirty_at(position)))
        position += count
    return found


def _append(extents: list[tuple[int, int]], length_bytes: int, flags: int) -> None:
    if extents and extents[-1][1] == flags:
        extents[-1] = (extents[-1][0] + length_bytes, flags)
    else:
        extents.append((length_bytes, flags))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """One request of the transmission phase."""

    flags: int
    command: int
    handle: int
    offset_bytes: int
    length_bytes: int
    payload: bytes


class _Option(IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class _Phase(Enum):
    FLAGS = "flags"
    OPTIONS = "options"
    TRANSMISSION = "transmission"
    CLOSED = "closed"


class NbdSession:
    """One connection.

    Args:
        write: takes bytes for the client.
    """

    def __init__(self, directory: NbdDirectory, write: Callable[[bytes], None]) -> None:
        self._directory = directory
        self._write = write
        self._buffer = bytearray()
        self._phase = _Phase.FLAGS
        self._no_zeroes = False
        self._structured = False
        self._contexts: dict[int, str] = {}
        self.export: NbdExport | None = None
        write(_GREETING)

    @property
    def is_over(self) -> bool:
        """The connection is to be closed once everything is written."""
        return self._phase is _Phase.CLOSED

    def feed(self, data: bytes) -> None:
        """Bytes of the client."""
        self._buffer += data
        while self._phase is not _Phase.CLOSED and self._step():
            continue

    def close(self) -> None:
        """The connection is gone."""
        self._phase = _Phase.CLOSED
        if self.export is not None:
            self.export.client_left()
            self.export = None

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _step(self) -> bool:
        """Carry out one message; False if it is not all there."""
        match self._phase:
            case _Phase.FLAGS:
                return self._take_flags()
            case _Phase.OPTIONS:
                return self._take_option()
            case _:
                return self._take_request()

    # -- negotiation ---------------------------------------------------------------------------

    def _take_flags(self) -> bool:
        if len(self._buffer) < 4:
            return False
        flags = int.from_bytes(self._take(4), "big")
        self._no_zeroes = bool(flags & 2)
        self._phase = _Phase.OPTIONS if flags & 1 else _Phase.CLOSED
        return True

    def _take_option(self) -> bool:
        if len(self._buffer) < 16:
            return False
        magic, option, length = struct.unpack_from(">QII", self._buffer)
        if magic != _OPTION_MAGIC or length > _OPTION_BYTES_MAX:
            self._phase = _Phase.CLOSED
            return True
        if len(self._buffer) < 16 + length:
            return False
        self._take(16)
        data = self._take(length)
        try:
            self._negotiate(option, data)
        except (struct.error, UnicodeDecodeError):
            self._reply(option, _REP_ERR_INVALID)
        return True

    def _negotiate(self, option: int, data: bytes) -> None:
        match option:
            case _Option.EXPORT_NAME:
                self._choose_by_name(data.decode())
            case _Option.ABORT:
                self._reply(option, _REP_ACK)
                self._phase = _Phase.CLOSED
            case _Option.LIST:
                for name in self._directory.export_names():
                    raw = name.encode()
                    self._reply(option, _REP_SERVER, struct.pack(">I", len(raw)) + raw)
                self._reply(option, _REP_ACK)
            case _Option.INFO | _Option.GO:
                self._inform(option, data)
            case _Option.STRUCTURED_REPLY:
                self._structured = True
                self._reply(option, _REP_ACK)
            case _Option.LIST_META_CONTEXT | _Option.SET_META_CONTEXT:
                self._offer_contexts(option, data)
            case _:
                self._reply(option, _REP_ERR_UNSUPPORTED)

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        header = struct.pack(">QIII", _OPTION_REPLY_MAGIC, option, kind, len(data))
        self._write(header + data)

    @staticmethod
    def _flags(export: NbdExport) -> int:
        flags = _FLAG_HAS | _FLAG_FLUSH | _FLAG_FUA
        return flags if export.writable else flags | _FLAG_READ_ONLY | _FLAG_MULTI_CONN

    def _begin(self, export: NbdExport) -> None:
        self.export = export
        export.client_came()
        self._phase = _Phase.TRANSMISSION

    def _choose_by_name(self, name: str) -> None:
        export = self._directory.find_export(name)
        if export is None:
            self._phase = _Phase.CLOSED
            return
        reply = struct.pack(">QH", export.disk.size_bytes, self._flags(export))
        self._write(reply if self._no_zeroes else reply + bytes(124))
        self._begin(export)

    def _inform(self, option: int, data: bytes) -> None:
        (length,) = struct.unpack_from(">I", data)
        export = self._directory.find_export(data[4 : 4 + length].decode())
        if export is None:
            self._reply(option, _REP_ERR_UNKNOWN)
            return
        size = export.disk.size_bytes
        info = struct.pack(">HQH", _INFO_EXPORT, size, self._flags(export))
        self._reply(option, _REP_INFO, info)
        sizes = struct.pack(">HIII", _INFO_BLOCK_SIZE, 1, PIECE_BYTES, _REQUEST_BYTES_MAX)
        self._reply(option, _REP_INFO, sizes)
        self._reply(option, _REP_ACK)
        if option == _Option.GO:
            self._begin(export)

    def _offer_contexts(self, option: int, data: bytes) -> None:
        (length,) = struct.unpack_from(">I", data)
        export = self._directory.find_export(data[4 : 4 + length].decode())
        if export is None:
            self._reply(option, _REP_ERR_UNKNOWN)
            return
        at = 4 + length
        (count,) = struct.unpack_from(">I", data, at)
        at += 4
        wanted = []
        for _ in range(count):
            (length,) = struct.unpack_from(">I", data, at)
            wanted.append(data[at + 4 : at + 4 + length].decode())
            at += 4 + length
        known = [_ALLOCATION, *(_DIRTY_PREFIX + bitmap.name for bitmap in export.bitmaps)]
        if option == _Option.LIST_META_CONTEXT and not wanted:
            chosen = known
        else:
            chosen = [
                name
                for name in known
                if any(name == want or (want[-1:] == ":" and name.startswith(want))
                       for want in wanted)
            ]  # fmt: skip
        if option == _Option.SET_META_CONTEXT:
            self._contexts = dict(enumerate(chosen, start=1))
        for index, name in enumerate(chosen, start=1):
            number = index if option == _Option.SET_META_CONTEXT else 0
            self._reply(option, _REP_META, struct.pack(">I", number) + name.encode())
        self._reply(option, _REP_ACK)

    # -- transmission --------------------------------------------------------------------------

    def _take_request(self) -> bool:
        if len(self._buffer) < _REQUEST.size:
            return False
        magic, flags, command, handle, offset, length = _REQUEST.unpack_from(self._buffer)
        if magic != _REQUEST_MAGIC or (command == _CMD_WRITE and length > _REQUEST_BYTES_MAX):
            self.close()
            return True
        payload_bytes = length if command == _CMD_WRITE else 0
        if len(self._buffer) < _REQUEST.size + payload_bytes:
            return False
        self._take(_REQUEST.size)
        request = _Request(
            flags=flags,
            command=command,
            handle=handle,
            offset_bytes=offset,
            length_bytes=length,
            payload=self._take(payload_bytes),
        )
        export = self.export
        if command == _CMD_DISCONNECT or export is None:
            self.close()
            return True
        try:
            self._obey(export, request)
        except OSError as error:
            self._fail(handle, _WIRE_ERRNOS.get(error.errno or errno.EIO, errno.EIO))
        return True

    def _obey(self, export: NbdExport, request: _Request) -> None:
        offset, length, handle = request.offset_bytes, request.length_bytes, request.handle
        if request.command == _CMD_FLUSH:
            self._succeed(handle)
            return
        if offset + length > export.disk.size_bytes:
            raise OSError(errno.EINVAL, "request outside of the export")
        if request.command == _CMD_READ and length <= _REQUEST_BYTES_MAX:
            data = bytes(export.disk.read(offset, length))
            if self._structured:
                self._chunk(handle, _CHUNK_DATA, struct.pack(">Q", offset) + data, is_last=True)
            else:
                self._write(struct.pack(">IIQ", _SIMPLE_MAGIC, 0, handle) + data)
        elif request.command == _CMD_WRITE:
            export.write(offset, request.payload)
            self._succeed(handle)
        elif request.command == _CMD_BLOCK_STATUS and self._contexts and length:
            self._tell_status(export, request)
        else:
            raise OSError(errno.EINVAL, "command not offered")

    def _tell_status(self, export: NbdExport, request: _Request) -> None:
        offset, length = request.offset_bytes, request.length_bytes
        for number, name in self._contexts.items():
            if name == _ALLOCATION:
                extents = allocation_extents(export.disk, offset, length)
            else:
                wanted = name.removeprefix(_DIRTY_PREFIX)
                bitmap = next(each for each in export.bitmaps if each.name == wanted)
                extents = bitmap_extents(bitmap, offset, length)
            if request.flags & _REQUEST_ONE_EXTENT:
                del extents[1:]
            body = struct.pack(">I", number)
            body += b"".join(struct.pack(">II", *extent) for extent in extents)
            is_last = number == len(self._contexts)
            self._chunk(request.handle, _CHUNK_STATUS, body, is_last=is_last)

    def _chunk(self, handle: int, kind: int, data: bytes, *, is_last: bool) -> None:
        flags = _CHUNK_DONE if is_last else 0
        self._write(struct.pack(">IHHQI", _CHUNK_MAGIC, flags, kind, handle, len(data)) + data)

    def _succeed(self, handle: int) -> None:
        if self._structured:
            self._chunk(handle, _CHUNK_NONE, b"", is_last=True)
        else:
            self._write(struct.pack(">IIQ", _SIMPLE_MAGIC, 0, handle))

    def _fail(self, handle: int, code: int) -> None:
        if self._structured:
            self._chunk(handle, _CHUNK_ERROR, struct.pack(">IH", code, 0), is_last=True)
        else:
            self._write(struct.pack(">IIQ", _SIMPLE_MAGIC, code, handle))
