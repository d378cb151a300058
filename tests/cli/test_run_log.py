"""The text of a run's log, as a backup server gets it; host behaviour 1.7 (32) and 1.12."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from vzdump_qemu import events
from vzdump_qemu.cli.log_line import info
from vzdump_qemu.cli.run_log import LOG_BYTES_MAX, RunLog
from vzdump_qemu.errors import TargetError


def local_time(wall_s: float) -> datetime:
    return datetime.fromtimestamp(wall_s, UTC).replace(tzinfo=None)


@pytest.fixture
def log() -> RunLog:
    return RunLog(local_time)


def begin(log: RunLog, path: Path) -> None:
    event = events.RunStarted(vmid=100, wall_s=0.0, log_path=str(path), side_log_path="")
    assert log.take(event, info("began"), wall_s=0.0) == ()


def close(log: RunLog) -> None:
    assert log.take(events.RunClosed(vmid=100), (), wall_s=1.0) == ()


def test_log_is_read_once_its_run_is_closed(log: RunLog, tmp_path: Path) -> None:
    path = tmp_path / "qemu-100.log"
    begin(log, path)
    assert log.read() is None
    close(log)
    assert log.read() == b"1970-01-01 00:00:00 INFO: began\n"


def test_log_of_an_earlier_run_is_never_taken_for_one_that_was_not_written(
    log: RunLog, tmp_path: Path
) -> None:
    path = tmp_path / "qemu-100.log"
    path.write_text("of yesterday")
    assert log.read() is None
    begin(log, path)
    close(log)
    path.unlink()
    path.mkdir()
    event = events.RunStarted(vmid=100, wall_s=2.0, log_path=str(path), side_log_path="")
    [problem] = log.take(event, (), wall_s=2.0)
    assert problem.startswith(f"unable to create log file '{path}'")
    log.take(events.RunClosed(vmid=100), (), wall_s=3.0)
    assert log.read() is None


def test_log_that_cannot_be_read_or_is_too_long_is_an_error(log: RunLog, tmp_path: Path) -> None:
    path = tmp_path / "qemu-100.log"
    begin(log, path)
    close(log)
    path.write_bytes(b"x" * (LOG_BYTES_MAX + 1))
    with pytest.raises(TargetError, match="is too long"):
        log.read()
    path.unlink()
    with pytest.raises(TargetError, match=f"unable to read log file '{path}'"):
        log.read()
