"""Disks given by an absolute path or by QEMU's own address: no storage stands behind them.

Owns their description; they are never activated, allocated or removed here. Source: host
behaviour, sections 5.5 to 5.7.
"""

from __future__ import annotations

import asyncio
import json

from vzdump_qemu.errors import StorageError
from vzdump_qemu.node.images import (
    SIZE_TIMEOUT_S,
    is_block_device,
    probe_format,
    read_image_size,
)
from vzdump_qemu.node.storage_activation import LOOK_TIMEOUT_S, within
from vzdump_qemu.node.volume_places import exists
from vzdump_qemu.ports import CommandRunner, VolumeFacts

_IMG = "qemu-img"


async def describe_outside(path: str, *, commands: CommandRunner) -> VolumeFacts:
    """Facts of an absolute path; size 0 and no format if nothing is there.

    Raises StorageError if it is there and cannot be read.
    """
    size_bytes, image_format = 0, ""
    if await exists(path):
        try:
            image_format = await within(LOOK_TIMEOUT_S, lambda: probe_format(path))
        except TimeoutError:
            raise StorageError(f"'{path}' does not answer") from None
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


async def describe_address(address: str, *, volid: str, commands: CommandRunner) -> VolumeFacts:
    """Facts of a disk that QEMU reaches by itself; raw, whatever stands in it.

    Its size is 0 if it cannot be told now: a server that takes one client has the VM's QEMU for
    it, which knows the size itself.
    """
    return VolumeFacts(
        volid=volid,
        storage_id="",
        path=address,
        size_bytes=await _ask_size(address, commands),
        format="raw",
        is_block_device=False,
    )


async def _ask_size(address: str, commands: CommandRunner) -> int:
    program = commands.find(_IMG)
    if program is None:
        return 0
    try:
        async with asyncio.timeout(SIZE_TIMEOUT_S):
            argv = [program, "info", "--output=json", "-f", "raw", address]
            status, lines = await commands.run(argv)
        return int(json.loads("\n".join(lines))["virtual-size"]) if status == 0 else 0
    except (TimeoutError, ValueError, KeyError, TypeError):
        return 0
