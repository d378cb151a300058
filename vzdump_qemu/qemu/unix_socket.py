"""Connecting to UNIX sockets whose server takes few clients, without blocking the event loop.

Owns the connect loop that the monitor, the agent and the event daemon share; what is spoken
afterwards is left to its callers. Source: host behaviour, sections 6.2 and 7.5.
"""

from __future__ import annotations

import asyncio
import os
import socket

# Longest path that fits `sockaddr_un` with its final zero byte.
SOCKET_PATH_BYTES_MAX = 107


class SocketBusy(OSError):
    """The listen queue stayed full: the server has a client and others wait before us."""

    def __init__(self, retry_count: int) -> None:
        super().__init__(f"timeout after {retry_count} retries")
        self.retry_count = retry_count


async def connect_unix_socket(
    path: str, *, retry_interval_s: float = 0.1, retry_count_max: int
) -> socket.socket:
    """Return a connected, non-blocking stream socket.

    A full listen queue answers EAGAIN at once for this family of sockets (there is nothing to
    wait for with poll), so the connect is tried again in intervals.

    Raises:
        SocketBusy: every try met a full queue or a signal.
        OSError: any other failure, e.g. no such file or no listener.
    Cancelled: nothing stays open.
    """
    for attempt_index in range(retry_count_max + 1):
        if attempt_index:
            await asyncio.sleep(retry_interval_s)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            connect_to_path(connection, path)
        except (BlockingIOError, InterruptedError):
            connection.close()
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise SocketBusy(retry_count_max)


def connect_to_path(connection: socket.socket, path: str) -> None:
    """Connect a socket to a path of any length. Raises OSError as its `connect` does."""
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        connection.connect(path)
        return
    # A longer path is reached through a descriptor of its directory.
    directory_fd = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{directory_fd}/{os.path.basename(path)}")
    finally:
        os.close(directory_fd)
