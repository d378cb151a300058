"""What surrounds the runs of a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.engine.world import World
from vzdump_qemu import events
from vzdump_qemu.plan.options import HookOptions, TargetOptions


@pytest.mark.parametrize(
    ("io_priority", "argv"),
    [
        (7, ("/usr/bin/ionice", "-c2", "-n7", "-p", "4242")),
        (0, ("/usr/bin/ionice", "-c2", "-n0", "-p", "4242")),
        (8, ("/usr/bin/ionice", "-c3", "-p", "4242")),
    ],
)
def test_io_priority_is_set_for_the_job(
    world: World, io_priority: int, argv: tuple[str, ...]
) -> None:
    world.options = replace(world.options, io_priority=io_priority)
    world.assert_good(world.run())
    assert world.commands.calls == [argv]


def test_io_priority_not_asked_for_is_left_alone(world: World) -> None:
    world.options = replace(world.options, io_priority=None)
    world.assert_good(world.run())
    assert world.commands.calls == []


def test_io_priority_that_cannot_be_set_is_a_warning(world: World) -> None:
    async def refuse(argv: Sequence[str], _: tuple[int, ...]) -> tuple[int, Sequence[str]]:
        return 1, ("ionice: ioprio_set failed: Operation not permitted",)

    world.commands.programs["ionice"] = refuse
    world.assert_good(world.run())
    [warned] = world.told_of(events.Warned)
    assert warned.text.endswith("7 - ionice: ioprio_set failed: Operation not permitted")


def test_missing_ionice_is_a_warning(world: World) -> None:
    world.commands.programs.clear()
    world.assert_good(world.run())
    assert world.told_of(events.Warned)[0].text == "unable to find command 'ionice'"


def test_row_1_3_11_failed_job_init_and_a_missing_storage_are_both_told(world: World) -> None:
    async def fail(argv: Sequence[str], _: tuple[int, ...]) -> tuple[int, Sequence[str]]:
        return 3, ()

    world.hooks.programs["hook"] = fail
    world.options = replace(
        world.options,
        hook=HookOptions(script="/hook"),
        target=TargetOptions(dump_directory="/missing"),
    )
    assert world.run() is None
    assert world.batch is not None
    assert str(world.batch.error).splitlines() == [
        "command '/hook job-init' failed: exit code 3",
        "dumpdir '/missing' does not exist",
    ]
