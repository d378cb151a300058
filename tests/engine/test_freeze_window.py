"""The freeze window's odd ends: whose freeze it is, and guests that are off."""

from __future__ import annotations

import pytest

from tests.engine.world import World
from vzdump_qemu import events
from vzdump_qemu.engine.freeze import FREEZE_ANSWER_S
from vzdump_qemu.engine.run_state import GuestLook, look_at_guest
from vzdump_qemu.events import Consistency
from vzdump_qemu.units import NS_PER_S
from vzsim.fakeqmp.run_state import RunState
from vzsim.fakeqmp.script import AgentRules, CommandRule, Script


def test_freeze_refused_because_another_froze_the_guest_is_not_thawed(world: World) -> None:
    # The status could not be had, so the refusal itself is what tells.
    world.script = Script(agent=AgentRules(disabled=("guest-fsfreeze-status",)))

    world.arrange = World.freeze_by_another
    result = world.run()
    assert result is not None and result.error is None
    assert result.consistency is Consistency.CRASH
    assert "ThawIssued" not in world.names()
    agent = world.machine.process.agent
    assert agent is not None and agent.frozen_count == 1
    assert world.journals.journals == {}


def test_guest_that_powered_off_inside_the_window_is_not_waited_for(world: World) -> None:
    def power_off(event: events.Event) -> None:
        world.told.append(event)
        if isinstance(event, events.JobStartIssued):
            world.machine.process.control.guest_powers_off()

    world._emit = power_off  # type: ignore[method-assign]
    result = world.run()
    assert result is not None and result.error is None
    assert not world.told_of(events.UndoFailed)
    window_s = result.freeze_window_s
    assert window_s is not None and window_s < 10


def test_guest_that_falls_asleep_inside_the_window_is_not_waited_for(world: World) -> None:
    def fall_asleep(event: events.Event) -> None:
        world.told.append(event)
        if isinstance(event, events.JobStartIssued):
            world.machine.process.control.guest_suspends()
        if isinstance(event, events.JobAccepted):
            window_ended_s.append(world.clock.now_ns() / NS_PER_S)

    window_ended_s: list[float] = []
    world._emit = fall_asleep  # type: ignore[method-assign]
    result = world.run()
    assert result is not None and result.error is None
    assert [failed.what for failed in world.told_of(events.UndoFailed)] == ["thaw the guest"]
    assert window_ended_s[0] < 10


@pytest.mark.parametrize(
    ("run_state", "look"),
    [
        (RunState.RUNNING, GuestLook.RUNS),
        (RunState.PAUSED, GuestLook.HALTED),
        (RunState.SUSPENDED, GuestLook.HALTED),
        (RunState.GUEST_PANICKED, GuestLook.HALTED),
        (RunState.IO_ERROR, GuestLook.HALTED),
    ],
)
def test_guest_that_does_not_run_is_expected_to_answer_nothing(
    world: World, run_state: RunState, look: GuestLook
) -> None:
    async def look_then(world: World) -> None:
        world.machine.process.control.enter(run_state)
        assert await look_at_guest(world.machine, timeout_s=5) is look

    world.play(look_then)


def test_agent_that_forgot_the_freeze_it_carried_out_is_asked_for_the_status_soon(
    world: World,
) -> None:
    # Killed right after freezing and started anew, an agent never answers the freeze.
    world.script = Script(command=(CommandRule(name="guest-fsfreeze-freeze", silent=True),))
    result = world.run()
    world.assert_good(result)
    assert result is not None and result.consistency is Consistency.FROZEN
    window_s = result.freeze_window_s
    assert window_s is not None and FREEZE_ANSWER_S <= window_s < FREEZE_ANSWER_S + 5
    assert not world.told_of(events.FreezeStillWaiting)
