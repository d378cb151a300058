"""``jobs.cfg``: what a job says, and what is wrong with it, by file and line."""

from __future__ import annotations

import pytest

from vzdump_qemu.formats.jobs_config import BackupJob, JobOption, parse_jobs_config

WHOLE = b"""# written by the platform
vzdump: backup-1234abcd-56ef
\tschedule mon..fri 22:00
\tall 1
\tcomment every night
\tcompress zstd
\tenabled 0
\texclude 101;102
\tfleecing enabled=1,storage=local-lvm
\tmailnotification always
\tmode snapshot
\tnotes-template {{guestname}}, {{vmid}}
\tprune-backups keep-daily=7,keep-last=3
\trepeat-missed 1
\tstorage bak

realm-sync: ldap
\tschedule daily
\trealm example

vzdump: web
\tqmp /run/web.qmp
\tdumpdir /backup
\tprotected
"""


def _job(body: bytes) -> BackupJob:
    [job] = parse_jobs_config(b"vzdump: a1\n" + body).jobs.values()
    return job


def test_job_of_the_platform_is_read_whole() -> None:
    config = parse_jobs_config(WHOLE)
    assert config.warnings == ()
    assert list(config.jobs) == ["backup-1234abcd-56ef", "web"]
    job = config.jobs["backup-1234abcd-56ef"]
    assert (job.errors, job.warnings) == ((), ())
    assert (job.path, job.line_number) == ("/etc/pve/jobs.cfg", 2)
    assert not job.enabled
    assert job.repeats_missed
    assert job.schedule == "mon..fri 22:00"
    assert job.comment == "every night"
    assert {name: option.value for name, option in job.options.items()} == {
        "all": "1",
        "compress": "zstd",
        "exclude": "101,102",
        "fleecing": "enabled=1,storage=local-lvm",
        "mailnotification": "always",
        "mode": "snapshot",
        "notes-template": "{{guestname}}, {{vmid}}",
        "prune-backups": "keep-daily=7,keep-last=3",
        "storage": "bak",
    }
    assert job.options["all"] == JobOption(value="1", line_number=4)


def test_option_of_this_tool_alone_is_kept_as_it_is_written() -> None:
    job = parse_jobs_config(WHOLE).jobs["web"]
    assert job.enabled
    assert not job.repeats_missed
    assert job.schedule == ""
    assert job.options["qmp"].value == "/run/web.qmp"
    assert job.options["protected"].value == "1"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"\tzstd many", "zstd: type check ('integer') failed - got 'many'"),
        (b"\tstorage", "storage: value is missing"),
        (b"\tenabled maybe", "enabled: type check ('boolean') failed - got 'maybe'"),
        (b"\tvmid 100,web", "vmid: strange VM ID 'web'"),
        (b"vzdump: b2", "'vzdump: b2' does not belong to a section"),
    ],
)
def test_line_that_cannot_be_meant_is_an_error_with_file_and_line(line: bytes, text: str) -> None:
    raw = b"vzdump: a1\n\tall\n" + line + b"\n"
    [job] = parse_jobs_config(raw, path="/lab/jobs.cfg").jobs.values()
    assert job.errors == (f"'/lab/jobs.cfg' line 3: {text}",)


def test_second_value_of_an_option_is_ignored_with_a_warning() -> None:
    job = _job(b"\tstorage one\n\tstorage two\n")
    assert job.options["storage"].value == "one"
    assert job.errors == ()
    assert job.warnings == ("'/etc/pve/jobs.cfg' line 3: duplicate attribute 'storage' is ignored",)


def test_what_the_scheduler_of_2020_wrote_is_no_option() -> None:
    job = _job(b"\tid a1\n\ttype vzdump\n\tdow mon\n\tstarttime 22:00\n")
    assert job.options == {}
    assert (job.errors, job.warnings) == ((), ())


def test_second_section_of_one_id_and_a_stray_line_are_told() -> None:
    config = parse_jobs_config(b"vzdump: a1\n\tall\n\nvzdump: a1\n\tvmid 1\n\n\tall 1\n")
    assert list(config.jobs["a1"].options) == ["all"]
    assert config.warnings == (
        "'/etc/pve/jobs.cfg' line 4: duplicate section 'a1' is ignored",
        "'/etc/pve/jobs.cfg' line 7: ignore config line: \tall 1",
    )
