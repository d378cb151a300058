"""The Debian package's own files agree with the product; the package itself is integration's."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from vzdump_qemu.cli.scheduled_job import find_job, join_job
from vzdump_qemu.formats.calendar_event import translate_calendar_event
from vzdump_qemu.formats.jobs_config import parse_jobs_config
from vzdump_qemu.stores.pbs.key_loading import PASSPHRASE_CREDENTIAL

ROOT = Path(__file__).resolve().parent.parent
DEBIAN = ROOT / "packaging/debian"
UNIT = (ROOT / "packaging/systemd/vzdump-qemu@.service").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_newest_entry_of_the_changelog_is_the_version_of_the_project() -> None:
    first_line = (DEBIAN / "changelog").read_text().splitlines()[0]
    assert first_line.startswith(f"vzdump-qemu ({PROJECT['version']}) ")


def test_every_dependency_is_pinned_with_the_sums_of_its_wheels() -> None:
    text = (DEBIAN / "requirements.txt").read_text()
    pinned = set(re.findall(r"^([\w.-]+)==\S+ \\\n    --hash=sha256:", text, re.MULTILINE))
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["notify"]
    names = {re.split(r"[<>=]", requirement)[0] for requirement in wanted}
    assert {name.replace("-", "_") for name in names} <= {name.replace("-", "_") for name in pinned}


def test_unit_gives_credentials_by_the_names_that_the_tool_reads() -> None:
    from vzdump_qemu.cli import server_target

    names = {server_target._PASSWORD_CREDENTIAL, PASSPHRASE_CREDENTIAL}
    assert set(re.findall(r"^LoadCredential=([^:]+):", UNIT, re.MULTILINE)) == names
    assert set(re.findall(r"^SetCredential=([^:]+):\\n$", UNIT, re.MULTILINE)) == names


def test_example_of_jobs_can_be_run_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "etc/vzdump-qemu/jobs.cfg"
    path.parent.mkdir(parents=True)
    path.write_bytes((DEBIAN / "jobs.cfg").read_bytes())
    config = parse_jobs_config(path.read_bytes())
    assert list(config.jobs) == ["nightly", "web"]
    for job_id, job in config.jobs.items():
        assert translate_calendar_event(job.schedule)
        assert join_job(find_job(str(tmp_path), job_id), (), {}).warnings == ()


def test_release_that_is_none_of_debian_is_refused() -> None:
    done = subprocess.run(
        [DEBIAN / "build", sys.executable, "sid"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "make deb: RELEASE is bookworm or trixie, not 'sid'\n"
