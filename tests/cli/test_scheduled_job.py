"""``--job ID`` and the verb ``jobs``: a job of ``jobs.cfg`` run as a command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.lab_command import Run, archives
from vzdump_qemu.cli.scheduled_job import JobWords, find_job, join_job
from vzdump_qemu.errors import ConfigError

PLATFORM = "etc/pve/jobs.cfg"
OWN = "etc/vzdump-qemu/jobs.cfg"


def write_jobs(root: Path, text: str, name: str = PLATFORM) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def join(root: Path, body: str, *vmids: str, **given: Any) -> JobWords:
    write_jobs(root, "vzdump: night\n" + "".join(f"\t{line}\n" for line in body.splitlines()))
    named = {name.replace("_", "-"): value for name, value in given.items()}
    return join_job(find_job(str(root), "night"), vmids, named)


def test_options_of_a_job_have_the_kinds_of_a_command_line(tmp_path: Path) -> None:
    body = "all 1\nexclude 101,102\nzstd 2\nremove 0\nmode stop\nschedule daily\nenabled 1\nnode n1"
    words = join(tmp_path, body)
    assert words == JobWords(
        vmids=(),
        given={
            "all": True,
            "exclude": ("101,102",),
            "zstd": 2,
            "remove": False,
            "mode": "stop",
            "node": "n1",
            "quiet": True,
            "job-id": "night",
        },
        warnings=(),
    )


def test_option_of_the_command_line_wins_over_the_job(tmp_path: Path) -> None:
    words = join(tmp_path, "vmid 100,101\nmode stop", mode="suspend", quiet=False, job_id="mine")
    assert words.vmids == ("100,101",)
    assert words.given == {"mode": "suspend", "quiet": False, "job-id": "mine"}


def test_job_whose_output_is_asked_for_is_not_quiet(tmp_path: Path) -> None:
    assert "quiet" not in join(tmp_path, "vmid 100", output="json").given


@pytest.mark.parametrize("body", ["vmid 100,101", "all 1\nexclude 7", "pool prod"])
def test_vms_of_the_command_line_stand_for_all_that_the_job_selects(
    tmp_path: Path, body: str
) -> None:
    words = join(tmp_path, f"{body}\nmode stop", "102")
    assert words.vmids == ("102",)
    assert set(words.given) == {"mode", "quiet", "job-id"}


def test_target_of_the_command_line_stands_for_all_that_names_one(tmp_path: Path) -> None:
    words = join(tmp_path, "vmid 1\nrepository host:tank\nns a\nkeyfile /k", dumpdir="/backup")
    assert set(words.given) == {"dumpdir", "quiet", "job-id"}


def test_job_for_an_archive_sent_to_a_server_is_not_compressed_twice(tmp_path: Path) -> None:
    words = join(tmp_path, "vmid 1\nstorage local\ncompress zstd", repository="host:tank")
    assert set(words.given) == {"repository", "quiet", "job-id"}


def test_job_of_a_vm_known_by_its_sockets_keeps_its_number(tmp_path: Path) -> None:
    words = join(tmp_path, "qmp /run/web.qmp\nvmid 4711\ndumpdir /backup")
    assert words.vmids == ()
    assert words.given["vmid"] == 4711
    assert words.given["qmp"] == "/run/web.qmp"


def test_option_that_is_none_of_a_job_is_ignored_with_a_warning(tmp_path: Path) -> None:
    words = join(tmp_path, "vmid 100\nroot /\nnonsense 1")
    path = tmp_path / PLATFORM
    assert words.warnings == (
        f"'{path}' line 3: ignoring 'root' - no option of a job",
        f"'{path}' line 4: ignoring 'nonsense' - no option of a job",
    )


def test_value_that_an_own_option_cannot_have_names_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        join(tmp_path, "vmid 100\ndata-path sideways\nkeyfile")
    path = tmp_path / PLATFORM
    assert str(caught.value).startswith(
        f"job 'night' cannot be run: '{path}' line 3: data-path: 'sideways' is not one of"
    )
    assert caught.value.hint == f"'{path}' line 4: keyfile: value is missing"


def test_own_job_wins_over_one_of_the_platform_with_the_same_id(tmp_path: Path) -> None:
    write_jobs(tmp_path, "vzdump: night\n\tstorage theirs\n\nvzdump: day\n\tall\n")
    own = write_jobs(tmp_path, "vzdump: night\n\tstorage ours\n", OWN)
    assert find_job(str(tmp_path), "night").path == str(own)
    assert find_job(str(tmp_path), "day").path == str(tmp_path / PLATFORM)


def test_unknown_job_names_the_jobs_there_are_and_what_is_wrong_with_them(tmp_path: Path) -> None:
    path = write_jobs(tmp_path, "vzdump: day\n\tall\nvzdump: night\n\tall\n")
    with pytest.raises(ConfigError) as caught:
        find_job(str(tmp_path), "night")
    assert str(caught.value) == "job 'night' does not exist"
    assert caught.value.hint == (
        f"jobs are: day; '{path}' line 3: 'vzdump: night' does not belong to a section"
    )


def test_host_without_jobs_says_where_they_would_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find_job(str(tmp_path), "night")
    assert caught.value.hint == ("neither /etc/vzdump-qemu/jobs.cfg nor /etc/pve/jobs.cfg has any")


@pytest.mark.slow
def test_job_backs_up_its_vms_quietly_and_the_log_tells_its_command_line(
    lab: Path, command: Run
) -> None:
    write_jobs(lab, "vzdump: night\n\tschedule daily\n\tvmid 100\n\tcompress zstd\n\tfoo 1\n")
    outcome = command("--root", lab, "--job", "night")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert [path.suffix for path in archives(lab)] == [".zst"]

    outcome = command("--root", lab, "--job", "night", "--quiet", 0, "--compress", "gzip")
    assert outcome.code == 0
    lines = outcome.err.splitlines()
    assert lines[0] == f"WARN: '{lab / PLATFORM}' line 5: ignoring 'foo' - no option of a job"
    assert lines[1] == "INFO: starting new backup job: vzdump 100 --compress gzip --quiet 0"
    assert lines[-1] == "TASK WARNINGS: 1"
    assert sorted(path.suffix for path in archives(lab)) == [".gz", ".zst"]


@pytest.mark.parametrize("words", [(), ("--quiet", "0"), ("101",)])
def test_job_that_is_not_enabled_says_so_and_does_nothing(
    tmp_path: Path, command: Run, words: tuple[str, ...]
) -> None:
    path = write_jobs(tmp_path, "# ours\nvzdump: night\n\tenabled 0\n\tvmid 100\n")
    outcome = command("--root", tmp_path, "--job", "night", *words)
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == f"job 'night' is not enabled ('{path}' line 2): nothing was done\n"


def test_job_of_another_node_does_nothing(lab: Path, command: Run) -> None:
    write_jobs(lab, "vzdump: night\n\tall\n\tnode elsewhere\n")
    outcome = command("--root", lab, "--job", "night", "--quiet", 0)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert archives(lab) == []


def test_unknown_job_is_one_line_and_a_hint(tmp_path: Path, command: Run) -> None:
    write_jobs(tmp_path, "vzdump: day\n\tall\n")
    outcome = command("--root", tmp_path, "--job", "night")
    assert (outcome.code, outcome.out) == (10, "")
    assert outcome.err == "ERROR: job 'night' does not exist\nhint: jobs are: day\n"


def test_jobs_are_listed_with_what_is_wrong(tmp_path: Path, command: Run) -> None:
    own = write_jobs(tmp_path, "vzdump: web\n\tqmp /run/web.qmp\n\tdumpdir /b\n\tzstd x\n", OWN)
    write_jobs(
        tmp_path,
        "vzdump: night\n\tschedule mon..fri 22:00\n\tall\n\texclude 7\n\tstorage bak\n"
        "\tcomment every night\n\tenabled 0\n",
    )
    outcome = command("jobs", "--root", tmp_path)
    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        "JOB    ENABLED  SCHEDULE        VMS           TARGET  COMMENT",
        "web    yes      -               /run/web.qmp  /b",
        "night  no       mon..fri 22:00  all but 7     bak     every night",
    ]
    assert outcome.err == (f"WARN: '{own}' line 4: zstd: type check ('integer') failed - got 'x'\n")
    [web, night] = json.loads(command("jobs", "--root", tmp_path, "--json").out)
    assert web["path"] == str(own)
    assert night["options"] == {"all": "1", "exclude": "7", "storage": "bak"}


def test_times_of_a_job_are_printed_for_its_timer(tmp_path: Path, command: Run) -> None:
    path = write_jobs(
        tmp_path,
        "vzdump: night\n\tschedule mon..fri 22:00\n\trepeat-missed 1\n\nvzdump: now\n\tall\n"
        "\nvzdump: odd\n\tschedule at noon\n",
    )
    outcome = command("jobs", "--root", tmp_path, "--systemd", "night")
    assert outcome.out == (
        f"# Job 'night' of {path}: mon..fri 22:00\n"
        "[Timer]\nOnCalendar=\nOnCalendar=Mon..Fri *-*-* 22:00:00\nPersistent=true\n"
    )
    refused = command("jobs", "--root", tmp_path, "--systemd", "now")
    assert (refused.code, refused.out) == (10, "")
    assert refused.err.startswith("ERROR: job 'now' has no schedule\n")
    refused = command("jobs", "--root", tmp_path, "--systemd", "odd")
    assert refused.err.startswith("ERROR: unable to parse calendar event 'at noon': 'at' is no day")
