"""The task log of a PVE node: what the platform shows of a job, with its verdict last.

Owns that file; a file that cannot be written costs nothing but itself. Source: host behaviour,
section 1.2.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from typing import TextIO

from vzdump_qemu.cli.console import LineScreen
from vzdump_qemu.cli.log_line import LogLine
from vzdump_qemu.events import Event
from vzdump_qemu.node.layout import NodeLayout
from vzdump_qemu.node.upid import parse_upid

_FILE_MODE = 0o640
# Whom the platform's own server runs as.
_OWNER = "www-data"


class TaskLog:
    """Writes every line of a job, that of the verdict last; a `Screen`.

    Lines that come before `begin` are kept for it.

    Args:
        names_vms: see `LineScreen`.
    """

    def __init__(self, *, names_vms: bool) -> None:
        self._names_vms = names_vms
        self._early: list[tuple[Event, tuple[LogLine, ...], int | None]] = []
        self._file: TextIO | None = None
        self._screen: LineScreen | None = None

    def begin(self, layout: NodeLayout, upid: str) -> None:
        """Have the file, if the node keeps task logs at all."""
        early, self._early = self._early, []
        path = task_log_path(layout, upid)
        if not path or not os.path.isdir(layout.task_log_directory):
            return
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, _FILE_MODE)
        except OSError:
            return
        self._file = open(fd, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
        with suppress(OSError, LookupError):
            shutil.chown(path, _OWNER, _OWNER)
        self._screen = LineScreen(self._file, names_vms=self._names_vms)
        for event, lines, vmid in early:
            self.show(event, lines, vmid)

    def show(self, event: Event, lines: tuple[LogLine, ...], vmid: int | None = None) -> None:
        if self._screen is None:
            self._early.append((event, lines, vmid))
            return
        # Nobody is to lose a backup for this file.
        with suppress(OSError):
            self._screen.show(event, lines, vmid)

    def close(self, last_line: str) -> None:
        if self._screen is None or self._file is None:
            return
        with suppress(OSError):
            self._screen.close(last_line)
        with suppress(OSError):
            self._file.close()
        self._screen = None


def task_log_path(layout: NodeLayout, upid: str) -> str:
    """Where the log of that task lies; empty for what is no UPID."""
    parsed = parse_upid(upid)
    if parsed is None:
        return ""
    return f"{layout.task_log_directory}/{parsed.started_wall_s & 0xF:X}/{upid}"
