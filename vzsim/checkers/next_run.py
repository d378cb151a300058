"""After healing one more run succeeds: nothing of the first one is in its way."""

from __future__ import annotations

from vzsim.evidence import Ending, Evidence


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    if evidence.attempt_index == 0 or evidence.ending is Ending.OK:
        return []
    if evidence.is_too_old:
        return []
    return [f"the next run ends {evidence.ending.value}: {evidence.error}"]
