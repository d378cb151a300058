"""Precedence and conflicts of options."""

from pathlib import Path
from typing import Any

import pytest

from vzdump_qemu.cli.effective import (
    make_backup_options,
    merge_options,
    read_file_options,
    rebuild_command_line,
)
from vzdump_qemu.errors import ConfigError
from vzdump_qemu.events import BackupMode
from vzdump_qemu.plan.options import BackupOptions, FleecingOptions, TargetOptions


def make(given: dict[str, Any], conf: str = "", root: str = "/") -> BackupOptions:
    merged = merge_options(given, read_file_options(conf).values)
    return make_backup_options(merged, root=root, command_line="vzdump", cpu_count=4)


def test_defaults_are_vzdumps() -> None:
    assert make({}) == BackupOptions(
        target=TargetOptions(storage_id="local"),
        stop_wait_s=600.0,
        lock_wait_s=10800.0,
        command_line="vzdump",
        log_directory="/var/log/vzdump",
    )


def test_every_option_reaches_the_engine() -> None:
    options = make(
        {
            "dumpdir": "/backup//",
            "tmpdir": "/scratch/",
            "mode": "stop",
            "compress": "zstd",
            "zstd": 0,
            "bwlimit": 100,
            "ionice": 8,
            "lockwait": 0,
            "stopwait": 1,
            "fleecing": "1,storage=fast",
            "performance": "max-workers=4",
        },
        root="/lab",
    )
    assert options.target == TargetOptions(dump_directory="/backup", temp_directory="/scratch")
    assert options.mode is BackupMode.STOP
    assert options.compressor == ("zstd", "--threads=2")
    assert options.archive_extension == ".zst"
    assert options.rate_limit_bytes_per_s == 102400
    assert (options.io_priority, options.lock_wait_s, options.stop_wait_s) == (8, 0.0, 60.0)
    assert options.fleecing == FleecingOptions(enabled=True, storage_id="fast")
    assert options.max_workers == 4
    assert options.log_directory == "/lab/var/log/vzdump"


def test_command_line_beats_the_file_beats_the_default() -> None:
    conf = "# defaults\nmode: suspend\nbwlimit: 5\ncompress: gzip\n"
    options = make({"mode": "stop"}, conf)
    assert options.mode is BackupMode.STOP
    assert options.rate_limit_bytes_per_s == 5120
    assert options.archive_extension == ".gz"


@pytest.mark.parametrize(
    ("given", "target"),
    [
        ({}, TargetOptions(storage_id="nas")),
        ({"storage": "other"}, TargetOptions(storage_id="other")),
        ({"dumpdir": "/d"}, TargetOptions(dump_directory="/d")),
    ],
)
def test_target_of_the_file_counts_only_if_the_command_line_names_none(
    given: dict[str, Any], target: TargetOptions
) -> None:
    assert make(given, "storage: nas\n").target == target


def test_performance_is_merged_by_its_parts() -> None:
    assert make({"performance": "pbs-entries-max=5"}, "performance: max-workers=3").max_workers == 3
    assert make({"performance": "max-workers=9"}, "performance: max-workers=3").max_workers == 9


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"storage": "s", "stdout": True},
            "cannot use options 'storage' and 'stdout' at the same time",
        ),
        (
            {"storage": "s", "dumpdir": "/d"},
            "cannot use options 'storage' and 'dumpdir' at the same time",
        ),
        ({"fleecing": "1"}, "'storage' parameter is required when 'enabled' is set"),
        ({"fleecing": "what=1"}, "what"),
        ({"performance": "max-workers=257"}, "max-workers must be 1 to 256"),
    ],
)
def test_contradiction_is_refused(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(given)
    assert text in str(caught.value)


def test_storage_of_the_file_makes_stdout_fail() -> None:
    with pytest.raises(ConfigError, match="'storage' and 'stdout'"):
        make({"stdout": True}, "storage: nas")


def test_file_with_both_targets_keeps_the_storage_and_warns() -> None:
    read = read_file_options("storage: nas\ndumpdir: /d\n")
    assert dict(read.values) == {"storage": "nas"}
    assert read.warnings == (
        "both 'storage' and 'dumpdir' defined in '/etc/vzdump.conf' - ignoring 'dumpdir'",
    )


def test_bad_value_in_the_file_costs_a_warning_and_is_ignored() -> None:
    read = read_file_options("ionice: 9\nfleecing: 1\nquiet: on\nbwlimit: 7\n")
    assert dict(read.values) == {"quiet": True, "bwlimit": 7}
    assert len(read.warnings) == 2
    assert read.warnings[0].startswith("parse error in '/etc/vzdump.conf' - 'ionice': ")
    assert read.warnings[1].startswith("parse error in '/etc/vzdump.conf' - 'fleecing': ")


def test_stop_of_the_file_is_read_and_means_nothing() -> None:
    read = read_file_options("stop: 1\nroot: /x\nnonsense: 1\n")
    assert dict(read.values) == {"stop": True}
    assert "stop" not in merge_options({}, read.values)


def test_rebuilt_command_line_is_vzdumps() -> None:
    given = {
        "root": "/lab",
        "storage": "local",
        "mode": "snapshot",
        "compress": "zstd",
        "quiet": True,
        "stdout": True,
        "dumpdir": "/with blank",
    }
    assert rebuild_command_line((100, 101), given) == (
        "vzdump 100 101 --storage local --mode snapshot --compress zstd --quiet 1 "
        "--dumpdir '/with blank'"
    )


def test_relative_directories_are_those_of_where_the_tool_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guardian stands elsewhere when it removes what is in them."""
    monkeypatch.chdir(tmp_path)
    target = make({"dumpdir": "dump", "tmpdir": "."}).target
    assert target.dump_directory == str(tmp_path / "dump")
    assert target.temp_directory == str(tmp_path)
