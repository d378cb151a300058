"""Removal of older archives: only once the new one is proved, by the rule, protected ones never.

The rule of a scenario is ``keep_last``; an archive is protected by a file beside it.
"""

from __future__ import annotations

from vzdump_qemu.errors import VmaError
from vzsim.evidence import Ending, Evidence
from vzsim.faults import ACTS
from vzsim.world.node import PROTECTED_SUFFIX


def may_go(evidence: Evidence) -> frozenset[str]:
    """Older archives that the rule gives up once there is a new one."""
    keep_count = int(evidence.scenario.options.get("keep_last", 0))
    whole = [path for path in evidence.new_archives() if _is_whole(evidence, path)]
    if not keep_count or not whole:
        return frozenset()
    files = evidence.rest.files
    loose = [
        path
        for path in evidence.older
        if path + PROTECTED_SUFFIX not in files and not path.endswith(PROTECTED_SUFFIX)
    ]
    # The time is in the name, and nothing else differs.
    newest_first = sorted({*loose, *whole}, reverse=True)
    return frozenset(newest_first[keep_count:]) - set(whole)


def _is_whole(evidence: Evidence, path: str) -> bool:
    try:
        evidence.restore(path)
    except VmaError:
        return False
    return True


def check(evidence: Evidence) -> list[str]:
    """One line per violation: what should have gone and is still there."""
    if not evidence.scenario.options.get("keep_last") or evidence.ending is not Ending.OK:
        return []
    if any(fault.kind in ACTS for fault in evidence.triggered):
        return []
    return [
        f"older archive {path} is kept against the rule"
        for path in sorted(may_go(evidence))
        if path in evidence.rest.files
    ]
