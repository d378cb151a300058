"""One simulated trial: a system under test in a scene, with a fault script and a seed.

Owns its loop, from which nothing reaches the next trial. The same (system, scenario, fault script,
seed) gives the same log, byte for byte.
"""

from __future__ import annotations

import asyncio

from vzsim.batch.trial import BatchTrial
from vzsim.faults import FaultScript
from vzsim.kernel import Chance, Deadlock, SimulatedLoop, collecting_seldom
from vzsim.scenario import Scenario
from vzsim.single_trial import SingleTrial
from vzsim.system import System
from vzsim.trial import Report, Trial


def simulate(system: System, scenario: Scenario, script: FaultScript, seed: int) -> Report:
    """Run one backup with faults, heal, run another; judge both."""
    with collecting_seldom():
        return _simulate(system, scenario, script, seed)


def _simulate(system: System, scenario: Scenario, script: FaultScript, seed: int) -> Report:
    loop = SimulatedLoop(Chance(seed).of("schedule").stream())
    loop.set_exception_handler(lambda loop, context: None)
    trial = _make_trial(system, scenario, script, seed=seed, loop=loop)
    try:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(trial.run())
        except Deadlock as error:
            trial.note_crash(f"Deadlock: {error}")
        trial.end()
        is_quiet = _let_go(loop)
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    report = trial.report()
    if is_quiet:
        trial.dissolve()
    return report


def _make_trial(
    system: System, scenario: Scenario, script: FaultScript, *, seed: int, loop: SimulatedLoop
) -> Trial:
    if not scenario.is_batch:
        return SingleTrial(system, scenario, script, seed=seed, loop=loop)
    return BatchTrial(system, scenario, script, seed=seed, loop=loop)


def _let_go(loop: SimulatedLoop) -> bool:
    """End what still waits, so that nothing of this run reaches the next; whether all of it did."""
    for _ in range(3):
        left = [task for task in asyncio.all_tasks(loop) if not task.done()]
        if not left:
            return True
        for task in left:
            task.cancel()

        try:
            loop.run_until_complete(asyncio.wait(left, timeout=1.0))
        except Deadlock:
            return False
    return False
