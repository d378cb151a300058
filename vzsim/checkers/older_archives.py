"""G3: archives that were there before survive untouched."""

from __future__ import annotations

from vzsim.evidence import Evidence


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    return [
        f"older archive {path} {'was changed' if path in evidence.rest.files else 'is gone'}"
        for path, data in evidence.older.items()
        if evidence.rest.files.get(path) != data
    ]
