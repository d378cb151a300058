"""An archive file as plain VMA bytes, whatever it was compressed with.

Owns opening, telling the compression by its magic, and decoding in a thread beside the reader of
the bytes. Damage, a cut and trailing data are VmaError; zero padding behind gzip and lzop files is
accepted as their own programs do. Memory is bounded whatever the file claims: zstd windows are
limited to 128 MiB (`zstd --long=27`), and no decoder gives more than one chunk at a time.
"""

from __future__ import annotations

import enum
import os
import queue
import stat
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, Protocol, assert_never

import zstandard

from vzdump_qemu.errors import VmaError
from vzdump_qemu.stores.lzop_container import LZOP_MAGIC, decode_lzop
from vzdump_qemu.stores.zstd_frames import ZSTD_MAGIC, ZstdFrameWalk

STDIN_PATH: Final = "-"
CHUNK_BYTES: Final = 1024 * 1024
ZSTD_WINDOW_BYTES_MAX: Final = 128 * 1024 * 1024
_COMPRESSED_CHUNK_BYTES: Final = 256 * 1024
_CHUNKS_AHEAD_COUNT: Final = 3
_GZIP_MAGIC: Final = b"\x1f\x8b"
_MAGIC_BYTES: Final = 9
_LIST_HINT: Final = "'vzdump-qemu list DIR' shows the archives of a directory or lab"


class Compression(enum.Enum):
    """What an archive file is wrapped in."""

    NONE = "none"
    ZSTD = "zstd"
    GZIP = "gzip"
    LZOP = "lzop"


class VmaSource:
    """Plain VMA bytes of one open archive; made by `open_vma_source`, used as a context."""

    def __init__(self, fd: int, *, name: str, owns_fd: bool) -> None:
        self._fd = fd
        self._name = name
        self._owns_fd = owns_fd
        self._head = b""
        self._feeder: _Feeder | None = None
        self._is_regular = stat.S_ISREG(os.fstat(fd).st_mode)
        while len(self._head) < _MAGIC_BYTES:
            piece = self._read_fd(_MAGIC_BYTES - len(self._head))
            if not piece:
                break
            self._head += piece
        self.compression = _compression_of(self._head)

    @property
    def name(self) -> str:
        """As given to `open_vma_source`."""
        return self._name

    def chunks(self) -> Iterator[memoryview]:
        """Yield the bytes from the start, once; each chunk is valid until the next is asked for.

        Raises:
            VmaError: the file cannot be read, or its compression is damaged.
        """
        fill: _Filler
        match self.compression:
            case Compression.NONE:
                fill = self._fill_plain
            case Compression.ZSTD:
                fill = self._zstd_filler()
            case Compression.GZIP:
                fill = _IteratorFiller(self._gzip_pieces()).fill
            case Compression.LZOP:
                fill = _IteratorFiller(decode_lzop(self._read_exactly)).fill
            case _ as never:
                assert_never(never)
        self._feeder = _Feeder(fill)
        yield from self._feeder.chunks()

    def close(self) -> None:
        """End the decoding thread and close the file. Idempotent."""
        if self._feeder is not None:
            # A pipe whose writer is silent could block the thread for ever; it holds nothing.
            self._feeder.stop(wait=self._is_regular)
            self._feeder = None
        if self._owns_fd:
            self._owns_fd = False
            os.close(self._fd)

    def __enter__(self) -> VmaSource:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _read_fd(self, count: int) -> bytes:
        try:
            return os.read(self._fd, count)
        except OSError as error:
            raise self._read_failed(error) from error

    def _read_failed(self, error: OSError) -> VmaError:
        return VmaError(f"can't read file {self._name} - {error.strerror}", hint=_LIST_HINT)

    def _read_some(self, count: int) -> bytes:
        """Up to ``count`` compressed bytes; none only at the end."""
        if self._head:
            head, self._head = self._head[:count], self._head[count:]
            return head
        return self._read_fd(count)

    def _read_exactly(self, count: int) -> bytes:
        """``count`` compressed bytes, fewer only at the end."""
        pieces = bytearray()
        while len(pieces) < count:
            piece = self._read_some(count - len(pieces))
            if not piece:
                break
            pieces += piece
        return bytes(pieces)

    def _fill_plain(self, buffer: memoryview) -> int:
        if self._head:
            count = len(self._head)
            buffer[:count], self._head = self._head, b""
            return count
        try:
            return os.readv(self._fd, [buffer])
        except OSError as error:
            raise self._read_failed(error) from error

    def _zstd_filler(self) -> Callable[[memoryview], int]:
        walk = ZstdFrameWalk()

        class Input:
            """What the decompressor reads from; raises what the walk finds."""

            def __init__(self, read_some: Callable[[int], bytes]) -> None:
                self._read_some = read_some

            def read(self, _wanted: int) -> bytes:
                data = self._read_some(_COMPRESSED_CHUNK_BYTES)
                walk.feed(data)
                return data

        decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)
        reader = decompressor.stream_reader(Input(self._read_some), read_across_frames=True)  # type: ignore[arg-type]

        def fill(buffer: memoryview) -> int:
            try:
                count = reader.readinto(buffer)
            except zstandard.ZstdError as error:
                text = str(error).removeprefix("zstd decompress error: ")
                raise VmaError(f"zstd file is damaged ({text})") from None
            if not count:
                walk.finish()
            return count

        return fill

    def _gzip_pieces(self) -> Iterator[bytes]:
        pending = self._read_some(_COMPRESSED_CHUNK_BYTES)
        while pending:
            member = zlib.decompressobj(wbits=31)
            while not member.eof:
                try:
                    yield member.decompress(pending, CHUNK_BYTES)
                except zlib.error as error:
                    raise VmaError(f"gzip file is damaged ({error})") from None
                pending = member.unconsumed_tail
                if not pending and not member.eof:
                    pending = self._read_some(_COMPRESSED_CHUNK_BYTES)
                    if not pending:
                        raise VmaError("gzip file is cut short")
            pending = member.unused_data
            while len(pending) < len(_GZIP_MAGIC):
                more = self._read_some(_COMPRESSED_CHUNK_BYTES)
                if not more:
                    break
                pending += more
            if not pending.startswith(_GZIP_MAGIC):
                self._check_padding(pending)
                return

    def _check_padding(self, pending: bytes) -> None:
        while pending:
            if pending.count(0) != len(pending):
                raise VmaError("gzip file is followed by other data")
            pending = self._read_some(_COMPRESSED_CHUNK_BYTES)


def open_vma_source(path: str) -> VmaSource:
    """Open an archive file, or standard input for ``-``; compression is told by content.

    Raises:
        VmaError: it cannot be opened or read.
    """
    if path == STDIN_PATH:
        return VmaSource(sys.stdin.fileno(), name="standard input", owns_fd=False)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise VmaError(
            f"can't open file {path} - {error.strerror}",
            hint=_LIST_HINT,
        ) from error
    try:
        return VmaSource(fd, name=path, owns_fd=True)
    except VmaError:
        os.close(fd)
        raise


def _compression_of(head: bytes) -> Compression:
    if head.startswith(ZSTD_MAGIC) or (head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):
        return Compression.ZSTD
    if head.startswith(_GZIP_MAGIC):
        return Compression.GZIP
    if head == LZOP_MAGIC:
        return Compression.LZOP
    return Compression.NONE


class _IteratorFiller:
    """Fills buffers from pieces of any size."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def fill(self, buffer: memoryview) -> int:
        filled = 0
        while filled < len(buffer):
            if not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._rest = memoryview(piece)
                continue
            part = self._rest[: len(buffer) - filled]
            buffer[filled : filled + len(part)] = part
            filled += len(part)
            self._rest = self._rest[len(part) :]
        return filled


class _Filler(Protocol):
    def __call__(self, buffer: memoryview, /) -> int: ...


class _Feeder:
    """Runs a filler in a thread, a few chunks ahead of who takes them."""

    def __init__(self, fill: _Filler) -> None:
        self._fill = fill
        self._free: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[tuple[memoryview, int] | Exception | None] = (
            queue.SimpleQueue()
        )
        for _ in range(_CHUNKS_AHEAD_COUNT):
            self._free.put(memoryview(bytearray(CHUNK_BYTES)))
        self._thread = threading.Thread(target=self._run, name="vma-decode", daemon=True)
        self._thread.start()

    def chunks(self) -> Iterator[memoryview]:
        while True:
            item = self._full.get()
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            buffer, count = item
            yield buffer[:count]
            self._free.put(buffer)

    def stop(self, *, wait: bool) -> None:
        self._free.put(None)
        if wait:
            self._thread.join()

    def _run(self) -> None:
        while True:
            buffer = self._free.get()
            if buffer is None:
                return
            try:
                count = self._fill(buffer)
            except (VmaError, OSError, MemoryError) as error:
                self._full.put(error)
                return
            self._full.put((buffer, count) if count else None)
            if not count:
                return
