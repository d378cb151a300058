"""Events as a live display on a terminal: a line per running VM, all that ended above.

Owns the phases and what scrolls up: one line for each VM that is done, warnings and errors, the
verdict. How a VM's line fits the width is `live_line`'s. `rich` is imported here and nowhere
else, so that only a job on a terminal pays for it. The log files hold every line all the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TextIO

from rich.console import Console as TerminalConsole
from rich.live import Live
from rich.text import Text

from vzdump_qemu import events
from vzdump_qemu.cli.live_line import VmLine, render_done, render_lines
from vzdump_qemu.cli.log_line import Level, LogLine
from vzdump_qemu.cli.terminal import printable
from vzdump_qemu.events import Event
from vzdump_qemu.units import render_archive_size, render_duration

_PHASES: dict[type[Event], str] = {
    events.GuestStopping: "stopping guest",
    events.GuestSuspending: "suspending guest",
    events.QemuStarting: "starting QEMU",
    events.TpmAttaching: "attaching disks",
    events.FleecingAttaching: "attaching disks",
    events.FreezeIssued: "freezing",
    events.JobStartIssued: "starting",
    events.ThawIssued: "thawing",
    events.JobAccepted: "copying",
    events.ServerFinishing: "server checks",
    events.TransferEnded: "proving",
    events.JobAborting: "undoing",
    events.ArchiveProved: "publishing",
    events.PruneStarted: "pruning",
    events.ServerPruning: "pruning",
    events.GuestRestarting: "restarting guest",
    events.GuestResuming: "resuming guest",
    events.QemuStopping: "stopping QEMU",
}
_LEVEL_STYLES = {Level.WARN: "yellow", Level.ERROR: "red"}
# What no line shows as a phase, because it is of no VM: a wait may last for hours.
_TOLD = (events.GlobalLockAwaited, events.GlobalLockTaken, events.ExternalVmsSkipped)
_FRAMES_PER_S = 4
# Room for the ^C that a terminal echoes behind the last line: it must not wrap.
_MARGIN_COLUMNS = 3


class _Terminal(TerminalConsole):
    """A console that leaves the cursor visible: who is killed cannot bring it back."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


class LiveScreen:
    """Shows a job as it goes; a `Screen`.

    Args:
        stream: the terminal.
        now_s: a clock of which only differences are used.
    """

    def __init__(self, stream: TextIO, now_s: Callable[[], float] = time.monotonic) -> None:
        self._terminal = _Terminal(file=stream, highlight=False, markup=False, emoji=False)
        self._now_s = now_s
        # Frames are drawn by a thread of `rich`, so that they go on between events.
        self._lock = threading.Lock()
        self._running: dict[int, VmLine] = {}
        self._live: Live | None = None
        self._began_s = now_s()
        self._done_count = self._failed_count = self._warning_count = 0

    def show(self, event: Event, lines: tuple[LogLine, ...], vmid: int | None = None) -> None:
        if self._live is None and isinstance(event, events.RunStarted):
            self._live = Live(
                console=self._terminal,
                get_renderable=self._draw,
                refresh_per_second=_FRAMES_PER_S,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        is_told = isinstance(event, _TOLD)
        texts = [
            self._style(line, vmid) for line in lines if is_told or line.level in _LEVEL_STYLES
        ]
        with self._lock:
            self._warning_count += sum(line.level is Level.WARN for line in lines)
            ended = self._follow(event, vmid)
        if ended:
            texts.append(Text(ended))
        if texts and self._live is not None:
            # What is printed stands above the last frame, which must be of now.
            self._live.refresh()
        for text in texts:
            # The terminal itself wraps: what is copied from it stays in one piece.
            self._terminal.print(text, soft_wrap=True)

    def close(self, last_line: str) -> None:
        if self._live is not None:
            with self._lock:
                self._running.clear()
                tally = self._tally()
            self._live.stop()
            self._live = None
            if tally and self._done_count + self._failed_count > 1:
                self._terminal.print(Text(tally), soft_wrap=True)
        if last_line:
            self._terminal.print(Text(last_line), soft_wrap=True)

    def _style(self, line: LogLine, vmid: int | None) -> Text:
        whose = f"VM {vmid}: " if vmid is not None and len(self._running) > 1 else ""
        return Text(whose + printable(line.render()), style=_LEVEL_STYLES.get(line.level, ""))

    def _follow(self, event: Event, vmid: int | None) -> str:
        """Change the line that is meant; return what stays when its VM is done, or nothing."""
        now_s = self._now_s()
        if isinstance(event, events.RunStarted):
            self._running[event.vmid] = VmLine(vmid=event.vmid, began_s=now_s, phase_began_s=now_s)
        line = None if vmid is None else self._running.get(vmid)
        if line is None:
            return ""
        phase = _PHASES.get(type(event))
        if phase is not None and phase != line.phase:
            line.enter(phase, now_s, transferring=isinstance(event, events.JobAccepted))
        match event:
            case events.VmNamed():
                line.name = event.vm_name
            case events.ProgressMade():
                line.take(event.line)
            case events.FreezeWindowClosed():
                line.window_s = event.freeze_window_s
            case events.ArchivePublished():
                line.location = event.archive_path
                line.size_text = render_archive_size(event.size_bytes)
            case events.PbsBackupPublished():
                line.location = event.backup_path
                line.size_text = render_archive_size(event.size_bytes)
            case events.RunSucceeded():
                del self._running[line.vmid]
                self._done_count += 1
                return render_done(line, event.consistency, event.duration_s)
            case events.RunFailed():
                # Why is told by the error's own line.
                del self._running[line.vmid]
                self._failed_count += 1
        return ""

    def _draw(self) -> Text:
        """One frame; called by the drawing thread."""
        columns = self._terminal.width - _MARGIN_COLUMNS
        with self._lock:
            texts = render_lines(
                tuple(self._running.values()),
                now_s=self._now_s(),
                columns=columns,
                is_unicode=self._terminal.encoding.startswith("utf"),
            )
            if len(self._running) + self._done_count + self._failed_count > 1:
                texts.append(self._tally()[:columns])
        return Text("\n".join(texts), no_wrap=True, overflow="crop")

    def _tally(self) -> str:
        counts = (
            (len(self._running), "running"),
            (self._done_count, "done"),
            (self._failed_count, "failed"),
            (self._warning_count, "warnings"),
        )
        facts = [f"{count} {word}" for count, word in counts if count]
        return ", ".join([*facts, render_duration(self._now_s() - self._began_s)])
