"""A plain QMP client for looking into a VM while a backup runs, and for writing as its guest."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any


class Monitor:
    """One short connection; use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Monitor:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(30)
        self._socket.connect(str(self._path))
        self._file = self._socket.makefile("rw", encoding="utf-8")
        self._file.readline()
        self.execute("qmp_capabilities")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def execute(self, command: str, **arguments: Any) -> Any:
        """The value that QEMU returns; events are passed over."""
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while "event" in (message := json.loads(self._file.readline())):
            continue
        assert "error" not in message, message
        return message["return"]

    def write_as_guest(self, device: str, offset_bytes: int, length_bytes: int) -> None:
        """Write a pattern through the guest's device."""
        words = f'qemu-io -d {device} "write -P 0x99 {offset_bytes} {length_bytes}"'
        told = self.execute("human-monitor-command", **{"command-line": words})
        assert told == "", told

    def node_names(self) -> set[str]:
        """Names of all block nodes."""
        return {node["node-name"] for node in self.execute("query-named-block-nodes", flat=True)}
