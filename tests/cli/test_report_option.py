"""The option ``--report`` of the whole command: after success, failure and interruption."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.lab_command import Run, add_script, archives
from tests.pbs_server import served_pbs
from vzdump_qemu.plan.report_page import render_report

pytestmark = pytest.mark.slow


def heading(page: Path) -> str:
    found = re.search(r"<h1>.*</span>(.*)</h1>", page.read_text())
    assert found is not None
    return found[1]


def test_report_of_a_job_shows_what_was_made_and_what_failed(
    lab: Path, command: Run, tmp_path: Path
) -> None:
    assert command("--root", lab, 100, "--quiet").code == 0
    page = tmp_path / "report.html"
    outcome = command("--root", lab, "100,999", "--report", page, "--compress", "zstd")
    assert outcome.code == 255
    assert "report" not in outcome.err
    assert heading(page) == "1 of 2 VMs was not backed up"
    text = page.read_text()
    assert str(archives(lab)[-1]) in text
    assert "1 earlier, since " in text
    assert "unable to find VM" in text
    # It is no option of vzdump: the command line that is quoted would not be understood.
    assert "<code>vzdump 100 999 --compress zstd</code>" in text


def test_report_of_a_job_at_a_server_shows_the_backups_there(
    lab: Path, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "report.html"
    with served_pbs(tmp_path / "pbs") as server:
        server.announce(monkeypatch)
        words = ("--root", lab, 100, "--repository", server.environment["PBS_REPOSITORY"])
        assert command(*words).code == 0
        assert command(*words, "--report", page).code == 0
    assert heading(page) == "VM 100 is backed up"
    assert "1 earlier, since " in page.read_text()
    assert "as it restores" in page.read_text()


def test_report_of_a_job_that_could_not_begin_says_why(
    lab: Path, command: Run, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    assert command("--root", lab, 100, "--storage", "none", "--report", page).code == 255
    assert heading(page) == "VM 100 was not backed up"
    assert "Storages of this node: local" in page.read_text()


def test_report_of_an_interrupted_job_is_whole(lab: Path, command: Run, tmp_path: Path) -> None:
    add_script(lab, "[backup]\nbytes_per_s = 65536\n")
    assert command("lab", "start", lab, 100).code == 0
    page = tmp_path / "report.html"
    argv = [sys.executable, "-m", "vzdump_qemu", "--root", str(lab), "100", "--report", str(page)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "started backup task" in line:
                process.send_signal(signal.SIGINT)
    assert process.returncode == 255
    assert "interrupted by signal" in page.read_text()
    assert page.read_text().endswith("</html>\n")


def test_report_that_nobody_could_write_is_refused_before_the_job(
    lab: Path, command: Run, tmp_path: Path
) -> None:
    page = tmp_path / "gone" / "report.html"
    outcome = command("--root", lab, 100, "--report", page)
    assert outcome.code == 255
    assert f"option 'report': directory '{page.parent}' does not exist" in outcome.err
    assert archives(lab) == []


def test_rendering_is_loaded_for_who_wants_a_report_alone() -> None:
    code = "import sys, vzdump_qemu.cli.job; sys.exit(sys.modules.get(sys.argv[1]) is not None)"
    argv = [sys.executable, "-c", code, render_report.__module__]
    assert subprocess.run(argv, check=False).returncode == 0
