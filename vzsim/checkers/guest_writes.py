"""G6: writes of the guest never fail and never stall beyond budget."""

from __future__ import annotations

from vzsim.evidence import Evidence


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    found = []
    writes = evidence.observed.writes
    if writes.failed_count:
        found.append(f"{writes.failed_count} writes of the guest failed")
    budget_s = evidence.scenario.budget.write_s + evidence.allowance_s
    if writes.longest_s > budget_s:
        found.append(f"a write of the guest took {writes.longest_s:.1f} s, budget {budget_s:.1f} s")
    if writes.pending_since_s is not None and evidence.rest.run_state == "running":
        found.append("a write of the guest never ended")
    return found
