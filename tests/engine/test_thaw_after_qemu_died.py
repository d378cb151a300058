"""A QEMU that dies inside the freeze window takes the frozen guest with it."""

from __future__ import annotations

from tests.engine.world import World
from vzdump_qemu import events
from vzsim.fakeqmp.script import CommandRule, Moment, Script


def test_thaw_of_a_dead_qemu_is_not_tried_again(world: World) -> None:
    world.script = Script(command=(CommandRule(name="backup", die=Moment.BEFORE),))
    world.assert_failed_clean(world.run(), "executing QMP command to start backup failed")
    assert not world.told_of(events.ThawRetried)
    assert not world.told_of(events.UndoFailed)
