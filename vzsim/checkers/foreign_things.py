"""G9: another's job, lock or freeze is never touched."""

from __future__ import annotations

from vzsim.evidence import Evidence


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    found = list(evidence.observed.foreign_harms)
    lock = evidence.scenario.lock
    if lock and evidence.attempt_index == 0 and evidence.rest.foreign_lock != lock:
        found.append(f"another operation's lock '{lock}' is gone")
    return found
