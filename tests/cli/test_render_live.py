"""The live display: which lines are drawn anew, which stay, what a terminal shows of it."""

import io

import pyte
import pytest

from vzdump_qemu import events
from vzdump_qemu.cli.log_line import error, info, warn
from vzdump_qemu.cli.render_live import LiveScreen
from vzdump_qemu.events import Consistency, Event, ProgressLine
from vzdump_qemu.units import MIB


class FakeTerminal(io.StringIO):
    """What was written, as a screen of 24 rows shows it."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self._columns = columns

    def isatty(self) -> bool:
        return True

    def shown(self) -> list[str]:
        screen = pyte.HistoryScreen(self._columns, 24, history=1000, ratio=0.5)
        # A terminal's driver returns the carriage.
        pyte.Stream(screen).feed(self.getvalue().replace("\n", "\r\n"))
        above = ["".join(row[x].data for x in range(self._columns)) for row in screen.history.top]
        lines = [line.rstrip() for line in [*above, *screen.display]]
        return [line for line in lines if line]


@pytest.fixture(params=[160, 80, 40])
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeTerminal:
    monkeypatch.setenv("COLUMNS", str(request.param))
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return FakeTerminal(request.param)


def started(vmid: int) -> Event:
    return events.RunStarted(vmid=vmid, wall_s=0, log_path="", side_log_path="")


def succeeded(vmid: int) -> Event:
    return events.RunSucceeded(vmid=vmid, wall_s=0, duration_s=9, consistency=Consistency.FROZEN)


def progress(percent: int) -> Event:
    return events.ProgressMade(
        line=ProgressLine(
            percent=percent,
            done_bytes=percent * MIB,
            target_bytes=100 * MIB,
            zero_bytes=0,
            elapsed_s=float(percent),
            read_bytes_per_s=1.0,
            write_bytes_per_s=0.0,
        )
    )


def feed(screen: LiveScreen, vmid: int, *shown: Event) -> None:
    for event in shown:
        screen.show(event, (), vmid)


def test_one_line_follows_a_vm_and_one_stays(terminal: FakeTerminal) -> None:
    screen = LiveScreen(terminal, lambda: 0.0)
    screen.show(events.JobStarted(command_line="x"), info("starting new backup job: x"))
    feed(screen, 100, started(100), events.FreezeIssued(), events.JobAccepted(uuid="u"))
    feed(screen, 100, events.FreezeWindowClosed(freeze_window_s=0.0123, own_s=0.0), progress(25))
    # Printing draws the present frame below.
    screen.show(events.ThawFailed(text="thaw"), error("thaw [bold]: \x1b[2J"), 100)
    [told, line] = terminal.shown()
    assert told == "ERROR: thaw [bold]:  [2J"
    assert "100 copying " in line
    assert " 25% 1" in line
    assert "1m 15s" in line
    assert "━" in line or terminal._columns == 40
    assert ("frozen 12.3 ms" in line) == (terminal._columns > 40)

    feed(screen, 100, events.ArchivePublished(archive_path="/d/a", size_bytes=MIB), succeeded(100))
    screen.close("TASK OK")
    # A narrow terminal breaks the line where its edge is.
    shown = "".join(terminal.shown()[1:]).replace(" ", "")
    assert shown == "VM100donein9s,1MB,frozenfor12.3ms:/d/aTASKOK"


def test_failed_vm_leaves_its_error_alone(terminal: FakeTerminal) -> None:
    screen = LiveScreen(terminal, lambda: 0.0)
    feed(screen, 7, started(7))
    failed = events.RunFailed(vmid=7, wall_s=0, text="x", hint="")
    screen.show(failed, error("Backup of VM 7 failed - x"), 7)
    screen.close("TASK ERROR: job errors")
    assert terminal.shown() == ["ERROR: Backup of VM 7 failed - x", "TASK ERROR: job errors"]


def test_vms_side_by_side_have_a_line_each_and_their_texts_say_whose(
    terminal: FakeTerminal,
) -> None:
    screen = LiveScreen(terminal, lambda: 0.0)
    for vmid in (100, 101, 102):
        feed(screen, vmid, started(vmid), events.JobAccepted(uuid="u"))
    feed(screen, 101, progress(50))
    screen.show(events.Warned(text="careful"), warn("careful"), 102)
    feed(screen, 100, events.TransferEnded(summary=SUMMARY), succeeded(100))
    shown = terminal.shown()
    assert shown[:2] == ["VM 102: WARN: careful", "VM 100 done in 9s, consistency: frozen"[:160]]
    assert [line.split()[:3] for line in shown[2:4]] in (
        [["VM", "101", "copying"], ["VM", "102", "copying"]],
        [["101", "copying", shown[2].split()[2]], ["102", "copying", shown[3].split()[2]]],
    )
    assert " 50%" in shown[2]
    assert shown[4:] == ["2 running, 1 done, 1 warnings, 0s"]
    screen.close("")


def test_200_vms_leave_a_line_each_and_never_more_than_the_running_ones_alive(
    terminal: FakeTerminal,
) -> None:
    screen = LiveScreen(terminal, lambda: 0.0)
    waiting = list(range(100, 300))
    running: list[int] = []
    while waiting or running:
        while waiting and len(running) < 4:
            running.append(waiting.pop(0))
            feed(screen, running[-1], started(running[-1]), events.JobAccepted(uuid="u"))
        done = running.pop(0)
        feed(screen, done, succeeded(done))
        if done == 250:
            shown = terminal.shown()
            assert [line for line in shown if "copying" in line] == shown[-4:-1]
            assert shown[-1] == "3 running, 151 done, 0s"
    screen.close("TASK OK")
    shown = terminal.shown()
    assert shown[:200] == [f"VM {vmid} done in 9s, consistency: frozen" for vmid in range(100, 300)]
    assert shown[200:] == ["200 done, 0s", "TASK OK"]


def test_wait_for_another_job_is_told(terminal: FakeTerminal) -> None:
    screen = LiveScreen(terminal, lambda: 0.0)
    screen.show(events.GlobalLockAwaited(), info("trying to get global lock - waiting..."))
    screen.close("")
    assert "".join(terminal.shown()) == "INFO: trying to get global lock - waiting..."


def test_cursor_stays_visible_because_who_is_killed_cannot_bring_it_back(
    terminal: FakeTerminal,
) -> None:
    screen = LiveScreen(terminal, lambda: 0.0)
    feed(screen, 100, started(100))
    assert "\x1b[?25l" not in terminal.getvalue()
    screen.close("")


def test_no_color_leaves_out_colours_alone(
    terminal: FakeTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    screen = LiveScreen(terminal, lambda: 0.0)
    feed(screen, 100, started(100))
    screen.show(events.Warned(text="careful"), warn("careful"), 100)
    assert "\x1b[33m" not in terminal.getvalue()
    assert any("100 preparing" in line for line in terminal.shown())
    screen.close("")


SUMMARY = events.TransferSummary(
    total_bytes=1, transferred_bytes=1, zero_bytes=0, reused_bytes=0, duration_s=1.0
)
