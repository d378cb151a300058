"""G7, third part: what a backup has to bear. One small trouble by itself does not end a run."""

from __future__ import annotations

from vzsim.evidence import Ending, Evidence
from vzsim.faults import ACTS, Fault, Kind
from vzsim.faults.plane import length_of

# Another client leaves a monitor, a storage or a program goes on within this time.
_PATIENCE_S = 45.0
# A single command may take so long even where it is known to be quick.
_SLOW_S = 4.0
# A freeze that cannot be had costs consistency, a deaf monitor costs a look: neither the backup.
_BEARABLE_SITES = ("agent.", "cont", "query-backup", "machine.keep_alive", "storages.free")
_DEATHS = frozenset({Kind.QEMU_DIES_AFTER, Kind.QEMU_DIES_MIDWAY})
_WAITS = frozenset({Kind.OTHER_CLIENT, Kind.STALLS, Kind.JOB_STALLS})
_ALWAYS = frozenset({Kind.GUEST_RESETS, Kind.PAUSE_VM, Kind.CLOCK_BACK, Kind.STALE})


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    others = [fault for fault in evidence.triggered if fault not in evidence.scenario.faults.faults]
    if evidence.ending is not Ending.FAILED or evidence.scenario.expect != "ok":
        return []
    if evidence.is_too_old:
        return []
    if evidence.attempt_index > 0 or len(others) != 1 or not _is_bearable(evidence, others[0]):
        return []
    return [f"the run fails for {others[0].render()}: {evidence.error}"]


def _is_bearable(evidence: Evidence, fault: Fault) -> bool:
    if fault.kind is Kind.GUEST_POWERS_OFF:
        # Once the backup stands for an instant, the guest's end is no reason to lose it.
        return evidence.observed.went_off_in_job
    if fault.kind in _ALWAYS:
        return True
    if fault.kind in _WAITS:
        return length_of(fault) <= _PATIENCE_S
    if fault.kind is Kind.STALL and length_of(fault) <= _SLOW_S:
        return True
    if fault.site == "machine.keep_alive" and evidence.observed.guest_went_off:
        return False  # then nobody kept the event daemon from ending QEMU with its guest
    if fault.site == "query-backup" and not evidence.observed.point_in_time_count:
        return False  # before there is anything to lose
    return fault.site.startswith(_BEARABLE_SITES) and fault.kind not in _DEATHS | ACTS
