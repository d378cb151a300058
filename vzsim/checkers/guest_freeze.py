"""G1, first half: the guest's file systems are never frozen beyond budget and never left so."""

from __future__ import annotations

from vzsim.evidence import Evidence

# A slow thaw is asked again; each round trip has costs that no fault announces.
_SLACK_S = 5.0


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    found = []
    frozen, rest = evidence.observed.frozen, evidence.rest
    if evidence.scenario.is_frozen and evidence.attempt_index == 0:
        # Somebody else's freeze, with reasons of his own (and by now of a guest that was reset).
        return []
    if rest.is_frozen and rest.can_thaw:
        found.append("the guest was left frozen although its agent answers")
    if evidence.scenario.agent.thaw_error:
        # Nobody can thaw this guest; that it is told is `told`'s to check.
        return found
    budget_s = evidence.scenario.budget.frozen_s + evidence.allowance_s + _SLACK_S
    if frozen.longest_s > budget_s:
        found.append(f"the guest was frozen for {frozen.longest_s:.1f} s, budget {budget_s:.1f} s")
    return found
