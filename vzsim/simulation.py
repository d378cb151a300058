"""One simulated run: a system under test in a scene, with a fault script and a seed.

Owns the two phases: with faults, then healed; and the verdict on both. The same (system, scenario,
fault script, seed) gives the same log, byte for byte. A system is loaded by entry point (group
``vzsim.systems``); nothing here knows which one it is.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from vzdump_qemu.errors import BackupError, ConfigError
from vzdump_qemu.journal_ports import Journals
from vzdump_qemu.ports import ArchiveStore, Clock, CommandRunner, Ids, Node, VmaPacker
from vzsim.checkers import Violation, judge
from vzsim.event_log import EventLog, Lane
from vzsim.evidence import RECOVERY_PREFIX, Ending, Evidence, Observed
from vzsim.faults import Family, Fault, FaultScript, Kind, Plane
from vzsim.faults.hooks import FaultyHooks
from vzsim.faults.host import FaultyClock, FaultyCommands, FaultyJournals, FaultyNode
from vzsim.faults.packer import FaultyPacker
from vzsim.faults.store import FaultyStore, watch_files
from vzsim.kernel import Chance, Deadlock, SimulatedLoop, collecting_seldom
from vzsim.scenario import Scenario
from vzsim.scene import SECRET, VMID, Scene
from vzsim.world.clock import SimulatedIds

if TYPE_CHECKING:
    from vzsim.batch.evidence import BatchEvidence
    from vzsim.faults.pbs import FaultyServer

SYSTEMS_GROUP = "vzsim.systems"
DEFAULT_SYSTEM = "vzdump-qemu"
# A tool that works this long in simulated time does not end by itself.
TOOL_S_MAX = 24 * 3600.0
# Late replies and requests that still lie somewhere come to light within this time.
SETTLE_S = 1000.0
# From a tool's death to its guardian's first act.
GUARDIAN_S = 0.1
# From a power loss to the first act of whoever puts things back, on the node that booted.
BOOT_S = 90.0
# Stands before the sites of a second run on the same VM, and the lock that a run holds.
SECOND_PREFIX = "second."
# ... and before those of runs that were before it all.
EARLIER_PREFIX = "earlier."
EARLIER_PAUSE_S = 2.0
OWN_LOCK = "backup"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemPorts:
    """What a system under test gets to work with.

    Attributes:
        hooks: runs the operator's hook script.
        server: reaches a backup server, if there is one in this world.
        tell: takes one line of the tool's log.
        tell_end: takes whether the backup ended well, as its operator is told; a tool that is
            cancelled after that tells no other end.
    """

    node: Node
    store: ArchiveStore
    packer: VmaPacker
    journals: Journals
    commands: CommandRunner
    hooks: CommandRunner
    clock: Clock
    ids: Ids
    server: FaultyServer | None
    tell: Callable[[str], None]
    tell_end: Callable[[bool], None]


class Outcome(Protocol):
    """What a system says about its backup: `error` is empty for a good end."""

    @property
    def error(self) -> str: ...

    @property
    def archive_path(self) -> str: ...

    @property
    def says_frozen(self) -> bool: ...


class System(Protocol):
    """A backup tool on simulated ports."""

    async def back_up(self, ports: SystemPorts, options: Mapping[str, Any]) -> Outcome:
        """Back up one VM; cancelled when a signal comes."""
        ...

    async def recover(self, ports: SystemPorts, vmid: int) -> bool:
        """Put back what a killed `back_up` (or a killed `recover`) left; whether it was all.

        Called as well when a `back_up` ended with open lines in its journal, as a process that
        watches over it would.
        """
        ...


class Trial(Protocol):
    """Both phases of one run, or of one job over several VMs."""

    async def run(self) -> None:
        """Make it."""

    def note_crash(self, text: str) -> None:
        """The simulation itself could not go on: the tool waits for what never comes."""

    def end(self) -> None:
        """Let go of what a killed tool still holds."""

    def report(self) -> Report:
        """Everything about it."""
        ...

    def dissolve(self) -> None:
        """Take the world apart once it is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one simulated run showed.

    Attributes:
        visit_counts: uses per site in the phase with faults.
        triggered: the faults that happened, in order.
        backup_count: whole backups that were simulated, the ones made before included.
        evidences: per attempt; of a job over several VMs those of each VM, one after the other.
        ending: of the first attempt.
        batches: per attempt at a job over several VMs.
    """

    scenario: Scenario
    script: FaultScript
    seed: int
    violations: tuple[Violation, ...]
    triggered: tuple[Fault, ...]
    visit_counts: Mapping[str, int]
    families: Mapping[str, Family]
    evidences: tuple[Evidence, ...]
    ending: Ending
    simulated_s: float
    log: EventLog
    batches: tuple[BatchEvidence, ...] = ()

    @property
    def backup_count(self) -> int:
        return self.scenario.earlier_runs + len(self.evidences)


def load_system(name: str = DEFAULT_SYSTEM) -> System:
    """The system registered under that name. Raises ConfigError."""
    found = entry_points(group=SYSTEMS_GROUP)
    for entry in found:
        if entry.name == name:
            system: System = entry.load()
            return system
    names = ", ".join(sorted(entry.name for entry in found)) or "none"
    raise ConfigError(f"no system '{name}' to test", hint=f"there are: {names}")


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
        return _Trial(system, scenario, script, seed=seed, loop=loop)
    # A job over several VMs is built of what is here.
    from vzsim.batch.trial import BatchTrial

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


class _Trial:
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
            if task is None:
                continue
            if not task.done():
                plane.kill()
                text = f"recovery does not end within {TOOL_S_MAX:.0f} simulated seconds"
                self.note_crash(text)
                return
            if task.cancelled() or isinstance(task.exception(), BackupError):
                continue  # it could not do all of it, and the next one will
            if task.exception() is not None:
                self.note_crash(f"recovery crashed: {describe(task.exception())}")
            elif not task.result():
                continue
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


async def live(
    plane: Plane,
    work: Coroutine[Any, Any, _T],
    *,
    on_start: Callable[[asyncio.Task[Any]], None] = lambda task: None,
) -> asyncio.Task[_T] | None:
    """Run a process of the tool; None if it was killed."""
    died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    plane.on_kill.append(lambda: died.set_result(None))
    task = asyncio.ensure_future(work)
    plane.tool = task
    on_start(task)
    waiting: set[asyncio.Future[Any]] = {task, died}
    await asyncio.wait(waiting, timeout=TOOL_S_MAX, return_when=asyncio.FIRST_COMPLETED)
    return None if plane.is_dead else task


def ending_of(task: asyncio.Task[Outcome]) -> tuple[Ending, str, Outcome | None]:
    """How a tool that was not killed came back, its error, and what it says."""
    if task.cancelled():
        return Ending.CANCELLED, "interrupted by signal", None
    error = task.exception()
    if error is not None:
        return Ending.CRASHED, describe(error), None
    outcome = task.result()
    return (Ending.FAILED if outcome.error else Ending.OK), outcome.error, outcome


def describe(error: BaseException | None) -> str:
    """A crash in one line: what, and where."""
    assert error is not None
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
    return f"{type(error).__name__}: {error} ({place})"
