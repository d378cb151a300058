"""The log file of each VM's run, and its copy beside the archive.

Owns those two files, and the log's text for a backup server; a file that cannot be written costs a
warning, never a backup. Which lines there are is left to the renderers. Source: host behaviour,
sections 1.7 (10, 32) and 1.12.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from typing import TextIO

from vzdump_qemu import events
from vzdump_qemu.cli.log_line import Level, LocalTime, LogLine, render_clock_time
from vzdump_qemu.errors import TargetError
from vzdump_qemu.events import Event
from vzdump_qemu.units import MIB

# What a server takes in one piece; only a script that prints without end makes a log so long.
LOG_BYTES_MAX = 16 * MIB


class RunLog:
    """Writes the lines of one run to its log, and copies that at the run's end."""

    def __init__(self, local_time: LocalTime) -> None:
        self._local_time = local_time
        self._file: TextIO | None = None
        self._log_path = ""
        self._side_log_path = ""
        self._is_whole = False

    @property
    def log_path(self) -> str:
        """Of the run; empty before it began."""
        return self._log_path

    def take(self, event: Event, lines: Iterable[LogLine], *, wall_s: float) -> tuple[str, ...]:
        """Take one event with its lines; return what went wrong, as texts of warnings."""
        problems: list[str] = []
        if isinstance(event, events.RunStarted):
            problems += self._open(event)
        problems += self._append(lines, wall_s=wall_s)
        if isinstance(event, events.RunClosed):
            problems += self._close()
        return tuple(problems)

    def read(self) -> bytes | None:
        """The log of the run once it was closed; None if not all of it could be written.

        Raises: TargetError if it cannot be read.
        """
        log_path = self._log_path
        if not self._is_whole:
            return None
        try:
            with open(log_path, "rb") as file:
                content = file.read(LOG_BYTES_MAX + 1)
        except OSError as error:
            reason = error.strerror or str(error)
            raise TargetError(f"unable to read log file '{log_path}' - {reason}") from error
        if len(content) > LOG_BYTES_MAX:
            raise TargetError(f"log file '{log_path}' is too long")
        return content

    def _open(self, event: events.RunStarted) -> list[str]:
        problems = self._close()
        self._is_whole = False
        self._log_path = event.log_path
        self._side_log_path = event.side_log_path
        try:
            os.makedirs(os.path.dirname(event.log_path) or ".", exist_ok=True)
            self._file = open(event.log_path, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
        except OSError as error:
            reason = error.strerror or str(error)
            problems.append(f"unable to create log file '{event.log_path}' - {reason}")
        if event.side_log_path:
            try:
                os.unlink(event.side_log_path)
            except FileNotFoundError:
                pass
            except OSError as error:
                problems.append(self._tell(event.side_log_path, error))
        return problems

    def _append(self, lines: Iterable[LogLine], *, wall_s: float) -> list[str]:
        if self._file is None:
            return []
        stamp = render_clock_time(self._local_time(wall_s))
        try:
            for line in lines:
                if line.level is not Level.PLAIN:  # those go to the terminal alone
                    self._file.write(f"{stamp} {line.render()}\n")
            # A log is read while the run goes on, and must survive our death.
            self._file.flush()
        except OSError as error:
            broken, self._file = self._file, None
            _close_quietly(broken)
            return [self._tell(self._log_path, error)]
        return []

    def _close(self) -> list[str]:
        if self._file is None:
            return []
        closing, self._file = self._file, None
        try:
            closing.close()
        except OSError as error:
            return [self._tell(self._log_path, error)]
        self._is_whole = True
        if not self._side_log_path:
            return []
        try:
            shutil.copyfile(self._log_path, self._side_log_path)
        except OSError as error:
            return [self._tell(self._side_log_path, error)]
        return []

    @staticmethod
    def _tell(path: str, error: OSError) -> str:
        return f"unable to write log file '{path}' - {error.strerror or error}"


def _close_quietly(file: TextIO) -> None:
    # What could not be flushed before fails once more here; it was told already.
    try:
        file.close()
    except OSError:
        pass
