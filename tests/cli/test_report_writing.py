"""What the report page is given beside the record, and that its failure is a warning at most."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.plan.report_jobs import archive_name, failed_run, good_run, job
from vzdump_qemu.cli.report_writing import write_report
from vzdump_qemu.errors import StorageError
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.plan.batch_record import JobRecord, RunRecord


def no_server() -> PbsTarget:
    raise StorageError("there is no server")


async def write(tmp_path: Path, record: JobRecord, *, directory: str = "") -> str:
    """The page."""
    path = tmp_path / "report.html"
    problem = await write_report(
        str(path), record, find_directories=lambda: filter(None, [directory]), find_server=no_server
    )
    assert problem == ""
    return path.read_text()


def dump(tmp_path: Path, *names: str) -> Path:
    directory = tmp_path / "dump"
    directory.mkdir()
    for name in names:
        (directory / name).write_bytes(bytes(2048))
    return directory


def located(run: RunRecord, directory: Path) -> RunRecord:
    return replace(run, location=f"{directory}/{archive_name(run.vmid, days_ago=0)}")


async def test_archives_beside_the_new_one_are_its_past(tmp_path: Path) -> None:
    directory = dump(
        tmp_path,
        archive_name(100, days_ago=0),
        archive_name(100, days_ago=3),
        archive_name(101, days_ago=1),
        "vzdump-lxc-100-2026_11_20-00_00_00.tar.zst",
        "vzdump-qemu-100-renamed.vma",
    )
    page = await write(tmp_path, job(located(good_run(), directory)))
    assert "1 earlier, since 2026-11-20" in page


async def test_vm_that_failed_early_finds_its_past_where_the_others_went(tmp_path: Path) -> None:
    directory = dump(tmp_path, archive_name(100, days_ago=0), archive_name(101, days_ago=1))
    page = await write(tmp_path, job(located(good_run(), directory), failed_run(101)))
    assert "Last backup there: 2026-11-22 02:00, 2.00 KiB." in page


async def test_job_that_failed_at_once_finds_its_past_where_it_was_to_go(tmp_path: Path) -> None:
    directory = dump(tmp_path)
    page = await write(tmp_path, job(failed_run(100)), directory=str(directory))
    assert "There is no earlier backup of this VM." in page


async def test_past_that_cannot_be_known_is_not_told_of(tmp_path: Path) -> None:
    for record in (
        job(failed_run(100)),
        job(failed_run(100), replace(good_run(101), location="vm/101/2026-11-23T02:00:01Z")),
    ):
        page = await write(tmp_path, record)
        assert "earlier" not in page
        assert "the only one" not in page


async def test_page_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "report.html"
    problem = await write_report(str(path), job(), find_directories=tuple, find_server=no_server)
    assert problem == f"no report - unable to write '{path}' - No such file or directory"
