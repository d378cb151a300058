"""One simulated job over several VMs: with faults, then healed; and the verdict on both.

Owns the two phases; what it shares with a run on one VM is `vzsim.trial`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from vzdump_qemu.errors import ConfigError
from vzsim.batch.evidence import BatchEvidence, Heard, Notice, Summary
from vzsim.batch.judging import judge_batch
from vzsim.batch.planes import Planes, split_script
from vzsim.batch.routes import make_ports, watch_all_files
from vzsim.batch.system import BatchOutcome, BatchPorts, BatchSystem, VmOutcome
from vzsim.batch.world import BatchWorld
from vzsim.checkers import Violation, judge
from vzsim.event_log import Lane
from vzsim.evidence import RECOVERY_PREFIX, Ending, Evidence
from vzsim.fakeqmp.disks import DiskContent
from vzsim.faults import FaultScript, Plane
from vzsim.kernel import Chance, SimulatedLoop
from vzsim.scenario import Scenario
from vzsim.scene import SECRET
from vzsim.system import System
from vzsim.trial import (
    BOOT_S,
    GUARDIAN_S,
    SETTLE_S,
    TOOL_S_MAX,
    Report,
    describe,
    has_recovered,
    live,
)
from vzsim.world.clock import SimulatedIds

_T = TypeVar("_T")
_QUIET_S = 10.0
_ENDS_OF_ALL = frozenset({Ending.KILLED, Ending.CANCELLED, Ending.HUNG, Ending.CRASHED})


@dataclass(slots=True, kw_only=True)
class _Attempt:
    """One attempt as it goes on; `planes` are the tool's, then those of each recovery."""

    index: int
    vmids: tuple[int, ...]
    planes: list[Planes]
    began_s: float
    ended_s: float = 0.0
    ending: Ending = Ending.OK
    error: str = ""
    outcome: BatchOutcome | None = None
    heard: Heard = field(default_factory=Heard)
    still: dict[int, dict[str, DiskContent]] = field(default_factory=dict)
    jobs_at_end: dict[int, str] = field(default_factory=dict)

    def result_of(self, vmid: int) -> VmOutcome | None:
        """What the tool says of a VM."""
        runs = self.outcome.runs if self.outcome else ()
        return next((run for run in runs if run.vmid == vmid), None)


class BatchTrial:
    """Both phases of one job. Raises ConfigError for a system that backs up one VM only."""

    def __init__(
        self,
        system: System,
        scenario: Scenario,
        script: FaultScript,
        *,
        seed: int,
        loop: SimulatedLoop,
    ) -> None:
        if not isinstance(system, BatchSystem):
            raise ConfigError("this system does not back up several VMs in one job")
        self._system = system
        self._scenario = scenario
        self._script = script
        self._seed = seed
        self._loop = loop
        self._world = BatchWorld(scenario, seed, loop)
        self._own_files = frozenset(self._world.common.files.files)
        self._batches: list[BatchEvidence] = []
        self._violations: list[Violation] = []
        self._ids = SimulatedIds(Chance(seed).of("tool").stream())
        self._planes: list[Planes] = []
        self._living: list[Planes] = []
        self._world.on_power_loss = self._kill_all

    async def run(self) -> None:
        """Both phases."""
        world = self._world
        await world.begin()
        self._loop.observe(world.look)
        await self._attempt(0, world.vmids, self._scenario.faults + self._script)
        again = self._in_trouble()
        if again and self._scenario.heals:
            for planes in self._planes:
                planes.end()
            await world.heal(again)
            for vmid, evidence in self._batches[0].evidences.items():
                world.scenes[vmid].keep_older(evidence)
            await self._attempt(1, again, FaultScript())

    def _in_trouble(self) -> tuple[int, ...]:
        """VMs that are backed up once more when the world is healed."""
        batch = self._batches[0]
        if self._violations or batch.error:
            return batch.vmids
        return tuple(
            vmid
            for vmid, evidence in batch.evidences.items()
            if evidence.triggered or evidence.ending is not Ending.OK
        )

    # -- one attempt ---------------------------------------------------------------------------

    async def _attempt(self, index: int, vmids: Sequence[int], script: FaultScript) -> None:
        world = self._world
        world.forget_runs()
        planes = Planes(script, world.log, world.vmids, on_visit=world.touched)
        self._planes.append(planes)
        attempt = _Attempt(
            index=index, vmids=tuple(vmids), planes=[planes], began_s=self._loop.time()
        )
        planes.let_act(world.actors_of)
        for scene in world.scenes.values():
            attempt.still[scene.vmid] = scene.begin_attempt()
            scene.writer.start()
        watch_all_files(planes.plane_of, world.common.files)
        world.common.hooks.calls.clear()
        await self._run_tool(attempt, planes)
        for vmid in vmids:
            attempt.jobs_at_end[vmid] = world.scenes[vmid].active_job()
        world.log.tell(Lane.TOOL, f"ended {attempt.ending.value} {attempt.error}".rstrip())
        for scene in world.scenes.values():
            # Of a VM that is off, or was found off, nothing fixes what its disks hold.
            if not scene.host.points_in_time:
                still = attempt.still[scene.vmid] or scene.look_at_still_disks()
                attempt.still[scene.vmid] = still
        await asyncio.sleep(1.0)
        for scene in world.scenes.values():
            scene.writer.stop()
        has_faults = any(True for part in attempt.planes for _ in part.triggered())
        await asyncio.sleep(SETTLE_S if has_faults else _QUIET_S)
        world.look_at_all()
        attempt.heard.most_at_once = world.most_at_once
        last_s = max(world.began_s.values(), default=attempt.began_s)
        attempt.heard.last_begun_s = last_s - attempt.began_s
        attempt.heard.job_lines += [" ".join(argv) for argv in world.common.commands.calls]
        self._judge(attempt)

    def _judge(self, attempt: _Attempt) -> None:
        world = self._world
        evidences = {vmid: self._collect(attempt, vmid) for vmid in attempt.vmids}
        batch = BatchEvidence(
            scenario=self._scenario,
            attempt_index=attempt.index,
            vmids=attempt.vmids,
            ending=attempt.ending,
            error=attempt.error,
            results=tuple(run.vmid for run in attempt.outcome.runs) if attempt.outcome else (),
            evidences=evidences,
            triggered=tuple(fault for part in attempt.planes for fault in part.triggered()),
            duration_s=attempt.ended_s - attempt.began_s,
            allowance_s=sum(
                plane.allowance_s for part in attempt.planes for _, plane in part.each()
            ),
            heard=attempt.heard,
            hook_calls=tuple(world.common.hooks.calls),
            stray_files=world.stray_files(self._own_files),
            secret=SECRET,
        )
        self._batches.append(batch)
        for vmid, evidence in evidences.items():
            self._violations += [
                replace(found, text=f"vm{vmid}: {found.text}") for found in judge(evidence)
            ]
        self._violations += judge_batch(batch)

    def _collect(self, attempt: _Attempt, vmid: int) -> Evidence:
        """What is known of one VM; a job that ended as a whole ended so for each."""
        world, scene = self._world, self._world.scenes[vmid]
        result, planes = attempt.result_of(vmid), attempt.planes
        ending, error = attempt.ending, attempt.error
        if ending not in _ENDS_OF_ALL:
            error = attempt.error if result is None else result.error
            ending = Ending.FAILED if error or result is None else Ending.OK
        told = attempt.heard.ends.get(vmid)
        began_s = world.began_s.get(vmid, attempt.ended_s)
        spans = world.common.clock.local_spans(attempt.began_s, attempt.ended_s)
        return Evidence(
            scenario=self._scenario_of(attempt, vmid),
            attempt_index=attempt.index,
            triggered=tuple(f for part in planes for f in part.triggered_for(vmid)),
            ending=ending,
            error=error,
            archive_path=result.archive_path if result else "",
            says_frozen=result.says_frozen if result else False,
            told_good=told[-1] if told else None,
            job_at_end=attempt.jobs_at_end[vmid],
            duration_s=world.ended_s.get(vmid, attempt.ended_s) - began_s,
            allowance_s=sum(part.allowance_s_of(vmid) for part in planes),
            observed=scene.observed,
            rest=scene.collect(),
            points_in_time=dict(scene.host.points_in_time) or attempt.still[vmid],
            local_spans=tuple(spans),
            older=dict(scene.older),
            secret=SECRET,
            hook_calls=tuple(call for call in world.common.hooks.calls if call.vmid == vmid),
        )

    def _scenario_of(self, attempt: _Attempt, vmid: int) -> Scenario:
        """What holds for one VM of it."""
        scenario = self._scenario
        expect = "ok"
        if attempt.ending in _ENDS_OF_ALL:
            expect = scenario.expect
        elif attempt.result_of(vmid) is None and scenario.expect != "ok":
            # Whether the job fails as it should is for `judging`.
            expect = attempt.error
        own = split_script(scenario.faults, (vmid,))
        return replace(
            scenario,
            faults=own.get(vmid, FaultScript()) + own.get(0, FaultScript()),
            expect=scenario.failing.get(str(vmid), expect),
        )

    # -- the tool ------------------------------------------------------------------------------

    async def _run_tool(self, attempt: _Attempt, planes: Planes) -> None:
        ports = self._ports(planes, attempt.heard)
        options, world = dict(self._scenario.options), self._world
        if attempt.index > 0:
            options.pop("deadline_s", None)  # whoever runs it again has the time for it
        work = self._system.back_up_all(ports, options, attempt.vmids)
        task = await self._live(planes, work)
        attempt.ended_s = self._loop.time()
        if task is None:
            attempt.ending = Ending.KILLED
        elif not task.done():
            planes.kill()
            attempt.ending = Ending.HUNG
            attempt.error = f"no end within {TOOL_S_MAX:.0f} simulated seconds"
            return
        elif task.cancelled():
            attempt.ending, attempt.error = Ending.CANCELLED, "interrupted by signal"
        elif (error := task.exception()) is not None:
            attempt.ending, attempt.error = Ending.CRASHED, describe(error)
        else:
            outcome = attempt.outcome = task.result()
            attempt.error = outcome.error
            has_failed = bool(outcome.error) or any(run.error for run in outcome.runs)
            attempt.ending = Ending.FAILED if has_failed else Ending.OK
        # One guardian per run that left something.
        left = [
            vmid
            for vmid, scene in world.scenes.items()
            if any(
                journal.owned or journal.open_entries
                for journal in scene.journals.journals.values()
            )
        ]
        await asyncio.gather(*(self._recover(attempt, vmid) for vmid in left))

    async def _recover(self, attempt: _Attempt, vmid: int) -> None:
        """One VM's guardian acts; one that is killed too leaves the rest to the next recovery."""
        world, scene = self._world, self._world.scenes[vmid]
        for script in (self._scenario.faults + self._script, FaultScript()):
            await asyncio.sleep(BOOT_S if scene.observed.power_was_lost else GUARDIAN_S)
            planes = Planes(
                script, world.log, (vmid,), prefix=RECOVERY_PREFIX, on_visit=world.touched
            )
            planes.let_act(lambda _: world.actors_of(vmid))
            self._planes.append(planes)
            attempt.planes.append(planes)
            watch_all_files(self._guardian_planes, world.common.files)
            work = self._system.recover(self._ports(planes, attempt.heard, vmid=vmid), vmid)
            task = await self._live(planes, work)
            if has_recovered(task, planes.kill, self.note_crash, whose=f"vm{vmid}: "):
                return

    async def _live(self, planes: Planes, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T] | None:
        """Run a process of the tool; None if it was killed."""
        self._living.append(planes)
        try:
            return await live(planes.job, work, on_start=planes.set_tool)
        finally:
            self._living.remove(planes)

    def _guardian_planes(self, vmid: int) -> Plane:
        """Of the last one that came for a VM; the job's of the last one for nobody's files."""
        for planes in reversed(self._planes):
            if vmid in planes.of_vm:
                return planes.of_vm[vmid]
        return self._planes[-1].job

    def _kill_all(self) -> None:
        for planes in self._living:
            planes.kill()

    def _ports(self, planes: Planes, heard: Heard, *, vmid: int = 0) -> BatchPorts:
        """Of the tool, or of one VM's guardian."""
        world = self._world

        def tell_of_run(vmid: int, line: str) -> None:
            if not planes.is_dead:
                world.scenes[vmid].tell(f"vm{vmid}/{line}")

        def tell(line: str) -> None:
            if vmid:
                tell_of_run(vmid, line)
            elif not planes.is_dead:
                world.log.tell(Lane.TOOL, line)
                heard.job_lines.append(line)

        def tell_end_of_run(vmid: int, good: bool) -> None:
            if not planes.is_dead:
                heard.ends.setdefault(vmid, []).append(good)
                world.run_ended(vmid, is_odd=bool(planes.triggered_for(vmid)))

        def tell_summary(failed_vmids: Sequence[int], error: str) -> None:
            if not planes.is_dead:
                heard.summaries.append(Summary(failed_vmids=tuple(failed_vmids), error=error))

        def send(subject: str, text: str, failed: bool) -> None:
            if not planes.is_dead:
                heard.notices.append(Notice(subject=subject, text=text, failed=failed))

        return make_ports(
            planes,
            world,
            ids=self._ids,
            guarded_vmid=vmid,
            tell=tell,
            tell_of_run=tell_of_run,
            tell_end_of_run=tell_end_of_run,
            tell_summary=tell_summary,
            send=send,
        )

    # -- the end -------------------------------------------------------------------------------

    def note_crash(self, text: str) -> None:
        """The simulation itself could not go on: the tool waits for what never comes."""
        self._violations.append(Violation(checker="bounded-waits", text=text))

    def end(self) -> None:
        """Let go of what a killed tool still holds."""
        for planes in self._planes:
            planes.end()

    def report(self) -> Report:
        """Everything about the job."""
        for violation in self._violations:
            self._world.log.tell(Lane.CHECK, violation.render())
        return Report(
            scenario=self._scenario,
            script=self._script,
            seed=self._seed,
            violations=tuple(self._violations),
            triggered=tuple(fault for planes in self._planes for fault in planes.triggered()),
            visit_counts={
                site: count
                for planes in self._planes
                for site, count in planes.visit_counts().items()
            },
            families={
                site: family
                for planes in self._planes
                for site, family in planes.families().items()
            },
            evidences=tuple(
                evidence for batch in self._batches for evidence in batch.evidences.values()
            ),
            ending=self._batches[0].ending if self._batches else Ending.HUNG,
            batches=tuple(self._batches),
            simulated_s=self._loop.time(),
            log=self._world.log,
        )

    def dissolve(self) -> None:
        """Take the world apart once it is told."""
        self._world.dissolve()
        for planes in self._planes:
            for _, plane in planes.each():
                vars(plane).clear()
        vars(self).clear()
