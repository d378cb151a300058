"""G3 and G4 at a backup server: no half a backup is seen there, and older ones survive.

Whether a final one is whole is decided as for archives.
"""

from __future__ import annotations

from vzsim.evidence import Evidence
from vzsim.faults import Kind


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    server = evidence.rest.server
    if server is None:
        return []
    found = [f"unfinished backup {path} is left at the server" for path in server.unfinished]
    pruned_count = sum(fault.kind is Kind.PREVIOUS_PRUNED for fault in evidence.triggered)
    gone = [path for path in evidence.older_marks if path not in server.marks]
    if len(gone) > pruned_count:
        found.append(f"older backups are gone from the server: {', '.join(gone)}")
    return found + [
        f"older backup {path} was changed at the server"
        for path, mark in evidence.older_marks.items()
        if server.marks.get(path, mark) != mark
    ]
