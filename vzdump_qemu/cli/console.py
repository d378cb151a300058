"""Where a job's events go: terminal lines, JSON lines, live display, and each run's log file.

Owns the fan-out, the count of warnings and what happens when our own output breaks; texts are
left to the renderers. Source: host behaviour, sections 1.2 and 1.12.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TextIO

from vzdump_qemu import events
from vzdump_qemu.cli.log_line import Level, LineRenderer, LogLine, warn
from vzdump_qemu.cli.render_json import render_json_line
from vzdump_qemu.cli.render_vzdump import render_verdict
from vzdump_qemu.cli.run_log import RunLog
from vzdump_qemu.events import Emit, Event


class Screen(Protocol):
    """Shows a job to a person."""

    def show(self, event: Event, lines: tuple[LogLine, ...], vmid: int | None = None) -> None:
        """Show one event of that VM's run, or of the job."""
        ...

    def close(self, last_line: str) -> None:
        """Show the verdict, empty for none, and leave the terminal in order."""
        ...


class LineScreen:
    """Prints every line as it comes; a `Screen`.

    Args:
        names_vms: a line of a VM's run begins with its VMID, because runs go on at once.
    """

    def __init__(self, stream: TextIO, *, names_vms: bool = False) -> None:
        self._stream = stream
        self._names_vms = names_vms

    def show(self, event: Event, lines: tuple[LogLine, ...], vmid: int | None = None) -> None:
        whose = f"{vmid}: " if self._names_vms and vmid is not None else ""
        for line in lines:
            self._stream.write(f"{whose}{line.render()}\n")
        if lines:
            self._stream.flush()

    def close(self, last_line: str) -> None:
        if last_line:
            self._stream.write(f"{last_line}\n")
            self._stream.flush()


class JsonScreen:
    """Prints every event as one JSON line; a `Screen`."""

    def __init__(self, stream: TextIO, wall_s: Callable[[], float]) -> None:
        self._stream = stream
        self._wall_s = wall_s

    def show(self, event: Event, lines: tuple[LogLine, ...], vmid: int | None = None) -> None:
        self._stream.write(f"{render_json_line(event, wall_s=self._wall_s(), vmid=vmid)}\n")
        self._stream.flush()

    def close(self, last_line: str) -> None:
        return


class Console:
    """Takes the events of one job and of its runs; neither blocks for long nor raises.

    Args:
        screens: shown to in this order; empty for a quiet job.
        make_run_log: makes the log of one VM's run; None if no log files are wanted.
        on_broken_output: called once when a screen's reader is gone.
    """

    def __init__(
        self,
        *,
        renderer: LineRenderer,
        screens: tuple[Screen, ...],
        make_run_log: Callable[[], RunLog] | None,
        wall_s: Callable[[], float],
        on_broken_output: Callable[[], None],
    ) -> None:
        self._renderer = renderer
        self._screens = screens
        self._make_run_log = make_run_log
        self._run_logs: dict[int, RunLog] = {}
        self._wall_s = wall_s
        self._on_broken_output = on_broken_output
        self._warning_count = 0
        self._failed_count = 0
        self._job_error = ""
        self._hints: list[str] = []

    @property
    def hints(self) -> tuple[str, ...]:
        """What to do next, of every VM that failed."""
        return tuple(self._hints)

    def add_hint(self, hint: str) -> None:
        """Keep one more hint, of an error that no event carried; empty ones are dropped."""
        if hint:
            self._hints.append(hint)

    def emit(self, event: Event) -> None:
        """Take one event of the job itself."""
        self._tell(event, self._renderer.render(event), None)

    def emit_of_run(self, vmid: int) -> Emit:
        """What takes the events of that VM's run; a log file that fails becomes its warning."""
        if self._make_run_log is None:
            return lambda event: self._tell(event, self._renderer.render(event), vmid)
        run_log = self._run_logs[vmid] = self._make_run_log()

        def emit(event: Event) -> None:
            lines = self._renderer.render(event)
            self._tell(event, lines, vmid)
            for problem in run_log.take(event, lines, wall_s=self._wall_s()):
                self._tell(events.Warned(text=problem), warn(problem), vmid)

        return emit

    def read_log(self, log_path: str) -> bytes | None:
        """See `pbs_ports.ReadLog`."""
        for run_log in self._run_logs.values():
            if run_log.log_path == log_path:
                return run_log.read()
        return None

    def close(self, *, otherwise: str = "") -> None:
        """Print the verdict.

        Args:
            otherwise: why the job failed if no event told so.
        """
        verdict = render_verdict(
            error_text=self._job_error or otherwise,
            failed=self._failed_count > 0,
            warning_count=self._warning_count,
        )
        for screen in self._screens:
            try:
                screen.close(verdict)
            except OSError:
                self._screens = tuple(other for other in self._screens if other is not screen)

    def _tell(self, event: Event, lines: tuple[LogLine, ...], vmid: int | None) -> None:
        self._count(event, lines)
        self._show(event, lines, vmid)

    def _count(self, event: Event, lines: tuple[LogLine, ...]) -> None:
        self._warning_count += sum(line.level is Level.WARN for line in lines)
        match event:
            case events.RunFailed():
                self._failed_count += 1
                if event.hint:
                    self._hints.append(f"VM {event.vmid}: {event.hint}")
            case events.NotificationFailed() if event.hint:
                self._hints.append(event.hint)
            case events.UndoFailed():
                # Something was left as it should not be: that is no "OK", archive or not.
                self._warning_count += 1
            case events.JobEnded():
                self._job_error = event.error
                self._failed_count = max(self._failed_count, len(event.failed_vmids))

    def _show(self, event: Event, lines: tuple[LogLine, ...], vmid: int | None) -> None:
        for screen in self._screens:
            try:
                screen.show(event, lines, vmid)
            except OSError:
                # The reader is gone (a closed pipe or terminal): as SIGPIPE would, this ends
                # the job, but in order; a broken socket to QEMU never counts as that.
                self._screens = tuple(other for other in self._screens if other is not screen)
                self._on_broken_output()
