"""Where lines go: streams, JSON, log files; and what a broken output does."""

import io
import json
from datetime import UTC, datetime
from pathlib import Path

from vzdump_qemu import events
from vzdump_qemu.cli.console import Console, JsonScreen, LineScreen, Screen
from vzdump_qemu.cli.render_json import render_json_line
from vzdump_qemu.cli.render_vzdump import LogRenderer
from vzdump_qemu.cli.run_log import RunLog
from vzdump_qemu.events import Consistency, Event


def local_time(wall_s: float) -> datetime:
    return datetime.fromtimestamp(wall_s, UTC)


class BrokenStream(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


class Heard:
    def __init__(self) -> None:
        self.broken_count = 0

    def note(self) -> None:
        self.broken_count += 1


def make_console(*screens: Screen, heard: Heard | None = None, run_log: bool = True) -> Console:
    return Console(
        renderer=LogRenderer(local_time),
        screens=screens,
        make_run_log=(lambda: RunLog(local_time)) if run_log else None,
        wall_s=lambda: 60.0,
        on_broken_output=(heard or Heard()).note,
    )


def run_events(folder: Path) -> tuple[Event, ...]:
    return (
        events.JobStarted(command_line="vzdump 100"),
        events.RunStarted(
            vmid=100,
            wall_s=0,
            log_path=str(folder / "log" / "qemu-100.log"),
            side_log_path=str(folder / "side.log"),
        ),
        events.Warned(text="careful"),
        events.FreezeStillWaiting(minutes_left=50),
        events.RunSucceeded(vmid=100, wall_s=0, duration_s=1.0, consistency=Consistency.CRASH),
        events.RunClosed(vmid=100),
        events.JobEnded(failed_vmids=(), error=""),
    )


def feed(console: Console, folder: Path) -> None:
    """A whole job of one VM."""
    started, *of_run, ended = run_events(folder)
    console.emit(started)
    emit = console.emit_of_run(100)
    for event in of_run:
        emit(event)
    console.emit(ended)


def test_run_log_holds_the_runs_lines_and_is_copied_beside_the_archive(tmp_path: Path) -> None:
    (tmp_path / "side.log").write_text("of an older run")
    console = make_console()
    feed(console, tmp_path)

    written = (tmp_path / "log" / "qemu-100.log").read_text()
    assert written == (
        "1970-01-01 00:01:00 INFO: Starting Backup of VM 100 (qemu)\n"
        "1970-01-01 00:01:00 INFO: Backup started at 1970-01-01 00:00:00\n"
        "1970-01-01 00:01:00 WARN: careful\n"
        "1970-01-01 00:01:00 INFO: Finished Backup of VM 100 (00:00:01)\n"
        "1970-01-01 00:01:00 INFO: Backup finished at 1970-01-01 00:00:00\n"
    )
    assert (tmp_path / "side.log").read_text() == written


def test_log_that_cannot_be_written_is_a_warning_of_the_job(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where a directory is needed")
    out = io.StringIO()
    console = make_console(LineScreen(out))
    feed(console, tmp_path)
    console.close()

    printed = out.getvalue().splitlines()
    assert any(
        line.startswith(f"WARN: unable to create log file '{tmp_path}/log/qemu-100.log' - ")
        for line in printed
    )
    assert printed[-1] == "TASK WARNINGS: 2"


def test_side_log_that_cannot_be_written_is_a_warning_of_the_job(tmp_path: Path) -> None:
    (tmp_path / "side.log").mkdir()
    out = io.StringIO()
    console = make_console(LineScreen(out))
    feed(console, tmp_path)
    assert f"WARN: unable to write log file '{tmp_path}/side.log' - " in out.getvalue()
    assert (tmp_path / "log" / "qemu-100.log").exists()


def test_broken_output_is_told_once_and_the_log_file_goes_on(tmp_path: Path) -> None:
    heard = Heard()
    console = make_console(LineScreen(BrokenStream()), heard=heard)
    feed(console, tmp_path)
    console.close()
    assert heard.broken_count == 1
    assert "Finished Backup" in (tmp_path / "side.log").read_text()


def test_failed_run_gives_its_hint_and_a_verdict() -> None:
    out = io.StringIO()
    console = make_console(LineScreen(out), run_log=False)
    console.emit(events.RunFailed(vmid=7, wall_s=0, text="VM is locked (backup)", hint="unlock"))
    console.emit(events.JobEnded(failed_vmids=(7,), error=""))
    console.close()
    assert console.hints == ("VM 7: unlock",)
    assert out.getvalue().endswith(
        "INFO: Backup job finished with errors\nTASK ERROR: job errors\n"
    )


def test_json_screen_prints_every_event_as_one_line(tmp_path: Path) -> None:
    out = io.StringIO()
    console = make_console(JsonScreen(out, lambda: 60.0))
    feed(console, tmp_path)
    console.close()
    printed = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["event"] for line in printed] == [
        type(event).__name__ for event in run_events(tmp_path)
    ]
    assert [line.get("vmid") for line in printed] == [None, *[100] * 5, None]
    assert printed[4] == {
        "event": "RunSucceeded",
        "time": "1970-01-01T00:01:00.000Z",
        "vmid": 100,
        "wall_s": 0,
        "duration_s": 1.0,
        "consistency": "crash",
    }


def test_json_line_holds_nested_values() -> None:
    line = events.ProgressLine(
        percent=1,
        done_bytes=2,
        target_bytes=3,
        zero_bytes=4,
        elapsed_s=5.0,
        read_bytes_per_s=6.0,
        write_bytes_per_s=7.0,
    )
    parsed = json.loads(render_json_line(events.ProgressMade(line=line), wall_s=0.5))
    assert parsed["time"] == "1970-01-01T00:00:00.500Z"
    assert parsed["line"]["write_bytes_per_s"] == 7.0


def test_undo_that_failed_is_no_ok(tmp_path: Path) -> None:
    stream = io.StringIO()
    console = make_console(LineScreen(stream), run_log=False)
    console.emit(events.UndoFailed(what="thaw the guest", text="it may still be frozen"))
    console.close()
    assert stream.getvalue().splitlines()[-1] == "TASK WARNINGS: 1"


def start(vmid: int, folder: Path) -> events.RunStarted:
    log_path = str(folder / f"qemu-{vmid}.log")
    return events.RunStarted(vmid=vmid, wall_s=0, log_path=log_path, side_log_path="")


def test_runs_that_go_on_at_once_have_a_log_each_and_bear_their_vmid(tmp_path: Path) -> None:
    out = io.StringIO()
    console = make_console(LineScreen(out, names_vms=True))
    first, second = console.emit_of_run(100), console.emit_of_run(101)
    first(start(100, tmp_path))
    second(start(101, tmp_path))
    first(events.Warned(text="of the first"))
    second(events.Warned(text="of the second"))
    console.emit(events.Warned(text="of the job"))
    first(events.RunClosed(vmid=100))
    second(events.RunClosed(vmid=101))

    assert "100: WARN: of the first\n101: WARN: of the second\nWARN: of the job\n" in out.getvalue()
    logs = [(tmp_path / f"qemu-{vmid}.log").read_text() for vmid in (100, 101)]
    assert [log.count("WARN") for log in logs] == [1, 1]
    assert "of the first" in logs[0] and "of the second" in logs[1]
    assert console.read_log(str(tmp_path / "qemu-100.log")) == logs[0].encode()
    assert console.read_log(str(tmp_path / "qemu-102.log")) is None
