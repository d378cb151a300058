"""One simulated run on one VM: with faults, then healed; and the verdict on both.

Owns the order of the two phases and of what others do meanwhile; the world is `scene`'s.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vzsim.checkers import Violation, judge
from vzsim.event_log import Lane
from vzsim.evidence import RECOVERY_PREFIX, Ending, Evidence, Observed
from vzsim.faults import Fault, FaultScript, Kind, Plane
from vzsim.faults.host import FaultyClock, FaultyJournals, FaultyNode
from vzsim.faults.packer import FaultyPacker
from vzsim.faults.programs import FaultyCommands, FaultyHooks
from vzsim.faults.store import FaultyStore, watch_files
from vzsim.kernel import Chance, SimulatedLoop
from vzsim.scenario import Scenario
from vzsim.scene import SECRET, VMID, Scene
from vzsim.system import Outcome, System, SystemPorts
from vzsim.trial import (
    BOOT_S,
    GUARDIAN_S,
    SECOND_PREFIX,
    SETTLE_S,
    TOOL_S_MAX,
    Report,
    describe,
    has_recovered,
    live,
)
from vzsim.world.clock import SimulatedIds

if TYPE_CHECKING:
    from vzsim.faults.pbs import FaultyServer

# Stands before the sites of runs that were before it all.
EARLIER_PREFIX = "earlier."
EARLIER_PAUSE_S = 2.0
# What a run holds.
OWN_LOCK = "backup"


class SingleTrial:
    """Both phases of one run."""

    def __init__(
        self,
        system: System,
        scenario: Scenario,
        script: FaultScript,
        *,
        seed: int,
        loop: SimulatedLoop,
    ) -> None:
        self._system = system
        self._scenario = scenario
        self._script = script
        self._seed = seed
        self._loop = loop
        self._scene = Scene(scenario, seed, loop)
        self._evidences: list[Evidence] = []
        self._violations: list[Violation] = []
        self._tool_ended_s = 0.0
        self._told: list[bool] = []
        self.plane = Plane(scenario.faults + script, self._scene.log)
        # The tool of the first attempt, then each recovery of it.
        self._planes = [self.plane]
        self._ids = SimulatedIds(Chance(seed).of("tool").stream())
        self._second: tuple[Plane, asyncio.Task[Outcome]] | None = None

    async def run(self) -> None:
        scene = self._scene
        await scene.begin()
        await self._run_earlier()
        self._loop.observe(scene.look)
        await self._attempt(0)
        ended_well = self._evidences[0].ending is Ending.OK
        was_bad = self.plane.triggered or self._violations or not ended_well
        if was_bad and self._scenario.heals:
            await scene.heal()
            for plane in self._planes:
                plane.end()
            scene.keep_older(self._evidences[-1])
            self.plane = Plane(FaultScript(), scene.log)
            await self._attempt(1)

    async def _run_earlier(self) -> None:
        """Backups that were made before, in a world where nothing goes wrong."""
        for _ in range(self._scenario.earlier_runs):
            plane = Plane(FaultScript(), self._scene.log, prefix=EARLIER_PREFIX)
            options = {"vmid": VMID, **self._scenario.options}
            outcome = await self._system.back_up(self._ports(plane), options)
            if outcome.error:
                self.note_crash(f"an earlier run failed: {outcome.error}")
            await asyncio.sleep(EARLIER_PAUSE_S)
            self._scene.observed = Observed(writes=self._scene.writer.record)

    async def _attempt(self, index: int) -> None:
        scene, plane = self._scene, self.plane
        if scene.server is not None:
            scene.older_marks = scene.server.marks()
        still_disks = scene.begin_attempt()
        plane.actors = {**scene.actors(), Kind.SECOND_RUN: self._start_second}
        watch_files(plane, scene.store)
        scene.hooks.calls.clear()
        scene.writer.start()
        self._told.clear()
        began_s = self._loop.time()
        ending, error, outcome = await self._run_tool(plane)
        job_at_end = scene.active_job()
        duration_s = self._tool_ended_s - began_s
        scene.log.tell(Lane.TOOL, f"ended {ending.value} {error}".rstrip())
        # Of a VM that is off, or was found off, nothing fixes what its disks hold.
        points_in_time = (
            dict(scene.host.points_in_time) or still_disks or scene.look_at_still_disks()
        )
        await asyncio.sleep(1.0)
        scene.writer.stop()
        await asyncio.sleep(SETTLE_S if plane.triggered else 10.0)
        scene.look()
        evidence = Evidence(
            scenario=self._scenario,
            attempt_index=index,
            triggered=self._triggered() if index == 0 else (),
            ending=ending,
            error=error,
            archive_path=outcome.archive_path if outcome else "",
            says_frozen=outcome.says_frozen if outcome else False,
            told_good=self._told[-1] if self._told else None,
            job_at_end=job_at_end,
            duration_s=duration_s,
            allowance_s=sum(each.allowance_s for each in self._planes) if index == 0 else 0.0,
            observed=scene.observed,
            rest=scene.collect(),
            points_in_time=points_in_time,
            local_spans=tuple(scene.clock.local_spans(began_s, began_s + duration_s)),
            older=dict(scene.older),
            older_marks=dict(scene.older_marks),
            secret=SECRET,
            hook_calls=tuple(scene.hooks.calls),
        )
        scene.observed.public_lines += [" ".join(argv) for argv in scene.commands.calls]
        self._evidences.append(evidence)
        self._violations += judge(evidence)

    async def _run_tool(self, plane: Plane) -> tuple[Ending, str, Outcome | None]:
        options = {"vmid": VMID, **self._scenario.options}
        task = await live(plane, self._system.back_up(self._ports(plane), options))
        self._tool_ended_s = self._loop.time()
        await self._end_second()
        if task is None:
            await self._recover()
            return Ending.KILLED, "", None
        if not task.done():
            plane.kill()
            return Ending.HUNG, f"no end within {TOOL_S_MAX:.0f} simulated seconds", None
        if any(journal.open_entries for journal in self._scene.journals.journals.values()):
            await self._recover()
        return ending_of(task)

    def _start_second(self, length_s: float) -> None:
        """Somebody starts the same tool on a VM that it works on."""
        if self._second is None and self._scene.node.lock_of(VMID) == OWN_LOCK:
            plane = Plane(FaultScript(), self._scene.log, prefix=SECOND_PREFIX)
            options = {"vmid": VMID, **self._scenario.options}
            work = self._system.back_up(self._ports(plane), options)
            self._second = plane, asyncio.ensure_future(work)

    async def _end_second(self) -> None:
        """It was refused, or it still waits for its turn and is given up now."""
        if self._second is None:
            return
        (plane, task), self._second = self._second, None
        self._planes.append(plane)
        if self._scene.observed.power_was_lost:
            plane.kill()
            return
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=TOOL_S_MAX)
        elif not task.cancelled() and task.exception() is None and not task.result().error:
            self._scene.observed.foreign_harms.append("a second run on the VM went through")

    async def _recover(self) -> None:
        """The guardian acts; one that is killed too leaves the rest to the next recovery."""
        for script in (self._scenario.faults + self._script, FaultScript()):
            await asyncio.sleep(BOOT_S if self._scene.observed.power_was_lost else GUARDIAN_S)
            plane = Plane(script, self._scene.log, prefix=RECOVERY_PREFIX)
            # A run that comes now is the next one; that is judged later.
            plane.actors = {**self._scene.actors(), Kind.SECOND_RUN: lambda length_s: None}
            watch_files(plane, self._scene.store)
            task = await live(plane, self._system.recover(self._ports(plane), VMID))
            self._planes.append(plane)
            if has_recovered(task, plane.kill, self.note_crash):
                return

    def _ports(self, plane: Plane) -> SystemPorts:
        scene = self._scene
        return SystemPorts(
            node=FaultyNode(plane, scene.node),
            store=FaultyStore(plane, scene.store),
            packer=FaultyPacker(plane, scene.packer),
            journals=FaultyJournals(plane, scene.journals),
            commands=FaultyCommands(plane, scene.commands),
            hooks=FaultyHooks(scene.hooks, lambda vmid: plane, scene.guest_stands),
            clock=FaultyClock(plane, scene.clock),
            ids=self._ids,
            server=self._server_of(plane),
            tell=lambda line: None if plane.is_dead else scene.tell(line),
            tell_end=lambda good: None if plane.is_dead else self._told.append(good),
        )

    def _server_of(self, plane: Plane) -> FaultyServer | None:
        scene = self._scene
        if scene.server is None:
            return None
        from vzsim.faults.pbs import FaultyServer

        return FaultyServer(plane, scene.server, scene.packer, scene.files)

    def end(self) -> None:
        """Let go of what a killed tool still holds."""
        for plane in (*self._planes, self.plane):
            plane.end()

    def dissolve(self) -> None:
        """Take the world apart once it is told: its circles would be left to the collector."""
        self._scene.dissolve()
        for plane in (*self._planes, self.plane):
            vars(plane).clear()
        vars(self).clear()

    def note_crash(self, text: str) -> None:
        """The simulation itself could not go on: the tool waits for what never comes."""
        self._violations.append(Violation(checker="bounded-waits", text=text))

    def _triggered(self) -> tuple[Fault, ...]:
        return tuple(fault for plane in self._planes for fault in plane.triggered)

    def report(self) -> Report:
        """Everything about the run."""
        for violation in self._violations:
            self._scene.log.tell(Lane.CHECK, violation.render())
        return Report(
            scenario=self._scenario,
            script=self._script,
            seed=self._seed,
            violations=tuple(self._violations),
            triggered=self._triggered(),
            visit_counts={
                site: count for plane in self._planes for site, count in plane.visit_counts.items()
            },
            families={
                site: family for plane in self._planes for site, family in plane.families.items()
            },
            evidences=tuple(self._evidences),
            ending=self._evidences[0].ending if self._evidences else Ending.HUNG,
            simulated_s=self._loop.time(),
            log=self._scene.log,
        )


def ending_of(task: asyncio.Task[Outcome]) -> tuple[Ending, str, Outcome | None]:
    """How a tool that was not killed came back, its error, and what it says."""
    if task.cancelled():
        return Ending.CANCELLED, "interrupted by signal", None
    error = task.exception()
    if error is not None:
        return Ending.CRASHED, describe(error), None
    outcome = task.result()
    return (Ending.FAILED if outcome.error else Ending.OK), outcome.error, outcome
