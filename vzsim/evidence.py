"""What one simulated run left to be judged: plain values, collected once it is at rest.

Owns the shapes that checkers read. Collecting is `vzsim.simulation`'s, judging `vzsim.checkers`'.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from vzsim.faults import Fault, Kind
from vzsim.scenario import Scenario
from vzsim.world.writer import WriteRecord

RECOVERY_PREFIX = "recovery."
"""Stands before the sites of a recovery, as opposed to those of the run itself."""


class Ending(enum.Enum):
    """How the system under test came back."""

    OK = "ok"
    FAILED = "failed"
    CANCELLED = "cancelled"
    KILLED = "killed"
    HUNG = "hung"
    CRASHED = "crashed"


@dataclass(slots=True)
class Span:
    """Lengths of a condition of the guest, in seconds."""

    longest_s: float = 0.0
    total_s: float = 0.0
    since_s: float | None = None

    def look(self, *, holds: bool, now_s: float) -> bool:
        """Take one look; True if the condition began or ended."""
        if holds == (self.since_s is not None):
            return False
        if holds:
            self.since_s = now_s
        elif self.since_s is not None:
            length_s = now_s - self.since_s
            self.longest_s = max(self.longest_s, length_s)
            self.total_s += length_s
            self.since_s = None
        return True


@dataclass(slots=True, kw_only=True)
class Observed:
    """What the world saw during the run."""

    frozen: Span = field(default_factory=Span)
    halted: Span = field(default_factory=Span)
    writes: WriteRecord = field(default_factory=WriteRecord)
    was_frozen_at_point_in_time: bool = False
    point_in_time_count: int = 0
    # Acts of others that the tool has to live with.
    operator_paused: bool = False
    operator_started: bool = False
    guest_went_off: bool = False
    # Acts of the tool on what is not its own.
    foreign_harms: list[str] = field(default_factory=list)
    # What operators could read: log lines and argument vectors.
    public_lines: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """The world when everything is quiet."""

    files: Mapping[str, bytes]
    directories: tuple[str, ...]
    lock: str
    foreign_lock: str
    open_descriptor_count: int
    live_compressor_count: int
    alive_handle_count: int
    run_state: str
    is_frozen: bool
    can_thaw: bool
    active_job: str
    extra_nodes: tuple[str, ...]
    extra_images: tuple[str, ...]
    recorded_fleecing: tuple[str, ...]
    journalled: tuple[str, ...]
    stdout: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known of one attempt.

    Attributes:
        attempt_index: 0 with faults, 1 after healing.
        allowance_s: what the faults of this attempt may have cost.
        archive_path: as the tool says.
        points_in_time: disks by device id as the attempt's job fixed them.
        older: archives that were there before, by path.
    """

    scenario: Scenario
    attempt_index: int
    triggered: tuple[Fault, ...]
    ending: Ending
    error: str
    archive_path: str
    says_frozen: bool
    duration_s: float
    allowance_s: float
    observed: Observed
    rest: Rest
    points_in_time: Mapping[str, bytes]
    older: Mapping[str, bytes]
    secret: str

    def hit(self, *prefixes: str) -> bool:
        """Whether a fault happened at a site with one of these beginnings."""
        sites = (fault.site.removeprefix(RECOVERY_PREFIX) for fault in self.triggered)
        return any(site.startswith(prefixes) for site in sites)

    def met(self, *kinds: Kind) -> bool:
        """Whether a fault of one of these kinds happened."""
        return any(fault.kind in kinds for fault in self.triggered)

    def new_archives(self) -> dict[str, bytes]:
        """Files under a final name that were not there before."""
        return {
            path: data
            for path, data in self.rest.files.items()
            if ".vma" in path and not path.endswith((".dat", ".log")) and path not in self.older
        }
