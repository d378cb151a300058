"""Figures of a job for a monitoring system."""

from __future__ import annotations

import re
from dataclasses import replace

from tests.plan.job_records import BEGAN_S, GOOD_RUN, JOB
from vzdump_qemu.outlet_ports import Measurement
from vzdump_qemu.plan.batch_record import JobRecord
from vzdump_qemu.plan.measurements import LASTING_NAMES, measure_job

GOOD_JOB = replace(JOB, error="", runs=(GOOD_RUN,))


def by_name(figures: list[Measurement], **labels: str) -> dict[str, float]:
    return {figure.name: figure.value for figure in figures if dict(figure.labels) == dict(labels)}


def figures_of(record: JobRecord, job_id: str = "") -> list[Measurement]:
    return list(measure_job(record, job_id=job_id))


def test_good_run_has_all_figures() -> None:
    assert by_name(figures_of(JOB), vmid="100") == {
        "vzdump_backup_success": 1.0,
        "vzdump_backup_end_timestamp_seconds": BEGAN_S + 70,
        "vzdump_backup_last_success_timestamp_seconds": BEGAN_S + 70,
        "vzdump_backup_last_success_size_bytes": 4096,
        "vzdump_backup_duration_seconds": 70.0,
        "vzdump_backup_freeze_window_seconds": 0.025,
        "vzdump_backup_freeze_own_seconds": 0.002,
        "vzdump_backup_verify_seconds": 25.0,
        "vzdump_backup_warnings": 1,
        "vzdump_backup_total_bytes": 1000,
        "vzdump_backup_read_bytes": 1000,
        "vzdump_backup_zero_bytes": 400,
        "vzdump_backup_written_bytes": 600,
        "vzdump_backup_reused_bytes": 0,
        "vzdump_backup_read_bytes_per_second": 25.0,
        "vzdump_backup_written_bytes_per_second": 15.0,
    }


def test_phases_have_labels() -> None:
    phases = {
        figure.labels["phase"]: figure.value
        for figure in figures_of(JOB)
        if figure.name == "vzdump_backup_phase_seconds"
    }
    assert phases == {"copying": 40.0, "proving": 25.0, "putting_back": 5.0}


def test_failed_run_has_no_time_and_size_of_success() -> None:
    assert by_name(figures_of(JOB), vmid="101") == {
        "vzdump_backup_success": 0.0,
        "vzdump_backup_end_timestamp_seconds": BEGAN_S + 71,
        "vzdump_backup_duration_seconds": 1.0,
        "vzdump_backup_warnings": 0,
    }


def test_vm_that_was_not_reached_keeps_its_figures() -> None:
    assert not [figure for figure in figures_of(JOB) if figure.labels.get("vmid") == "102"]


def test_job_has_figures_under_its_id() -> None:
    assert by_name(figures_of(GOOD_JOB, "nightly"), job_id="nightly") == {
        "vzdump_job_success": 1.0,
        "vzdump_job_duration_seconds": 77.0,
        "vzdump_job_lock_wait_seconds": 4.0,
        "vzdump_job_warnings": 1,
        "vzdump_job_end_timestamp_seconds": BEGAN_S + 72,
        "vzdump_job_last_success_timestamp_seconds": BEGAN_S + 72,
    }
    assert by_name(figures_of(JOB), job_id="")["vzdump_job_success"] == 0.0
    states = {
        figure.labels["state"]: figure.value
        for figure in figures_of(JOB)
        if figure.name == "vzdump_job_vms"
    }
    assert states == {"ok": 1, "err": 1, "todo": 1}


def test_failed_job_takes_no_earlier_success_back() -> None:
    assert not LASTING_NAMES & by_name(figures_of(JOB), job_id="").keys()
    assert {figure.name for figure in figures_of(GOOD_JOB)} >= LASTING_NAMES


def test_names_and_labels_are_prometheus_own() -> None:
    for figure in figures_of(JOB):
        assert re.fullmatch(r"vzdump_[a-z_]+", figure.name)
        assert figure.text.endswith((".", "1."))
        assert all(re.fullmatch(r"[a-z_]+", label) for label in figure.labels)
