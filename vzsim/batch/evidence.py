"""What one simulated job over several VMs left to be judged, besides the evidence of each VM.

Owns the shapes that `vzsim.batch.judging` reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vzsim.evidence import Ending, Evidence
from vzsim.faults import Fault
from vzsim.scenario import Scenario
from vzsim.world.hooks import HookSeen


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How the job ended, as its operator is told: VMs that failed, and the job's own error."""

    failed_vmids: tuple[int, ...]
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One message about the job, as it was handed over for sending."""

    subject: str
    text: str
    failed: bool


@dataclass(slots=True, kw_only=True)
class Heard:
    """What the tool said of one job while it went on.

    Attributes:
        summaries: more than one is one too many.
        ends: per VM whether its run ended well, as often as it was told.
        notices: messages that were handed over for sending.
        job_lines: of the log, what belongs to no VM's run.
        most_at_once: how many VMs had the tool's lock at one instant.
        last_begun_s: when the last VM was begun, since the job's begin.
    """

    summaries: list[Summary] = field(default_factory=list)
    ends: dict[int, list[bool]] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)
    job_lines: list[str] = field(default_factory=list)
    most_at_once: int = 0
    last_begun_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEvidence:
    """All that is known of one attempt at a job.

    Attributes:
        attempt_index: 0 with faults, 1 after healing.
        error: the job's own, apart from those of its VMs.
        results: VMs with a result, in the order given; one that comes twice is there twice.
        evidences: of every VM of the job.
        triggered: as a script names them.
        stray_files: of the node that are no VM's and were not there before.
    """

    scenario: Scenario
    attempt_index: int
    vmids: tuple[int, ...]
    ending: Ending
    error: str
    results: tuple[int, ...]
    evidences: Mapping[int, Evidence]
    triggered: tuple[Fault, ...]
    duration_s: float
    allowance_s: float
    heard: Heard
    hook_calls: tuple[HookSeen, ...]
    stray_files: tuple[str, ...]
    secret: str

    @property
    def parallel_max(self) -> int:
        """How many runs may be under way at a time."""
        options = self.scenario.options
        at_most = int(options.get("max_parallel", 1))
        # All VMs of a simulated node are on one storage.
        return min(at_most, int(options.get("storage_limit", at_most)))

    @property
    def failed_vmids(self) -> tuple[int, ...]:
        """VMs whose result is a failure."""
        return tuple(
            vmid
            for vmid in sorted(set(self.results))
            if self.evidences[vmid].ending is not Ending.OK
        )
