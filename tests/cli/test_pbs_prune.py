"""``vzdump-qemu prune`` at a backup server; host behaviour 2.6, 2.7 and 5.8."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.lab_command import Run
from tests.pbs_server import DATASTORE, ServedPbs, served_pbs, upload
from vzdump_qemu.formats.pbs import BackupRef, Namespace
from vzdump_qemu.formats.pbs.json_text import canonical_json
from vzdump_qemu.stores.pbs.http1 import JSON_TYPE, Http1Request
from vzdump_qemu.stores.pbs.uploads import make_endpoint, make_management
from vzdump_qemu.stores.system import SystemClock

pytestmark = pytest.mark.slow

FIRST_S = 1_700_000_000  # 2023-11-14 22:13:20 UTC
DAY_S = 24 * 3600
DAYS = [f"vm/100/2023-11-{day}T22:13:20Z" for day in (14, 15, 16)]
OTHER = "vm/101/2023-11-14T22:13:20Z"
NO_RIGHT = f"""[[fault]]
kind = "reply"
endpoint = "%s /admin/datastore/{DATASTORE}/%s"
status = 403
text = "permission check failed"
count = 0
"""


def fill(pbs: ServedPbs) -> None:
    """Three daily backups of VM 100 and one of VM 101."""
    for index in range(3):
        content = bytes([index]) * 4096
        upload(pbs.target(), {"drive-scsi0": content}, (), time_s=FIRST_S + index * DAY_S)
    upload(pbs.target(), {"drive-scsi0": b"x" * 4096}, (), backup_id="101", time_s=FIRST_S)


@pytest.fixture
def pbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedPbs]:
    with served_pbs(tmp_path / "pbs") as served:
        fill(served)
        yield named(served, monkeypatch)


def named(pbs: ServedPbs, monkeypatch: pytest.MonkeyPatch) -> ServedPbs:
    pbs.announce(monkeypatch)
    return pbs


def left(pbs: ServedPbs) -> list[str]:
    management = make_management(pbs.target(), clock=SystemClock())
    return [one.backup.path for one in asyncio.run(management.list_backups())]


def protect(pbs: ServedPbs, path: str) -> None:
    management = make_management(pbs.target(), clock=SystemClock())
    asyncio.run(management.protect(BackupRef.parse(path)))


def damage_newest(pbs: ServedPbs) -> None:
    """Lose the chunks of the newest backup of VM 100: its byte is in no other."""
    before = set(pbs.chunk_paths())
    upload(pbs.target(), {"drive-scsi0": b"\7" * 4096}, (), time_s=FIRST_S + 3 * DAY_S)
    for path in set(pbs.chunk_paths()) - before:
        path.write_bytes(path.read_bytes()[:-1] + b"!")


def verify_at_server(pbs: ServedPbs, path: str) -> None:
    """As a verify job of the server does."""
    backup = BackupRef.parse(path)
    body = canonical_json(
        {
            "backup-type": "vm",
            "backup-id": backup.backup_group.backup_id,
            "backup-time": backup.backup_time_s,
        }
    )
    request = Http1Request(
        method="POST",
        path=f"/api2/json/admin/datastore/{DATASTORE}/verify",
        body=body,
        content_type=JSON_TYPE,
    )
    endpoint = make_endpoint(pbs.target(), clock=SystemClock())
    asyncio.run(endpoint.call(request, str, what="task"))


def test_json_is_a_list_of_name_keep_and_reason(command: Run, pbs: ServedPbs) -> None:
    protect(pbs, DAYS[1])
    outcome = command(
        *("prune", "--repository", pbs.repository, "--prune-backups", "keep-daily=1"),
        *("--dry-run", "--json"),
    )
    assert (outcome.code, outcome.err) == (0, "")
    assert json.loads(outcome.out) == [
        {"name": DAYS[2], "keep": True, "reason": "keep-daily"},
        {"name": DAYS[1], "keep": True, "reason": "protected"},
        {"name": DAYS[0], "keep": False, "reason": "not covered by keep-retention policy"},
        {"name": OTHER, "keep": True, "reason": "keep-daily"},
    ]
    assert left(pbs) == [*DAYS, OTHER]


def test_dry_run_draws_a_calendar_and_removes_nothing(command: Run, pbs: ServedPbs) -> None:
    outcome = command(
        *("prune", "--repository", pbs.repository, "--prune-backups", "keep-last=1", "--dry-run")
    )
    assert (outcome.code, outcome.err) == (0, "")
    head = f"retention of '{pbs.repository}': keep-last=1\n\nVM 100: 1 stay, 2 go\n"
    assert outcome.out.startswith(head)
    assert "November 2023\n" in outcome.out
    assert outcome.out.splitlines()[-1].startswith("would remove 2 of 4 backup(s), ")
    assert outcome.out.endswith(
        " as they restore; room comes with the server's garbage collection\n"
    )
    assert left(pbs) == [*DAYS, OTHER]


def test_only_the_groups_of_the_vms_that_were_named_are_pruned(
    command: Run, pbs: ServedPbs
) -> None:
    upload(pbs.target(), {"drive-scsi0": b"y" * 4096}, (), backup_id="101", time_s=FIRST_S + DAY_S)
    outcome = command(
        *("prune", 100, 105, "--repository", pbs.repository, "--prune-backups", "keep-last=2")
    )
    assert outcome.code == 0
    assert outcome.err == f"WARN: VM 105 has no backups in '{pbs.repository}'\n"
    assert outcome.out == (
        "prune older backups with retention: keep-last=2\n"
        f"removing backup '{DAYS[0]}'\n"
        "pruned 1 backup(s) not covered by keep-retention policy\n"
    )
    assert left(pbs) == [*DAYS[1:], OTHER, "vm/101/2023-11-15T22:13:20Z"]


def test_storage_of_a_lab_is_pruned_by_its_own_rule(
    command: Run, lab: Path, pbs: ServedPbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    pbs.add_to(lab, "bak", "prune-backups keep-last=2")
    for name in pbs.environment:
        monkeypatch.delenv(name)
    outcome = command("prune", "--root", lab, "--storage", "bak")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"removing backup 'bak:backup/{DAYS[0]}'\n" in outcome.out
    assert left(pbs) == [*DAYS[1:], OTHER]


def test_namespace_is_pruned_by_itself(command: Run, pbs: ServedPbs) -> None:
    (pbs.directory / DATASTORE / "ns" / "a").mkdir(parents=True)
    target = replace(pbs.target(), namespace=Namespace.parse("a"))
    management = make_management(target, clock=SystemClock())
    assert asyncio.run(management.list_backups()) == []
    outcome = command(
        *("prune", "--repository", pbs.repository, "--ns", "a", "--prune-backups", "keep-last=1")
    )
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.endswith("pruned 0 backup(s)\n")
    assert left(pbs) == [*DAYS, OTHER]


def test_last_backup_that_is_not_known_to_be_damaged_stays(command: Run, pbs: ServedPbs) -> None:
    damage_newest(pbs)
    newest = "vm/100/2023-11-17T22:13:20Z"
    verify_at_server(pbs, newest)
    outcome = command(
        *("prune", 100, "--repository", pbs.repository, "--prune-backups", "keep-last=1", "--json")
    )
    assert [(row["name"], row["reason"]) for row in json.loads(outcome.out) if row["keep"]] == [
        (newest, "keep-last"),
        (DAYS[2], "last whole archive of the VM"),
    ]
    assert left(pbs) == [DAYS[2], newest, OTHER]


def test_verify_sees_a_backup_that_the_server_has_not_looked_at(
    command: Run, pbs: ServedPbs
) -> None:
    damage_newest(pbs)
    words = ("prune", 100, "--repository", pbs.repository, "--prune-backups", "keep-last=1")
    trusting = json.loads(command(*words, "--dry-run", "--json").out)
    assert [row["keep"] for row in trusting] == [True, False, False, False]
    reading = json.loads(command(*words, "--dry-run", "--json", "--verify").out)
    assert [row["keep"] for row in reading] == [True, True, False, False]


def test_backup_protected_after_the_decision_stays_and_the_others_go(
    command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = NO_RIGHT % ("DELETE", "snapshots")
    script = script.replace("403", "400").replace("count = 0", "count = 1")
    script = script.replace("permission check failed", "cannot remove protected snapshot")
    with served_pbs(tmp_path / "pbs", script) as served:
        fill(named(served, monkeypatch))
        outcome = command(
            *("prune", "--repository", served.repository, "--prune-backups", "keep-last=1")
        )
        assert left(served) == [DAYS[0], DAYS[2], OTHER]
    assert outcome.code == 70
    assert outcome.err.splitlines()[:2] == [
        f"ERROR: error when removing backup '{DAYS[0]}' - cannot remove protected snapshot",
        "ERROR: error pruning backups - check log",
    ]


def test_token_that_may_not_prune_is_told_which_role_it_needs(
    command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served_pbs(tmp_path / "pbs", NO_RIGHT % ("POST", "prune")) as served:
        fill(named(served, monkeypatch))
        outcome = command(
            *("prune", "--repository", served.repository, "--prune-backups", "keep-last=1")
        )
        assert left(served) == [*DAYS, OTHER]
    assert outcome.code == 64
    told, hint = outcome.err.splitlines()
    assert told == "ERROR: permission check failed"
    assert "DatastorePowerUser" in hint


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ((), 2, "prune-backups: property is missing"),
        (("--prune-backups", "keep-last=1", "--storage", "s"), 2, "'storage' and 'repository'"),
        (("--prune-backups", "keep-last=1", "--dumpdir", "."), 2, "'dumpdir' and 'repository'"),
        (("--prune-backups", "keep=1"), 10, "prune-backups: invalid key"),
        (("--prune-backups", "keep-last=1", "--ns", "nope"), 64, "namespace not found"),
    ],
)
def test_wrong_command_line_has_one_reason_and_removes_nothing(
    words: tuple[str, ...], code: int, text: str, command: Run, pbs: ServedPbs
) -> None:
    outcome = command("prune", "--repository", pbs.repository, *words)
    assert (outcome.code, outcome.out) == (code, "")
    assert text in outcome.err
    assert left(pbs) == [*DAYS, OTHER]


def test_words_of_a_server_do_not_go_with_a_storage_of_files(command: Run, lab: Path) -> None:
    outcome = command("prune", "--root", lab, "--storage", "local", "--ns", "a")
    assert outcome.code == 10
    assert "cannot use option 'ns' with storage 'local'" in outcome.err
