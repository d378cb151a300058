"""How every VM of a job went, for a program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from vzdump_qemu.events import BackupMode, Consistency
from vzdump_qemu.plan.batch_record import FreezeRecord, JobRecord, RunRecord, TransferRecord
from vzdump_qemu.plan.job_results import list_results
from vzdump_qemu.plan.notification import GuestState

GOOD = RunRecord(
    vmid=100,
    vm_name="web",
    state=GuestState.OK,
    mode=BackupMode.SNAPSHOT,
    consistency=Consistency.FROZEN,
    data_path="native",
    began_wall_s=0.5,
    ended_wall_s=3.0,
    freeze=FreezeRecord(began_wall_s=1.0, window_s=0.0421234),
    transfer=TransferRecord(
        total_bytes=9,
        target_bytes=8,
        read_bytes=7,
        written_bytes=6,
        zero_bytes=5,
        reused_bytes=4,
        duration_s=1.0,
    ),
    location="/d/vzdump-qemu-100.vma",
    size_bytes=77,
    warnings=("careful",),
)
FAILED = RunRecord(
    vmid=101,
    state=GuestState.FAILED,
    error="VM is locked (backup)",
    hint="unlock it",
    began_wall_s=3.0,
    ended_wall_s=3.0,
    location="/d/planned.vma",
)


def results(*runs: RunRecord, error: str = "", hint: str = "") -> dict[int, Mapping[str, Any]]:
    record = JobRecord(host_name="n", runs=runs, error=error, hint=hint, ended_wall_s=9.0)
    found = list_results(record)
    assert [result["vmid"] for result in found] == sorted(run.vmid for run in runs)
    return {result["vmid"]: result for result in found}


def test_vm_that_went_well_tells_everything() -> None:
    assert results(GOOD)[100] == {
        "vmid": 100,
        "name": "web",
        "status": "ok",
        "error": None,
        "hint": None,
        "archive": "/d/vzdump-qemu-100.vma",
        "size_bytes": 77,
        "started": "1970-01-01T00:00:00.500Z",
        "ended": "1970-01-01T00:00:03.000Z",
        "duration_s": 2.5,
        "mode": "snapshot",
        "data_path": "native",
        "consistency": "frozen",
        "freeze_window_ms": 42.123,
        "downtime_s": None,
        "read_bytes": 7,
        "zero_bytes": 5,
        "written_bytes": 6,
        "reused_bytes": 4,
        "warnings": ["careful"],
    }


def test_vm_that_failed_has_its_error_and_no_archive() -> None:
    failed = results(GOOD, FAILED)[101]
    assert failed["status"] == "err"
    assert (failed["error"], failed["hint"]) == ("VM is locked (backup)", "unlock it")
    assert failed["archive"] is failed["size_bytes"] is failed["read_bytes"] is None
    assert failed["duration_s"] == 0.0


@pytest.mark.parametrize(
    ("error", "text"),
    [("interrupted by signal", "aborted: interrupted by signal"), ("a\nb", "aborted: a b")],
)
def test_vm_that_was_not_reached_tells_why(error: str, text: str) -> None:
    missing = results(RunRecord(vmid=102), GOOD, error=error, hint="do this")[102]
    assert missing["status"] == "todo"
    assert (missing["error"], missing["hint"]) == (text, "do this")
    assert missing["started"] is missing["ended"] is missing["duration_s"] is None


def test_run_that_could_not_tell_its_end_is_an_error() -> None:
    cut = results(RunRecord(vmid=103, began_wall_s=1.0), error="internal error")[103]
    assert (cut["status"], cut["error"]) == ("err", "interrupted by signal")
