"""Disks given by an absolute path: no storage stands behind them.

Owns their description; they are never activated, allocated or removed here. Source: host
behaviour, section 5.7.
"""

from __future__ import annotations

import os

from vzdump_qemu.errors import StorageError
from vzdump_qemu.node.images import is_block_device, probe_format, read_image_size
from vzdump_qemu.ports import CommandRunner, VolumeFacts


async def describe_outside(path: str, *, commands: CommandRunner) -> VolumeFacts:
    """Facts of an absolute path; size 0 and no format if nothing is there.

    Raises StorageError if it is there and cannot be read.
    """
    size_bytes, image_format = 0, ""
    if os.path.exists(path):
        try:
            image_format = probe_format(path)
        except OSError as error:
            raise StorageError(f"unable to read '{path}' - {error.strerror}") from error
        size_bytes = await read_image_size(path, image_format, commands=commands)
    return VolumeFacts(
        volid=path,
        storage_id="",
        path=path,
        size_bytes=size_bytes,
        format=image_format,
        is_block_device=is_block_device(path),
    )
