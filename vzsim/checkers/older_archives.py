"""G3: archives that were there before survive untouched, but for what a rule gives up."""

from __future__ import annotations

from vzsim.checkers.retention import may_go
from vzsim.evidence import Evidence


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    given_up = may_go(evidence)
    return [
        f"older archive {path} {'was changed' if path in evidence.rest.files else 'is gone'}"
        for path, data in evidence.older.items()
        if evidence.rest.files.get(path) != data
        and not (path in given_up and path not in evidence.rest.files)
    ]
