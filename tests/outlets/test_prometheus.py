"""The file of figures: what stays in it, and that a collector can read it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vzdump_qemu.errors import BackupError, ConfigError
from vzdump_qemu.outlet_ports import Measurement
from vzdump_qemu.outlets.prometheus import PrometheusFile, check_metrics_path

LASTING = frozenset({"vzdump_backup_last_success_timestamp_seconds"})


def figure(what: str, value: float, **labels: str) -> Measurement:
    return Measurement(
        name=f"vzdump_backup_{what}", text=f"About {what}.", value=value, labels=labels
    )


def read(path: Path) -> dict[tuple[str, ...], float]:
    """All samples by name, VM and part; the file is whole by the collector's own grammar."""
    return {
        (
            sample.name.removeprefix("vzdump_backup_"),
            *(value for _, value in sorted(sample.labels.items(), key=_vmid_first)),
        ): sample.value
        for family in text_string_to_metric_families(path.read_text())
        for sample in family.samples
    }


def _vmid_first(label: tuple[str, str]) -> bool:
    return label[0] != "vmid"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vzdump.prom"


async def write(path: Path, *figures: Measurement) -> None:
    await PrometheusFile(str(path)).write(figures, lasting=LASTING)


async def test_figures_are_written_as_gauges_with_help(path: Path) -> None:
    await write(path, figure("success", 1, vmid="100"))
    assert path.read_text() == (
        "# HELP vzdump_backup_success About success.\n"
        "# TYPE vzdump_backup_success gauge\n"
        'vzdump_backup_success{vmid="100"} 1.0\n'
    )


async def test_second_job_keeps_figures_of_vms_it_did_not_touch(path: Path) -> None:
    await write(path, figure("success", 1, vmid="100"), figure("success", 0, vmid="101"))
    await write(path, figure("success", 0, vmid="100"))
    assert read(path) == {("success", "100"): 0, ("success", "101"): 0}


async def test_figure_that_a_vm_has_no_more_goes(path: Path) -> None:
    await write(
        path,
        figure("phase_seconds", 3, vmid="100", phase="freeze"),
        figure("phase_seconds", 3, vmid="101", phase="freeze"),
    )
    await write(path, figure("phase_seconds", 4, vmid="100", phase="stop"))
    assert read(path) == {
        ("phase_seconds", "100", "stop"): 4,
        ("phase_seconds", "101", "freeze"): 3,
    }


async def test_time_of_last_success_outlives_a_failure(path: Path) -> None:
    last = "last_success_timestamp_seconds"
    await write(path, figure("success", 1, vmid="100"), figure(last, 7e8, vmid="100"))
    await write(path, figure("success", 0, vmid="100"))
    assert read(path) == {("success", "100"): 0, (last, "100"): 7e8}
    await write(path, figure("success", 1, vmid="100"), figure(last, 8e8, vmid="100"))
    assert read(path) == {("success", "100"): 1, (last, "100"): 8e8}


async def test_labels_are_quoted(path: Path) -> None:
    await write(path, figure("info", 1, vmid="100", name='a "b"\\\n'))
    assert read(path) == {("info", "100", 'a "b"\\\n'): 1}
    await write(path, figure("success", 1, vmid="101"))
    assert ("info", "100", 'a "b"\\\n') in read(path)


async def test_label_that_is_no_text_is_written_as_far_as_it_is(path: Path) -> None:
    await write(path, figure("info", 1, vmid="100", name="w\udcffb"))
    assert read(path) == {("info", "100", "w?b"): 1}


@pytest.mark.parametrize("content", ["what is this {\n", "\x00\x01", "x 1\n"])
async def test_file_that_cannot_be_read_is_replaced(path: Path, content: str) -> None:
    path.write_text(content)
    await write(path, figure("success", 1, vmid="100"))
    assert read(path) == {("success", "100"): 1}


async def test_file_that_is_no_text_is_replaced(path: Path) -> None:
    path.write_bytes(b"\xff\xfe")
    await write(path, figure("success", 1, vmid="100"))
    assert read(path) == {("success", "100"): 1}


async def test_exporter_may_read_whatever_our_umask_is(path: Path) -> None:
    before = os.umask(0o077)
    try:
        await write(path, figure("success", 1, vmid="100"))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


async def test_directory_that_went_away_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BackupError, match=r"^unable to write '.*' - No such file or directory$"):
        await write(tmp_path / "gone" / "x.prom", figure("success", 1, vmid="100"))


def test_path_is_checked_before(tmp_path: Path) -> None:
    check_metrics_path(str(tmp_path / "x.prom"))
    with pytest.raises(ConfigError, match=r"does not end in '\.prom'$"):
        check_metrics_path(str(tmp_path / "x.txt"))
    with pytest.raises(ConfigError, match="is no directory to write to"):
        check_metrics_path(str(tmp_path / "gone" / "x.prom"))


async def test_jobs_that_end_at_once_keep_each_others_figures(path: Path) -> None:
    vmids = [str(vmid) for vmid in range(100, 116)]
    await asyncio.gather(*(write(path, figure("success", 1, vmid=vmid)) for vmid in vmids))
    assert read(path) == {("success", vmid): 1 for vmid in vmids}
