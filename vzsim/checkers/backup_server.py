"""G3 and G4 at a backup server: no half a backup is seen there, and older ones survive.

Whether a final one is whole is decided as for archives. What a rule of removal (``keep_last``)
gives up goes only once there is a new backup that is whole.
"""

from __future__ import annotations

from vzsim.evidence import Evidence
from vzsim.faults import Kind
from vzsim.world.server_rest import ServerRest


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    server = evidence.rest.server
    if server is None:
        return []
    found = [f"unfinished backup {path} is left at the server" for path in server.unfinished]
    pruned_count = sum(fault.kind is Kind.PREVIOUS_PRUNED for fault in evidence.triggered)
    given_up = _given_up(evidence, server)
    gone = [
        path for path in evidence.older_marks if path not in server.marks and path not in given_up
    ]
    if len(gone) > pruned_count:
        found.append(f"older backups are gone from the server: {', '.join(gone)}")
    return found + [
        f"older backup {path} was changed at the server"
        for path, mark in evidence.older_marks.items()
        if server.marks.get(path, mark) != mark
    ]


def _given_up(evidence: Evidence, server: ServerRest) -> frozenset[str]:
    """Older backups that the scenario's rule does not keep beside the new ones."""
    keep_count = int(evidence.scenario.options.get("keep_last", 0))
    # Those that can be restored; and their paths end in the time, so the last are the newest.
    whole = set(server.disks)
    if not keep_count or not whole:
        return frozenset()
    return frozenset(sorted({*evidence.older_marks, *whole})[:-keep_count]) - whole
