"""G9: another's job, lock or freeze is never touched."""

from __future__ import annotations

from vzsim.evidence import RECOVERY_PREFIX, Evidence
from vzsim.faults import KILLS, Kind


def _may_come_late(evidence: Evidence) -> bool:
    """QEMU reads a command late, or a recovery has to come again for what it could not do."""
    recovery_failed = any(fault.site.startswith(RECOVERY_PREFIX) for fault in evidence.triggered)
    return recovery_failed or evidence.met(Kind.STALL)


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    found = list(evidence.observed.foreign_harms)
    if not _may_come_late(evidence):
        # A guest that stands still does not keep the lock: where going on failed at first, it is
        # tried again after that.
        may_go_on = evidence.observed.operator_started or any(
            fault.site.startswith(("cont", "power.")) for fault in evidence.triggered
        )
        operators = ("cont",) if may_go_on else ()
        found += [
            f"{name} was sent after the VM's lock was given back"
            for name in evidence.observed.unlocked_acts
            if name not in operators
        ]
    if evidence.attempt_index > 0:
        return found
    lock = evidence.scenario.lock or evidence.observed.taken_lock
    # What a killed backup leaves looks the same as another's: a recovery cannot tell them apart.
    is_cleared = evidence.met(Kind.LOCK_CLEARED) or (lock == "backup" and evidence.met(*KILLS))
    if lock and evidence.rest.foreign_lock != lock and not is_cleared:
        found.append(f"another operation's lock '{lock}' is gone")
    seen = evidence.observed
    was_reset = seen.guest_woke or seen.was_booted or evidence.met(Kind.GUEST_RESETS)
    stays_up = evidence.rest.run_state == "running" and not was_reset
    if evidence.scenario.is_frozen and stays_up and not evidence.rest.is_frozen:
        found.append("somebody else's freeze was thawed")
    return found
