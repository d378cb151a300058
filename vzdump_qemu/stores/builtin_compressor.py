"""A filter that compresses standard input to standard output like ``zstd`` or ``gzip``.

Owns: the stand-in for a host that lacks these programs; run as
``python -m vzdump_qemu.stores.builtin_compressor PROGRAM [ARGUMENT…]``. Leaves the choice of it
to `vzdump_qemu.stores.archive_directory`. It takes the arguments of host behaviour 2.9: levels
and ``--threads=N`` count, all others (``--rsyncable``) have no meaning for the content and are
ignored. Both formats carry a checksum of the content, as the programs' own output does.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Sequence
from typing import Protocol

import zstandard

PROGRAMS = frozenset({"zstd", "gzip"})
_READ_BYTES = 1024 * 1024
_ZSTD_LEVEL = 3
_ZSTD_LEVEL_MAX = 19
_GZIP_LEVEL = 6
_GZIP_LEVEL_MAX = 9
# zlib: 32 KiB window, and 16 more to ask for the gzip wrapper with its CRC-32.
_GZIP_WINDOW_BITS = 31
_THREADS = "--threads="


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def _level(arguments: Sequence[str], *, default: int, level_max: int) -> int:
    level = default
    for argument in arguments:
        if argument[:1] == "-" and argument[1:].isdecimal():
            level = min(max(int(argument[1:]), 1), level_max)
    return level


def _thread_count(arguments: Sequence[str]) -> int:
    # The program's 0 means one per processor, which this library calls -1.
    for argument in arguments:
        number = argument.removeprefix(_THREADS)
        if argument.startswith(_THREADS) and number.isdecimal():
            return int(number) or -1
    return 0


def open_compressor(program: str, arguments: Sequence[str]) -> _Compressor:
    """Make a streaming compressor for one of `PROGRAMS`.

    Raises:
        ValueError: not one of them.
    """
    if program == "zstd":
        level = _level(arguments, default=_ZSTD_LEVEL, level_max=_ZSTD_LEVEL_MAX)
        return zstandard.ZstdCompressor(
            level=level, threads=_thread_count(arguments), write_checksum=True
        ).compressobj()
    if program == "gzip":
        level = _level(arguments, default=_GZIP_LEVEL, level_max=_GZIP_LEVEL_MAX)
        return zlib.compressobj(level, zlib.DEFLATED, _GZIP_WINDOW_BITS)
    raise ValueError(f"unknown compressor '{program}'")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def compress_stream(compressor: _Compressor, *, source_fd: int, target_fd: int) -> None:
    """Pass everything from one descriptor to the other. Raises OSError."""
    while data := os.read(source_fd, _READ_BYTES):
        _write_all(target_fd, compressor.compress(data))
    _write_all(target_fd, compressor.flush())


def main(argv: Sequence[str]) -> int:
    """Run the filter; return the exit status, 0 only if all was written."""
    if not argv:
        print("usage: builtin_compressor zstd|gzip [ARGUMENT...]", file=sys.stderr)
        return 2
    try:
        compressor = open_compressor(argv[0], argv[1:])
        compress_stream(compressor, source_fd=0, target_fd=1)
    except (OSError, ValueError, zlib.error, zstandard.ZstdError) as error:
        print(f"{argv[0]}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
