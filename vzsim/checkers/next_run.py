"""After healing one more run succeeds: nothing of the first one is in its way."""

from __future__ import annotations

from vzsim.evidence import Ending, Evidence

# No backup server takes one that is older than the last it has, however that came about.
_TIME_WENT_BACK = "backup timestamp is older than last backup"


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    if evidence.attempt_index == 0 or evidence.ending is Ending.OK:
        return []
    if evidence.rest.server is not None and _TIME_WENT_BACK in evidence.error:
        return []
    return [f"the next run ends {evidence.ending.value}: {evidence.error}"]
