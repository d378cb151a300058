"""What a run does with the backups of its VM at a server: room, notes, protection, pruning, log.

Host behaviour 1.7 (steps 5, 23, 24, 32), 2.6 and 5.8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from tests.engine.pbs_world import TARGET, PbsWorld
from vzdump_qemu import events
from vzdump_qemu.engine.context import EnginePorts, RunResult
from vzdump_qemu.errors import TargetError
from vzdump_qemu.formats.pbs import BlobDecoder, DataBlob, Namespace
from vzdump_qemu.plan.options import KeepOptions, TargetOptions
from vzdump_qemu.plan.retention_rule import RetentionSettings, parse_prune_backups
from vzsim.fakepbs.accounts import AUDIT, BACKUP, READ
from vzsim.fakepbs.faults import Fault, FaultKind

LOG = b"2026-01-01 00:00:00 INFO: Starting Backup of VM 100 (qemu)\n"


def keep(rule: str = "keep-all=1", *, remove: bool = True, **more: object) -> KeepOptions:
    settings = RetentionSettings(
        rule=parse_prune_backups(rule), remove=remove and rule != "keep-all=1"
    )
    return KeepOptions(retention=settings, **more)  # type: ignore[arg-type]


@dataclass
class KeptWorld(PbsWorld):
    """A world whose runs have logs.

    Attributes:
        log: what every run's log holds; an error if it cannot be read.
    """

    log: bytes | TargetError | None = LOG

    def engine_ports(self) -> EnginePorts:
        return replace(super().engine_ports(), read_log=self._read_log)

    def _read_log(self, log_path: str) -> bytes | None:
        # Closed by then: what is told later is not in it.
        assert self.told_of(events.RunClosed)
        assert log_path == "/var/log/vzdump/qemu-100.log"
        if isinstance(self.log, TargetError):
            raise self.log
        return self.log

    def stored_log(self) -> bytes:
        encoded = self._datastore.read_file(self._place, self.backups()[-1], "client.log.blob")
        return bytes(BlobDecoder().decode(DataBlob.parse(encoded)))

    def protect(self, index: int) -> None:
        backup = self.backups()[index]
        self._datastore.set_protected(self._place, backup, is_protected=True)

    def is_protected(self, index: int = -1) -> bool:
        return self._datastore.is_protected(self._place, self.backups()[index])

    def grant(self, *privileges: str) -> None:
        auth_id = str(TARGET.repository.auth_id)
        [account] = [each for each in self.pbs.config.accounts if each.auth_id == auth_id]
        self.pbs.accounts.add(replace(account, privileges={"/": frozenset(privileges)}))


@pytest.fixture
def world() -> KeptWorld:
    return KeptWorld()


def play(
    world: KeptWorld, options: KeepOptions, *, before_count: int = 0, storage_id: str = "pbs1"
) -> RunResult:
    """Backups without any rule, then one with these options."""
    return play_scene(world, options, before_count=before_count, storage_id=storage_id)


def play_scene(
    world: KeptWorld,
    options: KeepOptions,
    *,
    before_count: int = 0,
    storage_id: str = "pbs1",
    arrange: Callable[[KeptWorld], None] = lambda _: None,
) -> RunResult:
    results: list[RunResult] = []

    async def scene(world: PbsWorld) -> None:
        assert isinstance(world, KeptWorld)
        plain = world.options
        for _ in range(before_count):
            result = await world.back_up()
            assert result.error is None
        arrange(world)
        world.told.clear()
        target = TargetOptions(storage_id=storage_id) if storage_id else TargetOptions(pbs=TARGET)
        world.options = replace(plain, keep=options, target=target)
        results.append(await world.back_up())

    world.play(scene)
    [result] = results
    return result


def test_new_backup_gets_notes_protection_and_log_in_that_order(world: KeptWorld) -> None:
    template = "{{guestname}} ({{vmid}}) on {{node}}, {{cluster}}\\nnightly"
    options = keep(protected=True, notes_template=template, cluster_name="prod")
    result = play(world, options)
    assert result.error is None
    notes = world.manifest().unprotected.notes
    assert notes == "web (100) on node1, prod\nnightly"
    assert world.is_protected()
    assert world.stored_log() == LOG
    names = [type(event).__name__ for event in world.told]
    wanted = ["PbsBackupPublished", "NotesAdding", "BackupProtecting", "RunSucceeded", "RunClosed"]
    assert [name for name in names if name in wanted] == wanted
    assert result.warnings == ()


def test_server_without_a_storage_gets_all_of_it(world: KeptWorld) -> None:
    options = keep("keep-last=1", notes_template="x")
    assert play(world, options, before_count=1, storage_id="").error is None
    assert len(world.backups()) == 1
    assert world.manifest().unprotected.notes == "x"


def test_older_backups_go_once_the_new_one_is_final(world: KeptWorld) -> None:
    result = play(world, keep("keep-last=2,keep-daily=0"), before_count=3)
    assert result.error is None
    assert [backup.path for backup in world.backups()][-1] == result.archive_path
    assert len(world.backups()) == 2
    names = [type(event).__name__ for event in world.told]
    wanted = ["PbsBackupPublished", "PruneStarted", "ServerPruning", "PruneEnded"]
    assert [name for name in names if name in wanted] == wanted
    assert world.told_of(events.ServerPruning)[0].group == "vm/100"
    assert world.told_of(events.PruneEnded)[0].removed_count == 2


def test_protected_backup_stays_and_covers_nothing(world: KeptWorld) -> None:
    options = keep("keep-last=2")
    result = play_scene(world, options, before_count=3, arrange=lambda world: world.protect(0))
    assert result.error is None
    assert len(world.backups()) == 3
    assert world.is_protected(0)
    assert world.told_of(events.PruneEnded)[0].removed_count == 1


def test_new_protected_backup_covers_nothing_and_stays(world: KeptWorld) -> None:
    result = play(world, keep("keep-last=1", protected=True), before_count=2)
    assert result.error is None
    assert len(world.backups()) == 2
    assert world.backups()[-1].path == result.archive_path


def test_backups_of_another_namespace_are_left_alone() -> None:
    world = KeptWorld(target=replace(TARGET, namespace=Namespace.parse("a")))
    world.pbs.datastores["tank"].make_namespace(Namespace.parse("a"))
    counts: list[int] = []

    async def scene(world: PbsWorld) -> None:
        inner, world.target = world.target, TARGET
        world.node.storages.servers["pbs1"] = TARGET
        for _ in range(2):
            assert (await world.back_up()).error is None
        world.target = world.node.storages.servers["pbs1"] = inner
        world.options = replace(world.options, keep=keep("keep-last=1", notes_template="x"))
        for _ in range(2):
            assert (await world.back_up()).error is None
        counts.append(len(world.backups()))
        world.target = TARGET
        counts.append(len(world.backups()))

    world.play(scene)
    assert counts == [1, 2]


def test_failed_run_prunes_nothing_and_hands_over_no_log(world: KeptWorld) -> None:
    def fail(world: KeptWorld) -> None:
        world.pbs.faults.add(Fault(endpoint="POST /finish", kind=FaultKind.REPLY, count=0))

    result = play_scene(world, keep("keep-last=1"), before_count=2, arrange=fail)
    assert result.error is not None
    assert len(world.backups()) == 2
    assert not world.told_of(events.PruneStarted)
    assert not world.told_of(events.Warned)


def test_full_group_that_must_not_be_pruned_refuses_before_the_vm_is_touched(
    world: KeptWorld,
) -> None:
    options = keep("keep-last=2", remove=False)
    result = play_scene(world, options, before_count=2, arrange=lambda w: w.qmp_log.clear())
    assert str(result.error).startswith("There is a max backup limit of 2 enforced")
    assert world.qmp_log == []
    assert len(world.backups()) == 2


def test_protected_backups_do_not_count_against_the_limit(world: KeptWorld) -> None:
    options = keep("keep-last=2", remove=False)
    result = play_scene(world, options, before_count=2, arrange=lambda world: world.protect(0))
    assert result.error is None
    assert len(world.backups()) == 3


def test_limit_of_protected_backups_is_kept(world: KeptWorld) -> None:
    options = keep(protected=True, protected_max=1)
    result = play_scene(world, options, before_count=1, arrange=lambda world: world.protect(0))
    assert str(result.error) == (
        "The number of protected backups per guest is limited to 1 on storage 'pbs1'"
    )


def test_token_that_may_only_back_up_fails_the_vm_whose_backup_stays(world: KeptWorld) -> None:
    options = keep("keep-last=1")
    result = play_scene(
        world, options, before_count=2, arrange=lambda world: world.grant(BACKUP, READ, AUDIT)
    )
    assert str(result.error) == "error pruning backups - check log"
    assert result.error is not None
    assert "DatastorePowerUser" in result.error.hint
    assert result.error.hint.startswith("the new backup itself is complete; ")
    [failed] = world.told_of(events.ServerPruneFailed)
    assert (failed.group, failed.text) == ("vm/100", "permission check failed")
    assert len(world.backups()) == 3
    assert not world.told_of(events.PruneEnded)


def test_notes_that_cannot_be_written_cost_a_warning(world: KeptWorld) -> None:
    def fail(world: KeptWorld) -> None:
        fault = Fault(endpoint="PUT /admin/datastore/tank/notes", kind=FaultKind.REPLY)
        world.pbs.faults.add(fault)

    result = play_scene(world, keep(notes_template="x"), arrange=fail)
    assert result.error is None
    [warning] = result.warnings
    assert warning.startswith("unable to add notes - ")


def test_protection_that_fails_fails_the_vm(world: KeptWorld) -> None:
    def fail(world: KeptWorld) -> None:
        fault = Fault(endpoint="PUT /admin/datastore/tank/protected", kind=FaultKind.REPLY)
        world.pbs.faults.add(fault)

    result = play_scene(world, keep("keep-last=1", protected=True), before_count=1, arrange=fail)
    assert str(result.error).startswith("unable to set protected flag - ")
    assert len(world.backups()) == 2
    assert not world.told_of(events.PruneStarted)


@pytest.mark.parametrize("log", [None, TargetError("unable to read log file")])
def test_log_that_is_not_there_keeps_no_backup_from_being_good(
    log: TargetError | None, world: KeptWorld
) -> None:
    world.log = log
    result = play(world, keep())
    assert result.error is None
    texts = ["uploading backup task log failed: unable to read log file"]
    assert list(result.warnings) == (texts if log else [])


def test_log_that_the_server_does_not_take_costs_a_warning_after_the_end(world: KeptWorld) -> None:
    def fail(world: KeptWorld) -> None:
        fault = Fault(endpoint="POST /admin/datastore/tank/upload-backup-log", kind=FaultKind.REPLY)
        world.pbs.faults.add(fault)

    result = play_scene(world, keep(), arrange=fail)
    assert result.error is None
    [warning] = result.warnings
    assert warning.startswith("uploading backup task log failed: ")
    names = [type(event).__name__ for event in world.told]
    assert names.index("RunClosed") < names.index("Warned")
