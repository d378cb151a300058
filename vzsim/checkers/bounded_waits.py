"""G7, first half: every wait ends, and the tool with it."""

from __future__ import annotations

from vzsim.evidence import Ending, Evidence


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    if evidence.ending is Ending.HUNG:
        return [f"the tool does not end: {evidence.error}"]
    if evidence.ending is Ending.CRASHED:
        return [f"the tool crashed: {evidence.error}"]
    budget_s = evidence.scenario.budget.run_s + evidence.allowance_s
    if evidence.duration_s > budget_s:
        return [f"the run took {evidence.duration_s:.0f} s, budget {budget_s:.0f} s"]
    return []
