"""``vzdump-qemu prune``: calendar, JSON, removal, errors; host behaviour 2.6 to 2.8."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.lab_command import DATA, Run, archives
from vzdump_qemu.cli.prune_places import find_directory
from vzdump_qemu.errors import TargetError

WHOLE = DATA / "vma" / "comp-zstd.vma.zst"
DAYS = ("2024_03_01", "2024_03_02", "2024_03_03")


def name_of(day: str, vmid: int = 100) -> str:
    return f"vzdump-qemu-{vmid}-{day}-00_00_00.vma.zst"


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """Three whole archives of VM 100, one of VM 101, each with a log."""
    directory = tmp_path / "dump"
    directory.mkdir()
    for name in (*map(name_of, DAYS), name_of(DAYS[0], 101)):
        shutil.copyfile(WHOLE, directory / name)
        (directory / name.replace(".vma.zst", ".log")).write_text("log")
    return directory


def stems(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*.vma*"))


def test_dry_run_draws_a_calendar_and_removes_nothing(command: Run, dump: Path) -> None:
    before = sorted(dump.iterdir())
    outcome = command("prune", "--dumpdir", dump, "--prune-backups", "keep-last=1", "--dry-run")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"retention of '{dump}': keep-last=1\n\nVM 100: 1 stay, 2 go\n")
    assert "March 2024\n" in outcome.out
    assert "VM 101: 1 stay, 0 go\n" in outcome.out
    assert "would remove, not covered by keep-retention policy:\n" in outcome.out
    assert "would remove 2 of 4 backup(s), " in outcome.out
    assert sorted(dump.iterdir()) == before


def test_json_is_a_list_of_name_keep_and_reason(command: Run, dump: Path) -> None:
    (dump / f"{name_of(DAYS[1])}.protected").touch()
    outcome = command(
        *("prune", "100", "--dumpdir", dump, "--prune-backups", "keep-last=1"),
        *("--dry-run", "--json"),
    )
    assert outcome.code == 0
    assert json.loads(outcome.out) == [
        {"name": name_of(DAYS[2]), "keep": True, "reason": "keep-last"},
        {"name": name_of(DAYS[1]), "keep": True, "reason": "protected"},
        {
            "name": name_of(DAYS[0]),
            "keep": False,
            "reason": "not covered by keep-retention policy",
        },
    ]


def test_prune_removes_oldest_first_with_vzdumps_words(command: Run, dump: Path) -> None:
    outcome = command("prune", "100", "--dumpdir", dump, "--prune-backups", "keep-last=1")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == (
        "prune older backups with retention: keep-last=1\n"
        f"delete old backup '{dump / name_of(DAYS[0])}'\n"
        f"delete old backup '{dump / name_of(DAYS[1])}'\n"
        "pruned 2 backup(s) not covered by keep-retention policy\n"
    )
    assert stems(dump) == [name_of(DAYS[2]), name_of(DAYS[0], 101)]
    assert len(list(dump.glob("*.log"))) == 2
    again = command("prune", "100", "--dumpdir", dump, "--prune-backups", "keep-last=1")
    assert again.out.endswith("pruned 0 backup(s)\n")


def test_prune_with_json_prints_nothing_else(command: Run, dump: Path) -> None:
    outcome = command("prune", "--dumpdir", dump, "--prune-backups", "keep-last=1", "--json")
    assert [row["keep"] for row in json.loads(outcome.out)] == [True, False, False, True]
    assert stems(dump) == [name_of(DAYS[2]), name_of(DAYS[0], 101)]


def test_last_archive_that_can_be_read_stays(command: Run, dump: Path) -> None:
    (dump / name_of(DAYS[2])).write_bytes(b"")
    outcome = command("prune", "100", "--dumpdir", dump, "--prune-backups", "keep-last=1")
    assert outcome.code == 0
    assert stems(dump) == [name_of(DAYS[1]), name_of(DAYS[2]), name_of(DAYS[0], 101)]


def test_archive_of_another_size_than_its_log_tells_is_not_relied_on(
    command: Run, dump: Path
) -> None:
    log = dump / name_of(DAYS[2]).replace(".vma.zst", ".log")
    log.write_text("2024-03-03 00:00:09 INFO: archive file size: 12.34GB\n")
    outcome = command("prune", "100", "--dumpdir", dump, "--prune-backups", "keep-last=1")
    assert outcome.code == 0
    assert stems(dump) == [name_of(DAYS[1]), name_of(DAYS[2]), name_of(DAYS[0], 101)]


def test_verify_sees_an_archive_that_is_cut_short(command: Run, dump: Path) -> None:
    (dump / name_of(DAYS[2])).write_bytes(WHOLE.read_bytes()[:-100])
    words = ("prune", "100", "--dumpdir", dump, "--prune-backups", "keep-last=1", "--json")
    outcome = command(*words, "--verify", "--dry-run")
    assert [row["reason"] for row in json.loads(outcome.out)][:2] == [
        "keep-last",
        "last whole archive of the VM",
    ]


def test_vm_without_backups_costs_a_warning(command: Run, dump: Path) -> None:
    outcome = command("prune", "105", "--dumpdir", dump, "--prune-backups", "keep-last=1")
    assert (outcome.code, outcome.err) == (0, f"WARN: VM 105 has no backups in '{dump}'\n")
    assert len(stems(dump)) == 4


def test_empty_directory_is_no_error(command: Run, tmp_path: Path) -> None:
    outcome = command("prune", "--dumpdir", tmp_path, "--prune-backups", "keep-last=1", "--dry-run")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.endswith("no backups of VMs\n")


def test_archive_protected_after_the_decision_stays_and_the_others_go(dump: Path) -> None:
    place = find_directory(str(dump), "keep-last=1")
    plan = place.plan((), verify=False)
    (dump / f"{name_of(DAYS[0])}.protected").touch()
    told: list[str] = []
    complaints: list[str] = []
    with pytest.raises(TargetError) as caught:
        place.remove(plan, tell=told.append, complain=complaints.append)
    assert caught.value.message == "error pruning backups - check log"
    path = dump / name_of(DAYS[0])
    assert complaints == [
        f"ERROR: error when removing backup '{path}' - cannot remove protected archive '{path}'"
    ]
    assert len(told) == 2
    assert stems(dump) == [
        *(name_of(DAYS[0]), f"{name_of(DAYS[0])}.protected", name_of(DAYS[2])),
        name_of(DAYS[0], 101),
    ]


def test_side_file_that_stays_is_a_warning(command: Run, dump: Path) -> None:
    path = dump / name_of(DAYS[0])
    log = Path(str(path).replace(".vma.zst", ".log"))
    log.unlink()
    log.mkdir()
    outcome = command("prune", "100", "--dumpdir", dump, "--prune-backups", "keep-last=1")
    assert outcome.code == 0
    assert outcome.err.startswith(f"WARN: unable to remove '{log}' - ")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--prune-backups", "keep=1"), 10, "prune-backups: invalid key"),
        (
            ("--prune-backups", "keep-all=1,keep-last=1"),
            10,
            "prune-backups: keep-all cannot be set together with other options.",
        ),
        ((), 2, "prune-backups: property is missing"),
        (("--prune-backups", "keep-last=1", "x"), 2, "strange VM ID 'x'"),
        (("--prune-backups", "keep-last=1", ""), 2, "strange VM ID ''"),
        (("--prune-backups", "keep-last=1", "0"), 2, "strange VM ID '0'"),
        (
            ("--prune-backups", "keep-last=1", "--storage", "s"),
            2,
            "cannot use options 'storage' and 'dumpdir' at the same time",
        ),
    ],
)
def test_wrong_command_line_has_one_reason_and_removes_nothing(
    words: tuple[str, ...], code: int, text: str, command: Run, dump: Path
) -> None:
    outcome = command("prune", "--dumpdir", dump, *words)
    assert (outcome.code, outcome.out) == (code, "")
    assert text in outcome.err
    assert len(stems(dump)) == 4


def test_missing_directory_is_a_config_error(command: Run, tmp_path: Path) -> None:
    outcome = command("prune", "--dumpdir", tmp_path / "no", "--prune-backups", "keep-last=1")
    assert outcome.code == 10
    told, hint = outcome.err.splitlines()
    assert told == f"ERROR: dumpdir '{tmp_path / 'no'}' does not exist"
    assert hint.startswith("hint: ")


# Storages of a lab.


def fill_storage(lab: Path) -> None:
    directory = lab / "var/lib/vz/dump"
    directory.mkdir(parents=True, exist_ok=True)
    for day in DAYS:
        shutil.copyfile(WHOLE, directory / name_of(day))


def test_storage_of_a_lab_is_pruned_by_volume_id(command: Run, lab: Path) -> None:
    fill_storage(lab)
    outcome = command(
        *("prune", "--root", lab, "--storage", "local", "--prune-backups", "keep-last=2")
    )
    assert (outcome.code, outcome.err) == (0, "")
    assert f"removing backup 'local:backup/{name_of(DAYS[0])}'\n" in outcome.out
    assert [path.name for path in archives(lab)] == [name_of(DAYS[1]), name_of(DAYS[2])]


@pytest.mark.parametrize(
    ("section", "conf", "given", "rule"),
    [
        ("", "", (), "keep-all=1"),
        ("", "prune-backups: keep-last=3\n", (), "keep-last=3"),
        ("prune-backups keep-last=2", "prune-backups: keep-last=3\n", (), "keep-last=2"),
        ("maxfiles 4", "prune-backups: keep-last=3\n", (), "keep-last=4"),
        ("prune-backups keep-last=2", "", ("--prune-backups", "keep-daily=5"), "keep-daily=5"),
    ],
    ids=["nobody", "file", "storage before the file", "maxfiles", "command line first"],
)
def test_rule_of_the_storage_counts_where_none_is_given(
    section: str, conf: str, given: tuple[str, ...], rule: str, command: Run, lab: Path
) -> None:
    (lab / "nas").mkdir()
    with open(lab / "etc/pve/storage.cfg", "a") as file:
        file.write(f"\n\ndir: nas\n\tpath {lab / 'nas'}\n\tcontent backup\n")
        file.write(f"\t{section}\n" if section else "")
    (lab / "etc/vzdump.conf").write_text(conf)
    outcome = command("prune", "--root", lab, "--storage", "nas", *given, "--dry-run")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"retention of '{lab / 'nas' / 'dump'}': {rule}\n")


def test_rule_of_the_file_that_cannot_be_read_is_told(command: Run, lab: Path) -> None:
    (lab / "etc/vzdump.conf").write_text("prune-backups: keep-often=3\n")
    fill_storage(lab)
    outcome = command("prune", "--root", lab)
    assert outcome.code == 0
    assert outcome.err == (
        "WARN: parse error in '/etc/vzdump.conf' - 'prune-backups': "
        "invalid key in comma-separated list property: keep-often\n"
    )
    assert len(archives(lab)) == 3


def test_storage_that_is_not_there_is_refused_with_a_hint(command: Run, lab: Path) -> None:
    outcome = command("prune", "--root", lab, "--storage", "absent")
    assert outcome.code == 13
    assert outcome.err.splitlines()[0] == "ERROR: storage 'absent' does not exist"
    assert outcome.err.splitlines()[1].startswith("hint: ")


def test_root_that_is_no_node_is_a_config_error(command: Run, short_path: Path) -> None:
    outcome = command("prune", "--root", short_path, "--prune-backups", "keep-last=1")
    assert outcome.code == 10
    assert "is not laid out like a PVE node" in outcome.err
