"""Names of runs and archives."""

from __future__ import annotations

from datetime import datetime

import pytest

from vzdump_qemu.plan.names import (
    RunNames,
    is_archive_name,
    name_run,
    notes_name,
    parse_standard_name,
    protection_name,
    side_log_name,
)

STARTED = datetime(2026, 1, 2, 3, 4, 5)


def _names(**changes: str) -> RunNames:
    given = {"dump_directory": "/dump", "temp_directory": "", "extension": ".zst"} | changes
    return name_run(vmid=100, local_time=STARTED, process_id=7, **given)


def test_names_of_a_compressed_archive() -> None:
    names = name_run(
        vmid=100,
        local_time=STARTED,
        dump_directory="/dump",
        temp_directory="",
        extension=".zst",
        process_id=7,
    )
    assert names.final_path == "/dump/vzdump-qemu-100-2026_01_02-03_04_05.vma.zst"
    assert names.temp_path == "/dump/vzdump-qemu-100-2026_01_02-03_04_05.vma.dat"
    assert names.side_log_path == "/dump/vzdump-qemu-100-2026_01_02-03_04_05.log"
    assert names.temp_directory == "/dump/vzdump-qemu-100-2026_01_02-03_04_05.tmp"


def test_temp_name_without_compressor_replaces_the_last_extension() -> None:
    assert _names(extension="").temp_path.endswith("03_04_05.dat")


def test_temp_directory_of_the_operator_carries_process_and_vm() -> None:
    assert _names(temp_directory="/t").temp_directory == "/t/vzdumptmp7_100"


def test_standard_output_has_no_archive_paths() -> None:
    names = _names(dump_directory="")
    assert names.final_path == names.temp_path == names.side_log_path == ""
    assert names.temp_directory == "/var/tmp/vzdumptmp7_100"


@pytest.mark.parametrize("extension", ["", ".zst", ".gz", ".lzo"])
def test_standard_name_round_trips(extension: str) -> None:
    path = _names(extension=extension).final_path
    found = parse_standard_name(path.rpartition("/")[2])
    assert found is not None
    assert (found.vmid, found.local_time) == (100, STARTED)


@pytest.mark.parametrize(
    "name",
    [
        "vzdump-qemu-0100-2026_01_02-03_04_05.vma",
        "vzdump-qemu-99-2026_01_02-03_04_05.vma",
        "vzdump-qemu-100-2026_01_02-03_04_05-x.vma",
        "vzdump-qemu-100-2026_13_02-03_04_05.vma",
        "vzdump-qemu-100-2026_01_02-03_04_05.vma.dat",
        "vzdump-qemu-100-2026_01_02-03_04_05.tmp",
    ],
)
def test_other_names_are_not_standard(name: str) -> None:
    assert parse_standard_name(name) is None


def test_temporary_names_never_look_like_archives() -> None:
    names = _names()
    for path in (names.temp_path, names.temp_directory, names.side_log_path):
        assert not is_archive_name(path.rpartition("/")[2])


def test_renamed_archive_is_still_an_archive() -> None:
    assert is_archive_name("vzdump-qemu-before-upgrade.vma.zst")


def test_side_files_are_named_after_the_archive() -> None:
    name = "vzdump-qemu-100-2026_01_02-03_04_05.vma.zst"
    assert side_log_name(name) == "vzdump-qemu-100-2026_01_02-03_04_05.log"
    assert notes_name(name) == name + ".notes"
    assert protection_name(name) == name + ".protected"


@pytest.mark.parametrize(
    ("name", "is_archive"),
    [
        ("vzdump-lxc-101-x.tgz", True),
        ("vzdump-openvz-101-x.tar.bz2", True),
        ("vzdump-qemu-100-x.vma.lzo", True),
        ("vzdump-qemu-.vma", False),
        ("vzdump-qemu-100.vma.zst.notes", False),
        ("vzdump-qemu-100.vma.zst.protected", False),
        ("vzdump-qemu-100.vma.xz", False),
        ("vzdump-docker-100.tar", False),
        ("old-vzdump-qemu-100.vma", False),
    ],
)
def test_archive_name_is_recognised_by_type_and_extension(name: str, is_archive: bool) -> None:
    assert is_archive_name(name) is is_archive


def test_standard_name_tells_the_guest_type() -> None:
    found = parse_standard_name("vzdump-lxc-999999999-2026_01_02-03_04_05.tar.zst")
    assert found is not None
    assert (found.guest_type, found.vmid) == ("lxc", 999_999_999)


@pytest.mark.parametrize("extension", [".vma", ".vma.zst", ".tar.gz", ".tgz"])
def test_side_log_replaces_the_whole_extension(extension: str) -> None:
    assert side_log_name(f"vzdump-qemu-100-x{extension}") == "vzdump-qemu-100-x.log"
