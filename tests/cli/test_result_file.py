"""The file of ``--results``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vzdump_qemu.cli.result_file import check_result_path, write_results
from vzdump_qemu.errors import ConfigError
from vzdump_qemu.plan.batch_record import JobRecord, RunRecord

RECORD = JobRecord(host_name="n", runs=(RunRecord(vmid=100),))


async def test_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("of an older job, and longer than what follows" * 100)
    assert await write_results(str(path), RECORD) == ""
    [result] = json.loads(path.read_text())
    assert (result["vmid"], result["status"]) == (100, "todo")
    assert list(tmp_path.iterdir()) == [path]


async def test_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "results.json"
    assert await write_results(str(path), RECORD) == (
        f"unable to write '{path}' - No such file or directory"
    )


def test_directory_that_is_missing_is_refused_before_the_job(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^results: directory '.*missing' does not exist"):
        check_result_path(str(tmp_path / "missing" / "results.json"))
    with pytest.raises(ConfigError, match="is a directory"):
        check_result_path(str(tmp_path))
    check_result_path(str(tmp_path / "results.json"))
