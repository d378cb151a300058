"""The live display on a terminal."""

import io

import pytest

from vzdump_qemu import events
from vzdump_qemu.cli.log_line import error, info
from vzdump_qemu.cli.render_live import LiveScreen
from vzdump_qemu.events import Consistency, ProgressLine
from vzdump_qemu.units import MIB


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_live_screen_shows_bar_rate_rest_window_and_verdict() -> None:
    out = FakeTerminal()
    screen = LiveScreen(out)
    screen.show(events.JobStarted(command_line="x"), info("starting new backup job: x"))
    screen.show(events.RunStarted(vmid=100, wall_s=0, log_path="", side_log_path=""), ())
    screen.show(events.FreezeWindowClosed(freeze_window_s=0.0123, own_s=0.0), ())
    line = ProgressLine(
        percent=25,
        done_bytes=8 * MIB,
        target_bytes=32 * MIB,
        zero_bytes=0,
        elapsed_s=3.0,
        read_bytes_per_s=4.0 * MIB,
        write_bytes_per_s=0.0,
    )
    screen.show(events.ProgressMade(line=line), ())
    screen._progress.refresh()
    screen.show(events.ThawFailed(text="thaw [bold]: x"), error("thaw [bold]: x"))
    screen.show(events.ArchivePublished(archive_path="/d/a.vma", size_bytes=5 * MIB), ())
    screen.show(
        events.RunSucceeded(vmid=100, wall_s=0, duration_s=9, consistency=Consistency.FROZEN), ()
    )
    screen.close("TASK OK")

    shown = out.getvalue()
    for text in (
        "VM 100",
        "frozen for 12.3 ms",
        "25%",
        "8.0 MiB of 32.0 MiB 4.0 MiB/s ETA 9s",
        "ERROR: thaw [bold]: x",
        "/d/a.vma",
        "done in 9s (frozen)",
        "TASK OK",
    ):
        assert text in shown, text
    assert "starting new backup job" not in shown


def test_live_screen_marks_a_failed_vm() -> None:
    out = FakeTerminal()
    screen = LiveScreen(out)
    screen.show(events.RunStarted(vmid=7, wall_s=0, log_path="", side_log_path=""), ())
    screen.show(events.RunFailed(vmid=7, wall_s=0, text="x", hint=""), error("failed - x"))
    screen.close("TASK ERROR: job errors")
    assert "failed" in out.getvalue()
    assert out.getvalue().rstrip().endswith("TASK ERROR: job errors")
