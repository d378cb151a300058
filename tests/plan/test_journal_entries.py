"""What the host's journal keeps of a job."""

from __future__ import annotations

from dataclasses import replace

from tests.plan.job_records import BAD_RUN, GOOD_RUN, JOB
from vzdump_qemu.formats.journal_entry import encode_journal_entry
from vzdump_qemu.plan.journal_entries import (
    JOB_MESSAGE_ID,
    RUN_MESSAGE_ID,
    Priority,
    job_entry,
    line_entry,
    run_entry,
)


def test_line_is_an_entry_of_its_priority() -> None:
    assert line_entry("careful", Priority.WARNING, vmid=100) == {
        "MESSAGE": "careful",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "vzdump",
        "VZDUMP_VMID": "100",
    }
    assert "VZDUMP_VMID" not in line_entry("got global lock", Priority.INFO)


def test_good_run_is_found_by_its_fields() -> None:
    assert run_entry(GOOD_RUN, job_id="nightly") == {
        "MESSAGE": "VM 100 (web): backed up, 4.0 KiB in 1m 10s",
        "MESSAGE_ID": RUN_MESSAGE_ID,
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "vzdump",
        "VZDUMP_VMID": "100",
        "VZDUMP_VM_NAME": "web",
        "VZDUMP_STATE": "ok",
        "VZDUMP_ARCHIVE": "/dump/vzdump-qemu-100.vma",
        "VZDUMP_SIZE_BYTES": "4096",
        "VZDUMP_DURATION_S": "70.000",
        "VZDUMP_MODE": "snapshot",
        "VZDUMP_DATA_PATH": "pull",
        "VZDUMP_CONSISTENCY": "frozen",
        "VZDUMP_FREEZE_WINDOW_S": "0.025",
        "VZDUMP_READ_BYTES": "1000",
        "VZDUMP_WRITTEN_BYTES": "600",
        "VZDUMP_WARNINGS": "1",
        "VZDUMP_LOG": "/dump/vzdump-qemu-100.log",
        "VZDUMP_JOB_ID": "nightly",
    }


def test_failed_run_is_an_error_without_an_archive() -> None:
    entry = run_entry(BAD_RUN)
    assert entry["MESSAGE"] == "VM 101: not backed up: VM is locked (backup)"
    assert entry["PRIORITY"] == "3"
    assert (entry["VZDUMP_STATE"], entry["VZDUMP_HINT"]) == ("err", "qm unlock 101")
    assert not {"VZDUMP_ARCHIVE", "VZDUMP_SIZE_BYTES", "VZDUMP_JOB_ID"} & entry.keys()


def test_job_counts_its_vms() -> None:
    entry = job_entry(JOB, status="backup failed", job_id="nightly")
    assert entry == {
        "MESSAGE": "backup failed",
        "MESSAGE_ID": JOB_MESSAGE_ID,
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "vzdump",
        "VZDUMP_COMMAND_LINE": "vzdump 100 101 102",
        "VZDUMP_ERROR": "interrupted by signal",
        "VZDUMP_DURATION_S": "77.000",
        "VZDUMP_SIZE_BYTES": "4096",
        "VZDUMP_VMS_OK": "1",
        "VZDUMP_VMS_FAILED": "1",
        "VZDUMP_VMS_NOT_REACHED": "1",
        "VZDUMP_WARNINGS": "1",
        "VZDUMP_JOB_ID": "nightly",
    }
    good = replace(JOB, error="", runs=(GOOD_RUN,))
    assert job_entry(good, status="backup successful")["PRIORITY"] == "6"


def test_journal_takes_all_names() -> None:
    assert encode_journal_entry({**run_entry(GOOD_RUN), **run_entry(BAD_RUN)})
    assert encode_journal_entry(job_entry(JOB, status="x", job_id="y"))
