"""What a run does with the archives of its VM: room, notes, protection, removal of older ones."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from tests.engine.world import STDOUT, World
from vzdump_qemu import events
from vzdump_qemu.engine.context import EnginePorts
from vzdump_qemu.plan.options import KeepOptions, TargetOptions
from vzdump_qemu.plan.retention_rule import RetentionSettings, parse_prune_backups
from vzsim.world.node import DUMP_DIRECTORY

OLD = [f"vzdump-qemu-100-2019_12_{day:02d}-01_00_00.vma.zst" for day in (1, 2, 3)]


def keep(rule: str = "keep-last=2", *, remove: bool = True, **more: object) -> KeepOptions:
    settings = RetentionSettings(rule=parse_prune_backups(rule), remove=remove)
    return KeepOptions(retention=settings, **more)  # type: ignore[arg-type]


def arrange(world: World, *names: str, options: KeepOptions, storage_id: str = "local") -> None:
    target = TargetOptions(
        storage_id=storage_id, dump_directory="" if storage_id else DUMP_DIRECTORY
    )
    world.options = replace(world.options, keep=options, target=target)

    def make(world: World) -> None:
        for name in names:
            world.files.create(f"{DUMP_DIRECTORY}/{name}")

    world.arrange = make


def names_left(world: World) -> set[str]:
    return {path.rpartition("/")[2] for path in world.archives()}


def test_older_archives_go_with_their_side_files_once_the_new_one_is_published(
    world: World,
) -> None:
    beside = [name.replace(".vma.zst", ".log") for name in OLD] + [f"{OLD[0]}.notes"]
    arrange(world, *OLD, *beside, options=keep())
    result = world.run()
    assert result is not None and result.error is None
    new = result.archive_path.rpartition("/")[2]
    assert names_left(world) == {new, OLD[2], OLD[2].replace(".vma.zst", ".log")}
    names = world.names()
    assert names.index("ArchivePublished") < names.index("PruneStarted")
    assert [event.name for event in world.told_of(events.BackupRemoving)] == OLD[:2]
    assert world.told_of(events.PruneStarted)[0].rule_text == "keep-last=2"
    assert world.told_of(events.PruneEnded)[0].removed_count == 2


def test_directory_without_a_storage_is_pruned_by_its_paths(world: World) -> None:
    arrange(world, *OLD, options=keep(), storage_id="")
    world.run()
    [first, _] = world.told_of(events.BackupRemoving)
    assert (first.storage_id, first.path) == ("", f"{DUMP_DIRECTORY}/{OLD[0]}")


def test_protected_renamed_and_foreign_archives_stay(world: World) -> None:
    others = ["vzdump-qemu-101-2019_12_01-01_00_00.vma", "vzdump-qemu-100-before-upgrade.vma"]
    lxc = "vzdump-lxc-100-2019_12_01-01_00_00.tar.zst"
    arrange(world, *OLD, f"{OLD[0]}.protected", *others, lxc, options=keep("keep-last=1"))
    world.run()
    assert {OLD[0], *others, lxc} <= names_left(world)
    assert {OLD[1], OLD[2]}.isdisjoint(names_left(world))


def test_archive_of_a_clock_that_was_set_back_is_not_pruned_itself(world: World) -> None:
    late = "vzdump-qemu-100-2099_01_01-01_00_00.vma.zst"
    arrange(world, late, options=keep("keep-last=1"))
    result = world.run()
    assert result is not None and result.error is None
    assert names_left(world) == {late, result.archive_path.rpartition("/")[2]}


@pytest.mark.parametrize("operation", ["rename", "fsync"])
def test_failed_run_removes_nothing(world: World, operation: str) -> None:
    arrange(world, *OLD, options=keep("keep-last=1"))
    made = world.arrange

    def fail(told: str, path: str) -> None:
        if told == operation and path.endswith(".vma.dat"):
            raise OSError(errno.EIO, "Input/output error", path)

    def arrange_failing(world: World) -> None:
        made(world)
        world.files.fault = fail

    world.arrange = arrange_failing
    result = world.run()
    assert result is not None and result.error is not None
    assert names_left(world) == set(OLD)
    assert not world.told_of(events.PruneStarted)


def test_archive_that_cannot_be_removed_fails_the_vm_and_keeps_no_other(world: World) -> None:
    arrange(world, *OLD, options=keep("keep-last=1"))
    made = world.arrange

    def fail(told: str, path: str) -> None:
        if told == "unlink" and path.endswith(OLD[0]):
            raise OSError(errno.EPERM, "Operation not permitted", path)

    def arrange_failing(world: World) -> None:
        made(world)
        world.files.fault = fail

    world.arrange = arrange_failing
    result = world.run()
    assert result is not None and str(result.error) == "error pruning backups - check log"
    [failed] = world.told_of(events.BackupRemovalFailed)
    assert failed.name == f"local:backup/{OLD[0]}"
    assert names_left(world) >= {OLD[0]}
    assert {OLD[1], OLD[2]}.isdisjoint(names_left(world))
    assert len(names_left(world)) == 2
    assert not world.told_of(events.PruneEnded)


def test_archive_protected_meanwhile_stays(world: World) -> None:
    arrange(world, *OLD, options=keep("keep-last=1"))

    original = world.engine_ports

    def watched() -> EnginePorts:
        ports = original()

        def emit(event: events.Event) -> None:
            ports.emit(event)
            if isinstance(event, events.BackupRemoving) and event.name == OLD[0]:
                world.files.create(f"{DUMP_DIRECTORY}/{OLD[0]}.protected")

        return replace(ports, emit=emit)

    world.engine_ports = watched  # type: ignore[method-assign]
    world.run()
    [failed] = world.told_of(events.BackupRemovalFailed)
    assert failed.text == f"cannot remove protected archive '{DUMP_DIRECTORY}/{OLD[0]}'"
    assert OLD[0] in names_left(world)


def test_full_storage_that_must_not_be_pruned_refuses_before_the_vm_is_touched(
    world: World,
) -> None:
    arrange(world, *OLD, options=keep("keep-last=3", remove=False))
    result = world.run()
    assert result is not None and result.error is not None
    assert str(result.error).startswith("There is a max backup limit of 3 enforced")
    assert world.qmp_log == []
    assert names_left(world) == set(OLD)


@pytest.mark.parametrize(
    ("storage_id", "is_refused"), [("local", True), ("", False)], ids=["storage", "directory"]
)
def test_renamed_archive_counts_against_the_limit_of_a_storage_alone(
    world: World, storage_id: str, is_refused: bool
) -> None:
    renamed = "vzdump-qemu-100-before-upgrade.vma"
    options = keep("keep-last=3", remove=False)
    arrange(world, *OLD[:2], renamed, options=options, storage_id=storage_id)
    result = world.run()
    assert result is not None
    assert (result.error is not None) is is_refused


def test_limit_of_protected_backups_is_kept(world: World) -> None:
    options = keep("keep-all=1", protected=True, protected_max=1)
    arrange(world, OLD[0], f"{OLD[0]}.protected", options=options)
    result = world.run()
    assert result is not None and str(result.error) == (
        "The number of protected backups per guest is limited to 1 on storage 'local'"
    )


def test_new_archive_gets_notes_and_protection(world: World) -> None:
    template = "{{guestname}} ({{vmid}}) on {{node}}, {{cluster}}\\nnightly"
    options = keep("keep-all=1", protected=True, notes_template=template, cluster_name="prod")
    arrange(world, options=options)
    result = world.run()
    assert result is not None and result.error is None
    path = result.archive_path
    assert world.files.read(f"{path}.notes") == b"web (100) on node1, prod\nnightly"
    assert world.files.read(f"{path}.protected") == b""
    names = world.names()
    assert names.index("NotesAdding") < names.index("BackupProtecting")


def test_directory_without_a_storage_gets_neither(world: World) -> None:
    options = keep("keep-all=1", protected=True, notes_template="x")
    arrange(world, options=options, storage_id="")
    world.assert_good(world.run())


@pytest.mark.parametrize("suffix", [".notes", ".protected"])
def test_notes_that_cannot_be_written_cost_a_warning_and_protection_the_run(
    world: World, suffix: str
) -> None:
    arrange(world, options=keep("keep-all=1", protected=True, notes_template="x"))

    def fail(told: str, path: str) -> None:
        if told == "create" and path.endswith(suffix):
            raise OSError(errno.ENOSPC, "No space left on device", path)

    world.arrange = lambda world: setattr(world.files, "fault", fail)
    result = world.run()
    assert result is not None
    if suffix == ".notes":
        assert result.error is None
        assert result.warnings[0].startswith("unable to add notes - ")
    else:
        assert str(result.error).startswith("unable to set protected flag - ")
    # Either way it is whole and stays.
    assert any(name.endswith(".vma.zst") for name in names_left(world))


def test_standard_output_knows_nothing_of_it(world: World) -> None:
    options = keep("keep-last=1", protected=True, notes_template="x")
    world.options = replace(world.options, keep=options, target=STDOUT)
    result = world.run()
    assert result is not None and result.error is None
    assert names_left(world) == set()
