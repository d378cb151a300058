"""Asking the job that runs on a node to end (1.5)."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vzdump_qemu.errors import BackupError
from vzdump_qemu.node.running_job import stop_running_job
from vzdump_qemu.node.upid import make_upid, parse_upid, read_start_ticks

WAITS = "import signal, sys; print('up', flush=True); signal.pause()"
WAITS_ON = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAITS}; {WAITS}"


@pytest.fixture
def pid_file(tmp_path: Path) -> Path:
    return tmp_path / "vzdump.pid"


@pytest.fixture
def job(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    program = getattr(request, "param", WAITS)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield process
        process.kill()


async def test_row_1_5_job_of_the_pid_file_gets_a_term(
    pid_file: Path, job: subprocess.Popen[bytes]
) -> None:
    pid_file.write_text(make_upid("n", job.pid, kind="vzdump") + "\n")
    assert await stop_running_job(str(pid_file))
    assert job.wait() == -signal.SIGTERM


@pytest.mark.parametrize("job", [WAITS_ON], indirect=True)
async def test_row_1_5_job_that_does_not_end_is_told(
    pid_file: Path, job: subprocess.Popen[bytes]
) -> None:
    pid_file.write_text(make_upid("n", job.pid, kind="vzdump"))
    with pytest.raises(BackupError, match=f"^stopping backup process {job.pid} failed$"):
        await stop_running_job(str(pid_file), timeout_s=0.05)
    assert job.poll() is None


async def test_row_1_5_process_that_got_the_number_later_is_left_alone(
    pid_file: Path, job: subprocess.Popen[bytes]
) -> None:
    ticks = read_start_ticks(job.pid)
    upid = f"UPID:n:{job.pid:08X}:{ticks + 1:08X}:6B04A401:vzdump::root@pam:"
    pid_file.write_text(upid)
    assert not await stop_running_job(str(pid_file))
    assert job.poll() is None


@pytest.mark.parametrize("text", ["", "\n", "4711", "UPID:n:1:2:3:vzdump::root@pam:", "\0" * 9])
async def test_row_1_5_file_that_names_no_task_means_nothing(pid_file: Path, text: str) -> None:
    assert not await stop_running_job(str(pid_file))
    pid_file.write_text(text)
    assert not await stop_running_job(str(pid_file))


async def test_row_1_5_task_that_ended_is_nothing_to_do(
    pid_file: Path, job: subprocess.Popen[bytes]
) -> None:
    pid_file.write_text(make_upid("n", job.pid, kind="vzdump"))
    job.kill()
    job.wait()
    assert not await stop_running_job(str(pid_file))


def test_row_1_2_upid_is_read_as_it_was_made() -> None:
    parsed = parse_upid("UPID:pve-1:0000ABCD:12345678A:6B04A401:vzdump:100:root@pam:")
    assert parsed is not None
    assert parsed.process_id == 0xABCD
    assert parsed.start_ticks == 0x12345678A
    assert parsed.started_wall_s == 0x6B04A401
