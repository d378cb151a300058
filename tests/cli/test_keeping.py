"""Whose word counts for retention, notes and protection, and what a job in a lab does with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.lab_command import Run, archives
from tests.engine.pbs_world import TARGET
from vzdump_qemu.cli.effective import make_backup_options, merge_options, read_file_options
from vzdump_qemu.cli.keeping import KeepSettings, make_keep_options, read_pool
from vzdump_qemu.errors import ConfigError
from vzdump_qemu.node.layout import NodeLayout
from vzdump_qemu.plan.options import BackupOptions, TargetOptions
from vzdump_qemu.plan.retention_rule import render_rule

STORAGES = """\
dir: nas
    path /mnt/nas
    content backup
    prune-backups keep-daily=7
    max-protected-backups 3

dir: plain
    path /mnt/plain
    content backup

pbs: server
    server pbs.example
    datastore store
    content backup
    prune-backups keep-last=5
"""


@pytest.fixture
def layout(tmp_path: Path) -> NodeLayout:
    (tmp_path / "etc/pve").mkdir(parents=True)
    (tmp_path / "etc/pve/storage.cfg").write_text(STORAGES.replace("    ", "\t"))
    (tmp_path / "etc/pve/corosync.conf").write_text("totem {\n  cluster_name: prod\n}\n")
    (tmp_path / "etc/pve/user.cfg").write_text(
        "user:root@pam:1:0::::::\npool:web:the web:100,102,200:nas:\npool:none::::\n"
    )
    return NodeLayout(root=str(tmp_path), node_name="node1")


def settle(layout: NodeLayout | None, given: dict[str, Any], conf: str = "") -> KeepSettings:
    merged = merge_options(given, read_file_options(conf).values)
    options = make_backup_options(merged, root="/", command_line="vzdump", cpu_count=4)
    return make_keep_options(merged, given, options, layout)


@pytest.mark.parametrize(
    ("given", "conf", "rule"),
    [
        ({"storage": "nas", "prune-backups": "keep-last=1"}, "", "keep-last=1"),
        ({"storage": "nas", "maxfiles": 2}, "", "keep-last=2"),
        ({"storage": "nas"}, "prune-backups: keep-last=9", "keep-daily=7"),
        ({"storage": "plain"}, "prune-backups: keep-last=9", "keep-last=9"),
        ({"storage": "plain"}, "maxfiles: 4", "keep-last=4"),
        ({"storage": "plain"}, "", "keep-all=1"),
        ({"dumpdir": "/d"}, "prune-backups: keep-last=9", "keep-last=9"),
    ],
)
def test_rule_of_the_command_line_beats_the_storages_beats_the_files(
    layout: NodeLayout, given: dict[str, Any], conf: str, rule: str
) -> None:
    retention = settle(layout, given, conf).keep.retention
    assert render_rule(retention.rule) == rule
    assert retention.remove is (rule != "keep-all=1")


def test_everything_else_reaches_the_engine(layout: NodeLayout) -> None:
    given = {"storage": "nas", "remove": False, "protected": True, "notes-template": "x"}
    settings = settle(layout, given)
    keep = settings.keep
    assert (keep.retention.remove, keep.protected, keep.notes_template) == (False, True, "x")
    assert (keep.protected_max, keep.cluster_name, settings.warnings) == (3, "prod", ())


def test_backups_at_a_server_are_kept_as_those_in_a_directory(layout: NodeLayout) -> None:
    settings = settle(layout, {"storage": "server"}, "protected: 1\nnotes-template: x\n")
    keep = settings.keep
    assert render_rule(keep.retention.rule) == "keep-last=5"
    assert keep.retention.remove
    assert (keep.protected, keep.notes_template, keep.cluster_name) == (True, "x", "prod")
    assert settings.warnings == ()
    settings = settle(layout, {"storage": "server", "prune-backups": "keep-last=1"})
    assert render_rule(settings.keep.retention.rule) == "keep-last=1"


def test_server_without_a_storage_has_notes_and_protection() -> None:
    given = {"repository": "tank", "protected": True, "notes-template": "x"}
    merged = merge_options(given, {})
    options = BackupOptions(target=TargetOptions(pbs=TARGET))
    settings = make_keep_options(merged, given, options, None)
    assert (settings.keep.protected, settings.keep.notes_template) == (True, "x")
    assert settings.warnings == ()


def test_protection_without_a_storage_has_no_effect_and_is_told() -> None:
    settings = settle(None, {"dumpdir": "/d", "protected": True})
    assert settings.warnings == ("option 'protected' has no effect without a storage",)


def test_members_of_a_pool_are_read(layout: NodeLayout) -> None:
    assert read_pool(layout, "web") == {100, 102, 200}
    assert read_pool(layout, "none") == frozenset()
    with pytest.raises(ConfigError, match="pool 'nope' does not exist"):
        read_pool(layout, "nope")


def test_backup_in_a_lab_gets_notes_and_protection_and_prunes(lab: Path, command: Run) -> None:
    dump = lab / "var/lib/vz/dump"
    dump.mkdir(parents=True, exist_ok=True)
    old = [dump / f"vzdump-qemu-100-2020_01_0{day}-00_00_00.vma" for day in (1, 2)]
    for path in old:
        path.write_bytes(b"")
        path.with_suffix(".log").write_text("")
    outcome = command(
        *("--root", lab, 100, "--prune-backups", "keep-last=2", "--protected"),
        *("--notes-template", "{{vmid}} on {{cluster}}", "--stdexcludes", "1", "--output", "log"),
    )
    assert outcome.code == 0, outcome.err
    lines = outcome.err.splitlines()
    assert lines[-1] == "TASK OK"
    assert "INFO: option 'stdexcludes' is for containers and has no effect on VMs" in lines
    assert "INFO: prune older backups with retention: keep-last=2" in lines
    # A protected archive covers nothing: the rule counts the other two.
    assert "INFO: pruned 0 backup(s)" in lines
    [*_, new] = (path for path in archives(lab) if path.suffix == ".vma")
    assert Path(f"{new}.notes").read_text() == "100 on standalone node"
    assert Path(f"{new}.protected").read_bytes() == b""
    second = command("--root", lab, 100, "--prune-backups", "keep-last=1", "--output", "log")
    assert second.code == 0, second.err
    assert f"INFO: removing backup 'local:backup/{old[0].name}'" in second.err
    assert "INFO: pruned 2 backup(s) not covered by keep-retention policy" in second.err
    assert not any(path.exists() or path.with_suffix(".log").exists() for path in old)
    assert new.exists()


def test_full_directory_refuses_by_the_limit(lab: Path, command: Run) -> None:
    assert command("--root", lab, 100).code == 0
    outcome = command("--root", lab, 100, "--prune-backups", "keep-last=1", "--remove", 0)
    assert outcome.code == 255
    assert "There is a max backup limit of 1 enforced" in outcome.err
    assert len(archives(lab)) == 1


def test_pool_of_a_lab_selects_its_members_here(lab: Path, command: Run) -> None:
    (lab / "etc/pve/user.cfg").write_text("pool:web::100,200::\npool:other::200::\n")
    outcome = command("--root", lab, "--pool", "web")
    assert outcome.code == 0, outcome.err
    assert outcome.err.splitlines()[0] == "INFO: starting new backup job: vzdump --pool web"
    assert len(archives(lab)) == 1
    nobody = command("--root", lab, "--pool", "other")
    assert (nobody.code, nobody.out, nobody.err) == (0, "", "")
    assert "pool 'nope' does not exist" in command("--root", lab, "--pool", "nope").err


def test_job_of_another_node_does_nothing(lab: Path, command: Run) -> None:
    outcome = command("--root", lab, 100, "--node", "elsewhere")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert archives(lab) == []
