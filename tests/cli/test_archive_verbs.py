"""``list``, ``show``, ``verify`` and ``extract`` on archives of the official tool."""

import hashlib
import json
from pathlib import Path

import pytest

from tests.cli.lab_command import DATA, Run

GOLDEN = DATA / "vma" / "comp-zstd.vma.zst"
FIREWALL = DATA / "vma" / "create-config-and-firewall.vma"


def test_verify_of_a_whole_archive_ends_with_0(command: Run) -> None:
    outcome = command("verify", GOLDEN)
    assert outcome.code == 0
    assert outcome.out.splitlines()[0].split() == ["DISK", "BYTES", "CLUSTERS", "STORED"]
    assert outcome.out.endswith(f"{GOLDEN}: whole\n")


@pytest.mark.parametrize(
    ("begin", "end"),
    [(0, -1), (0, 12_800), (0, 4_000), (0, 0), (1, None)],
    ids=["last byte", "no extent", "half a header", "nothing", "first byte"],
)
def test_verify_of_a_cut_archive_names_one_reason(
    begin: int, end: int | None, command: Run, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.vma"
    cut.write_bytes(FIREWALL.read_bytes()[begin:end])
    outcome = command("verify", cut)
    assert outcome.code == 50
    assert outcome.out == ""
    assert outcome.err.startswith(f"ERROR: {cut}: ")
    reason, *hints = outcome.err.splitlines()
    assert reason.startswith(f"ERROR: {cut}: ")
    assert all(line.startswith("hint: ") for line in hints)


def test_verify_as_json_tells_place_and_reason(command: Run, tmp_path: Path) -> None:
    cut = tmp_path / "cut.vma"
    cut.write_bytes(FIREWALL.read_bytes()[:-1])
    outcome = command("verify", cut, "--json")
    assert outcome.code == 50
    told = json.loads(outcome.out)
    assert told["whole"] is False
    assert told["error"]
    assert isinstance(told["offset_bytes"], int)


def test_verify_of_a_missing_file_names_it(command: Run) -> None:
    outcome = command("verify", "/nonexistent.vma")
    assert outcome.code == 50
    assert "/nonexistent.vma" in outcome.err


def test_show_tells_the_header_as_json(command: Run) -> None:
    outcome = command("show", FIREWALL, "--json")
    facts = json.loads(outcome.out)
    assert [config["name"] for config in facts["configs"]] == [
        "qemu-server.conf",
        "qemu-server.fw",
    ]
    assert facts["compression"] == "none"
    assert all(device["size_bytes"] > 0 for device in facts["devices"])


def test_show_prints_a_stored_file(command: Run) -> None:
    assert command("show", FIREWALL, "--config", "qemu-server.fw").out
    refused = command("show", FIREWALL, "--config", "nothing")
    assert refused.code == 10
    assert "archive contains no file 'nothing'" in refused.err


def test_extract_writes_disks_and_stored_files(command: Run, tmp_path: Path) -> None:
    target = tmp_path / "out"
    outcome = command("extract", GOLDEN, target, "--json")
    assert outcome.code == 0
    expected = json.loads((DATA / "vma" / "comp-zstd.json").read_text())
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in target.iterdir()}
    assert all(digest in json.dumps(expected) for digest in sums.values()), sums
    assert json.loads(outcome.out)["whole"] is True


def test_extract_of_an_unknown_disk_leaves_nothing(command: Run, tmp_path: Path) -> None:
    outcome = command("extract", GOLDEN, tmp_path / "out", "--disk", "nope")
    assert outcome.code == 10
    assert not (tmp_path / "out").exists()


def test_list_of_a_directory_names_archives_only(command: Run, tmp_path: Path) -> None:
    older = tmp_path / "vzdump-qemu-101-2025_01_01-00_00_00.vma"
    newer = tmp_path / "vzdump-qemu-100-2026_01_02-03_04_05.vma.zst"
    for path in (newer, older, tmp_path / "vzdump-qemu-100-2026_01_02-03_04_05.log"):
        path.write_bytes(b"x" * 2048)
    (tmp_path / "vzdump-qemu-102-2026_01_02-03_04_05.vma.dat").write_bytes(b"")
    (tmp_path / f"{newer.name}.protected").touch()

    listed = json.loads(command("list", tmp_path, "--json").out)
    assert [(row["path"], row["vmid"], row["protected"]) for row in listed] == [
        (str(older), 101, False),
        (str(newer), 100, True),
    ]
    assert listed[1]["created"] == "2026-01-02 03:04:05"
    text = command("list", tmp_path).out
    assert "2.0 KiB" in text
    assert f"{newer} (protected)" in text
