"""Events as a live display on a terminal: one line per VM, warnings and errors above.

Owns the columns and phases. `rich` is imported here and nowhere else, so that only a job on a
terminal pays for it. The log files hold every line all the same.
"""

from __future__ import annotations

from typing import TextIO

from rich.console import Console as TerminalConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from vzdump_qemu import events
from vzdump_qemu.cli.log_line import Level, LogLine
from vzdump_qemu.events import Event, ProgressLine
from vzdump_qemu.units import render_archive_size, render_bytes, render_duration

_PHASES: dict[type[Event], str] = {
    events.GuestStopping: "stopping the guest",
    events.GuestSuspending: "suspending the guest",
    events.QemuStarting: "starting QEMU",
    events.TpmAttaching: "attaching disks",
    events.FleecingAttaching: "attaching disks",
    events.FreezeIssued: "frozen",
    events.ThawIssued: "thawing",
    events.JobStartIssued: "starting",
    events.JobAccepted: "copying",
    events.TransferEnded: "proving",
    events.JobAborting: "undoing",
    events.ArchiveProved: "publishing",
    events.GuestRestarting: "restarting the guest",
    events.GuestResuming: "resuming the guest",
    events.QemuStopping: "stopping QEMU",
}
_LEVEL_STYLES = {Level.WARN: "yellow", Level.ERROR: "red"}


class LiveScreen:
    """Shows a job as it goes; a `Screen`.

    Args:
        stream: the terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._terminal = TerminalConsole(file=stream, highlight=False, markup=False, emoji=False)
        self._progress = Progress(
            TextColumn("VM {task.fields[vmid]}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[figures]}", markup=False),
            console=self._terminal,
        )
        self._line: TaskID | None = None
        self._is_up = False

    def show(self, event: Event, lines: tuple[LogLine, ...]) -> None:
        if not self._is_up:
            self._progress.start()
            self._is_up = True
        self._follow(event)
        for line in lines:
            style = _LEVEL_STYLES.get(line.level)
            if style is not None:
                self._terminal.print(Text(line.render(), style=style))

    def close(self, last_line: str) -> None:
        self._progress.stop()
        if last_line:
            self._terminal.print(Text(last_line))

    def _follow(self, event: Event) -> None:
        if isinstance(event, events.RunStarted):
            self._line = self._progress.add_task(
                "preparing", total=100, vmid=event.vmid, figures=""
            )
        if self._line is None:
            return
        phase = _PHASES.get(type(event))
        if phase is not None:
            self._progress.update(self._line, description=phase)
        match event:
            case events.ProgressMade():
                self._progress.update(
                    self._line, completed=event.line.percent, figures=_figures(event.line)
                )
            case events.FreezeWindowClosed():
                window = f"frozen for {event.freeze_window_s * 1000:.1f} ms"
                self._terminal.print(Text(f"VM {self._vmid()}: {window}"))
            case events.ArchivePublished():
                self._show_published(event.archive_path, event.size_bytes)
            case events.PbsBackupPublished():
                self._show_published(event.backup_path, event.size_bytes)
            case events.RunSucceeded():
                whole = f"done in {render_duration(event.duration_s)}"
                self._progress.update(
                    self._line, completed=100, description=f"{whole} ({event.consistency.value})"
                )
            case events.RunFailed():
                self._progress.update(self._line, description="failed")

    def _show_published(self, location: str, size_bytes: int) -> None:
        assert self._line is not None
        size = render_archive_size(size_bytes)
        self._progress.update(self._line, completed=100, figures=size)
        self._terminal.print(Text(location))

    def _vmid(self) -> int:
        tasks = {task.id: task for task in self._progress.tasks}
        assert self._line is not None
        return int(tasks[self._line].fields["vmid"])


def _figures(line: ProgressLine) -> str:
    """Amount, rate and time left; the rest is expected at the mean rate so far."""
    amount = f"{render_bytes(line.done_bytes)} of {render_bytes(line.target_bytes)}"
    rate = f"{render_bytes(max(line.read_bytes_per_s, 0.0))}/s"
    if not line.done_bytes:
        return f"{amount} {rate}"
    left_s = line.elapsed_s / line.done_bytes * (line.target_bytes - line.done_bytes)
    return f"{amount} {rate} ETA {render_duration(max(left_s, 0.0))}"
