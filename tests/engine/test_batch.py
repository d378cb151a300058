"""What surrounds the runs of a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.engine.world import World
from vzdump_qemu import events


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
