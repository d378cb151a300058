"""Disk images as files: how large the guest sees them, and making new ones.

Owns the little that must be known of an image without QEMU; storages decide about names and
places. Sizes are virtual sizes in bytes, whole sectors. Source: host behaviour, 5.4 and 5.7.
"""

from __future__ import annotations

import json
import os
import stat
import struct
from collections.abc import Sequence
from contextlib import suppress

from vzdump_qemu.errors import StorageError
from vzdump_qemu.node.storage_activation import within
from vzdump_qemu.ports import CommandRunner
from vzdump_qemu.units import SECTOR_BYTES, round_up

# Magic and, at offset 24, the virtual size; both big-endian (QEMU's qcow2 specification).
_QCOW2_HEADER = struct.Struct(">4s20xQ")
_QCOW2_MAGIC = b"QFI\xfb"
_MAGICS = {_QCOW2_MAGIC: "qcow2", b"KDMV": "vmdk", b"QED\0": "qed"}
# The platform's own limit for the size of a volume.
SIZE_TIMEOUT_S = 5.0
_IMG = "qemu-img"
_IMG_HINT = "install qemu-utils, or use raw images"


def probe_format(path: str) -> str:
    """Format by the first bytes; only for images that no guest could have forged a header of.

    Raises OSError.
    """
    with open(path, "rb") as file:
        return _MAGICS.get(file.read(4), "raw")


def is_block_device(path: str) -> bool:
    """Whether the path names a block device; a missing one is none."""
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


async def read_image_size(path: str, image_format: str, *, commands: CommandRunner) -> int:
    """Virtual size of an image.

    Raises:
        StorageError: unreadable, not of that format, or of a format that nothing here knows.
    """
    if image_format in ("raw", "qcow2"):
        try:
            return await within(SIZE_TIMEOUT_S, lambda: _read_size(path, image_format))
        except TimeoutError:
            raise StorageError(f"unable to read '{path}' - it does not answer") from None
    argv = [_require_img(commands), "info", "--output=json", "-f", image_format, path]
    status, lines = await commands.run(argv)
    if status != 0:
        raise StorageError(f"unable to read '{path}' - {lines[-1] if lines else status}")
    try:
        return int(json.loads("\n".join(lines))["virtual-size"])
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"unable to tell the size of '{path}'") from error


async def create_image(
    path: str, *, size_bytes: int, image_format: str, commands: CommandRunner
) -> None:
    """Make an empty, sparse image with its directory. Raises StorageError; then none is left."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        try:
            os.ftruncate(fd, size_bytes if image_format == "raw" else 0)
        finally:
            os.close(fd)
    except OSError as error:
        raise StorageError(f"unable to create image '{path}' - {error.strerror}") from error
    if image_format == "raw":
        return
    words = ("create", "-q", "-f", image_format, path, str(size_bytes))
    await _make_image(path, words, commands)


async def convert_raw_image(
    source: str, path: str, *, image_format: str, commands: CommandRunner
) -> None:
    """Write a raw file's content to a new image of another format. Raises StorageError."""
    words = ("convert", "-q", "-f", "raw", "-O", image_format, source, path)
    await _make_image(path, words, commands)


async def _make_image(path: str, words: Sequence[str], commands: CommandRunner) -> None:
    try:
        status, lines = await commands.run([_require_img(commands), *words])
        if status != 0:
            reason = lines[-1] if lines else f"exit code {status}"
            raise StorageError(f"unable to create image '{path}' - {reason}")
    except BaseException:
        remove_image(path)
        raise


def remove_image(path: str) -> None:
    """Delete an image file; a missing one is no error. Raises StorageError."""
    try:
        with suppress(FileNotFoundError):
            os.unlink(path)
    except OSError as error:
        raise StorageError(f"unable to remove '{path}' - {error.strerror}") from error


def _read_size(path: str, image_format: str) -> int:
    try:
        with open(path, "rb") as file:
            if image_format == "raw":
                return round_up(file.seek(0, os.SEEK_END), SECTOR_BYTES)
            header = file.read(_QCOW2_HEADER.size)
    except OSError as error:
        raise StorageError(f"unable to read '{path}' - {error.strerror}") from error
    if len(header) < _QCOW2_HEADER.size or header[:4] != _QCOW2_MAGIC:
        raise StorageError(f"'{path}' is not a qcow2 image")
    size_bytes: int = _QCOW2_HEADER.unpack(header)[1]
    return size_bytes


def _require_img(commands: CommandRunner) -> str:
    program = commands.find(_IMG)
    if program is None:
        raise StorageError(f"unable to find command '{_IMG}'", hint=_IMG_HINT)
    return program
