"""A plain client of a monitor or an agent, on a blocking socket: none of the tool's own code."""

from __future__ import annotations

import array
import json
import socket
from pathlib import Path
from typing import Any

_TIMEOUT_S = 20


class BlockingClient:
    """Holds its peer, a monitor or an agent, until it is closed."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_TIMEOUT_S)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rb")
        self.events: list[str] = []

    def line(self) -> bytes:
        """The next line as it came."""
        return self._file.readline()

    def negotiate(self) -> None:
        """What a monitor asks of its client before anything else."""
        assert self.line().endswith(b"}\r\n")
        self.ask("qmp_capabilities")

    def ask(self, name: str, fds: tuple[int, ...] = (), /, **arguments: Any) -> Any:
        """The reply's value, or the error object; events on the way are kept."""
        given = {key.replace("_", "-"): value for key, value in arguments.items()}
        message = json.dumps({"execute": name, "arguments": given, "id": 1}).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._socket.sendmsg([message], rights)
        while True:
            reply = json.loads(self.line().lstrip(b"\xff"))
            if "event" not in reply:
                return reply.get("return", reply.get("error"))
            self.events.append(reply["event"])

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_monitor(path: Path) -> BlockingClient:
    """A client of a monitor that takes commands."""
    client = BlockingClient(path)
    client.negotiate()
    return client
