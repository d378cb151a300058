"""The handle that keeps the node's event daemon from ending QEMU under a backup.

Owns one connection per backup; without it a guest that powers itself off takes QEMU, and the
backup, with it. Source: host behaviour, section 7.5.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from vzdump_qemu.errors import PowerError
from vzdump_qemu.qemu.unix_socket import connect_unix_socket

_RETRY_INTERVAL_S = 0.025
_RETRY_COUNT_MAX = 5
_SEND_TIMEOUT_S = 5.0


@asynccontextmanager
async def hold_event_daemon(path: str, *, vmid: int) -> AsyncIterator[None]:
    """Hold the handle; where no daemon runs, go on without.

    Raises PowerError on entering if the daemon is there and gives no handle.
    """
    if not os.path.exists(path):
        yield
        return
    with await _connect(path, vmid=vmid):
        yield


async def _connect(path: str, *, vmid: int) -> socket.socket:
    message = json.dumps({"vzdump": {"vmid": str(vmid)}}, separators=(",", ":")).encode()
    try:
        stream = await connect_unix_socket(
            path, retry_interval_s=_RETRY_INTERVAL_S, retry_count_max=_RETRY_COUNT_MAX
        )
        try:
            async with asyncio.timeout(_SEND_TIMEOUT_S):
                await asyncio.get_running_loop().sock_sendall(stream, message)
        except BaseException:
            stream.close()
            raise
    except OSError as error:
        reason = error.strerror or error
        raise PowerError(
            f"unable to connect to qmeventd socket (vmid: {vmid}) - {reason}"
        ) from error
    return stream
