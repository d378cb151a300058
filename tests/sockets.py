"""Places for sockets, and a listener that nobody can reach, for all that talks over them."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def short_place() -> Iterator[Path]:
    """A directory of its own, short enough for sockets below it whatever the test is called."""
    directory = Path(tempfile.mkdtemp(prefix="vzq"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def busy_listener(path: str) -> Iterator[None]:
    """Somebody listens there who never accepts and whose queue is full."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        waiting = []
        while True:
            client = socket.socket(socket.AF_UNIX)
            waiting.append(client)
            client.setblocking(False)
            try:
                client.connect(path)
            except BlockingIOError:
                break
        yield
        for client in waiting:
            client.close()
