"""Exactly one notification per job, after everything else was told: host behaviour 1.14."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace

import pytest

from tests.engine.world import World
from vzdump_qemu import events
from vzdump_qemu.errors import INTERRUPTED_TEXT, VmLocked
from vzdump_qemu.plan.options import HookOptions, TargetOptions

LOCK_TEXT = "can't acquire lock '/var/run/vzdump.lock' (wait = 0)"


def missing_directory(world: World) -> None:
    world.options = replace(world.options, target=TargetOptions(dump_directory="/nowhere"))


def busy_lock(world: World) -> None:
    @asynccontextmanager
    async def refuse(*, timeout_s: float) -> AsyncIterator[None]:
        raise VmLocked(LOCK_TEXT)
        yield

    def arrange(arranged: World) -> None:
        held: Callable[..., AbstractAsyncContextManager[None]] = refuse
        arranged.node.hold_global_lock = held  # type: ignore[method-assign]

    world.arrange = arrange
    world.options = replace(world.options, lock_wait_s=0.0)


def locked_vm(world: World) -> None:
    world.config += "lock: migrate\n"


def failing_hook(phase: str) -> Callable[[World], None]:
    def arrange(world: World) -> None:
        async def run(argv: Sequence[str], _: tuple[int, ...]) -> tuple[int, Sequence[str]]:
            return (1 if argv[1] == phase else 0), ()

        world.hooks.programs["hook"] = run
        world.options = replace(world.options, hook=HookOptions(script="/usr/bin/hook"))

    return arrange


@pytest.mark.parametrize(
    ("arrange", "error"),
    [
        (lambda world: None, ""),
        (missing_directory, "dumpdir '/nowhere' does not exist"),
        (busy_lock, LOCK_TEXT),
        (locked_vm, ""),
        (failing_hook("job-init"), "hook"),
        (failing_hook("job-start"), "hook"),
        (failing_hook("job-end"), "hook"),
        (failing_hook("backup-start"), ""),
    ],
    ids=[
        *("good", "constructor", "lock", "failed VM"),
        *("job-init", "job-start", "job-end", "backup-start"),
    ],
)
def test_job_is_told_once_after_its_end(
    world: World, arrange: Callable[[World], None], error: str
) -> None:
    arrange(world)
    world.run()
    [last] = world.notifier.calls
    assert last is world.told[-1]
    assert isinstance(last, events.JobEnded)
    assert error in last.error and bool(last.error) == bool(error)


@pytest.mark.parametrize("moment", [events.RunStarted, events.JobAccepted, events.FreezeIssued])
def test_cancelled_job_is_told_once_after_its_end(world: World, moment: type[events.Event]) -> None:
    world.cancel_on = moment
    assert world.run() is None
    [last] = world.notifier.calls
    assert last is world.told[-1]
    assert isinstance(last, events.JobEnded)
    assert last.error == INTERRUPTED_TEXT
    world.assert_nothing_left()


def test_job_cancelled_while_it_is_told_is_told_to_the_end(world: World) -> None:
    world.notifier.takes_s = 5.0
    world.cancel_on = events.JobEnded
    assert world.run() is None
    assert len(world.notifier.calls) == 1
    assert len(world.archives()) == 1
