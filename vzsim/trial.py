"""What every simulated trial of a system has: its two phases, its times, its report.

Owns these, and how a process of the tool lives and ends; a run on one VM is `single_trial`'s, a
job over several is `batch.trial`'s.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from vzdump_qemu.errors import BackupError
from vzsim.checkers import Violation
from vzsim.event_log import EventLog
from vzsim.evidence import Ending, Evidence
from vzsim.faults import Family, Fault, FaultScript, Plane
from vzsim.scenario import Scenario

if TYPE_CHECKING:
    from vzsim.batch.evidence import BatchEvidence

# A tool that works this long in simulated time does not end by itself.
TOOL_S_MAX = 24 * 3600.0
# Late replies and requests that still lie somewhere come to light within this time.
SETTLE_S = 1000.0
# From a tool's death to its guardian's first act.
GUARDIAN_S = 0.1
# From a power loss to the first act of whoever puts things back, on the node that booted.
BOOT_S = 90.0
# Stands before the sites of a second run on the same VM.
SECOND_PREFIX = "second."

_T = TypeVar("_T")


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


def has_recovered(
    task: asyncio.Task[bool] | None,
    kill: Callable[[], None],
    note_crash: Callable[[str], None],
    *,
    whose: str = "",
) -> bool:
    """Whether a recovery is over for good; else the next one goes on.

    Args:
        task: of the recovery, as `live` gave it.
        kill: ends what does not end by itself.
        whose: stands before what is said of it.
    """
    if task is None:
        return False
    if not task.done():
        kill()
        note_crash(f"{whose}recovery does not end within {TOOL_S_MAX:.0f} simulated seconds")
        return True
    if task.cancelled() or isinstance(task.exception(), BackupError):
        return False  # it could not do all of it
    if task.exception() is not None:
        note_crash(f"{whose}recovery crashed: {describe(task.exception())}")
        return True
    return task.result()


def describe(error: BaseException | None) -> str:
    """A crash in one line: what, and where."""
    assert error is not None
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
    return f"{type(error).__name__}: {error} ({place})"
