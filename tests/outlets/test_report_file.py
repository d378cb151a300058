"""Where the report page is written, and that nobody finds half of one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vzdump_qemu.errors import ConfigError, TargetError
from vzdump_qemu.outlets.report_file import check_report_path, write_report_file


def test_page_replaces_an_earlier_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old and longer")
    write_report_file(str(path), "näu")
    assert path.read_bytes() == "näu".encode()
    assert os.listdir(tmp_path) == ["report.html"]


def test_page_behind_a_link_is_written_where_the_link_points(tmp_path: Path) -> None:
    link = tmp_path / "latest.html"
    link.symlink_to(tmp_path / "real.html")
    write_report_file(str(link), "new")
    assert link.is_symlink()
    assert (tmp_path / "real.html").read_text() == "new"


def test_page_has_the_rights_that_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_report_file(str(tmp_path / "report.html"), "")
    finally:
        os.umask(before)
    assert (tmp_path / "report.html").stat().st_mode & 0o777 == 0o640


def test_page_that_cannot_be_written_leaves_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.mkdir()
    with pytest.raises(TargetError, match=f"unable to write '{path}' - Is a directory"):
        write_report_file(str(path), "new")
    assert os.listdir(tmp_path) == ["report.html"]
    with pytest.raises(TargetError, match="No such file or directory"):
        write_report_file(str(tmp_path / "gone" / "report.html"), "new")


def test_page_that_no_encoding_carries_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_report_file(str(tmp_path / "report.html"), "\udcff")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["report.html", "old.html", "link.html"])
def test_path_that_can_be_written_is_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / "old.html").write_text("old")
    (tmp_path / "link.html").symlink_to("old.html")
    check_report_path(str(tmp_path / name))


def test_path_in_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        check_report_path(str(tmp_path / "gone" / "report.html"))


@pytest.mark.parametrize("name", ["directory", "pipe"])
def test_path_of_no_regular_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is no regular file"):
        check_report_path(str(tmp_path / name))
