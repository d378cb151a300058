"""What one simulated run left to be judged: plain values, collected once it is at rest.

Owns the shapes that checkers read. Collecting is `vzsim.single_trial`'s, judging `vzsim.checkers`'.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from vzdump_qemu.errors import VmaError
from vzsim.fakeqmp.disks import DiskContent
from vzsim.faults import Fault, Kind
from vzsim.scenario import Scenario
from vzsim.world.hooks import HookSeen
from vzsim.world.restore import restore_disks
from vzsim.world.server_rest import ServerRest
from vzsim.world.writer import GuestMark, WriteRecord

_TOO_OLD = "backup timestamp is older than last backup"
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

    @property
    def holds(self) -> bool:
        """As the last look found it."""
        return self.since_s is not None

    def look(self, *, holds: bool, now_s: float) -> bool:
        """Take one look; True if the condition began or ended."""
        if holds is self.holds:
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
    # What the guest knew of its file system when the tool's job fixed its point in time.
    guest_mark: GuestMark | None = None
    point_in_time_count: int = 0
    # Acts of others that the tool has to live with.
    operator_paused: bool = False
    operator_started: bool = False
    # ... from off: whatever the guest was before, it is no longer.
    was_booted: bool = False
    guest_went_off: bool = False
    # ... while a job of ours had fixed its point in time already.
    went_off_in_job: bool = False
    operator_stopped: bool = False
    power_was_lost: bool = False
    guest_panicked: bool = False
    guest_slept: bool = False
    guest_woke: bool = False
    taken_lock: str = ""
    # Acts of the tool on what is not its own.
    foreign_harms: list[str] = field(default_factory=list)
    # Acts of the tool on the VM once it had given the VM's lock back.
    unlocked_acts: list[str] = field(default_factory=list)
    # What operators could read: log lines and argument vectors.
    public_lines: list[str] = field(default_factory=list)

    def lose_power(self) -> None:
        """The node starts anew: what operators and guests had done to the VM no longer counts."""
        self.power_was_lost = True
        self.operator_paused = self.operator_started = self.operator_stopped = False
        self.guest_went_off = self.guest_panicked = self.guest_slept = self.guest_woke = False


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
    # What the backup server holds, if there is one.
    server: ServerRest | None = None
    # Files that a power loss would take, or a part of them.
    undurable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known of one attempt.

    Attributes:
        attempt_index: 0 with faults, 1 after healing.
        allowance_s: what the faults of this attempt may have cost.
        archive_path: as the tool says.
        told_good: how the run ended as its operator was told; None if nothing was said.
        job_at_end: a backup job of the tool that is active when the tool itself has ended.
        points_in_time: disks by device id as the attempt's job fixed them.
        local_spans: all local times that the node's clock showed while the tool lived.
        older: archives that were there before, by path.
        hook_calls: of the operator's script, in order.
        older_marks: backups that the server had before, by path, as `ServerRest.marks`.
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
    points_in_time: Mapping[str, DiskContent]
    local_spans: tuple[tuple[datetime, datetime], ...]
    older: Mapping[str, bytes]
    secret: str
    older_marks: Mapping[str, str] = field(default_factory=dict)
    told_good: bool | None = None
    job_at_end: str = ""
    hook_calls: tuple[HookSeen, ...] = ()
    _restored: dict[str, dict[str, DiskContent]] = field(default_factory=dict, repr=False)

    def hit(self, *prefixes: str) -> bool:
        """Whether a fault happened at a site with one of these beginnings."""
        sites = (fault.site.removeprefix(RECOVERY_PREFIX) for fault in self.triggered)
        return any(site.startswith(prefixes) for site in sites)

    def met(self, *kinds: Kind) -> bool:
        """Whether a fault of one of these kinds happened."""
        return any(fault.kind in kinds for fault in self.triggered)

    @property
    def is_too_old(self) -> bool:
        """The clock went back: no server takes a backup that is older than the last it has."""
        return self.rest.server is not None and _TOO_OLD in self.error

    def restore(self, path: str) -> Mapping[str, DiskContent]:
        """Disks by device id, of an archive (decoded once) or of a new backup at the server.

        Standard output for an empty path.

        Raises: VmaError if it is not a whole archive.
        """
        if path not in self._restored:
            server = self.rest.server
            if server is not None:
                if path in server.damaged:
                    raise VmaError(server.damaged[path])
                return server.disks[path]
            data = self.rest.files[path] if path else self.rest.stdout
            self._restored[path] = restore_disks(data)
        return self._restored[path]

    def archive_paths(self) -> list[str]:
        """What is there to be restored: new final names, and a finished standard output.

        Where there is a server, its new final backups.
        """
        if (server := self.rest.server) is not None:
            return sorted(path for path in server.marks if path not in self.older_marks)
        to_stdout = self.ending is Ending.OK and self.scenario.options.get("stdout")
        return sorted(self.new_archives()) + ([""] if to_stdout else [])

    def new_archives(self) -> dict[str, bytes]:
        """Files under a final name that were not there before."""
        return {
            path: data
            for path, data in self.rest.files.items()
            if ".vma" in path and not path.endswith((".dat", ".log")) and path not in self.older
        }
