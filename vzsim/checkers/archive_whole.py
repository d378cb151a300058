"""G2 and G3: a final name, and an OK, only for a whole archive of the point in time."""

from __future__ import annotations

from vzdump_qemu.errors import VmaError
from vzsim.evidence import Ending, Evidence
from vzsim.world.restore import restore_disks


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    found = []
    archives = evidence.new_archives()
    for path, data in archives.items():
        found += [f"{path}: {text}" for text in _compare(evidence, data)]
    if evidence.ending is Ending.OK:
        if evidence.scenario.options.get("stdout"):
            found += [
                f"standard output: {text}" for text in _compare(evidence, evidence.rest.stdout)
            ]
        elif evidence.archive_path not in evidence.rest.files:
            found.append(f"success is said, '{evidence.archive_path}' does not exist")
        if evidence.says_frozen and not evidence.observed.was_frozen_at_point_in_time:
            found.append("frozen is said, the guest was not frozen at the point in time")
    elif evidence.ending is Ending.FAILED and archives:
        found.append(f"failure is said, {', '.join(sorted(archives))} bears a final name")
    return found


def _compare(evidence: Evidence, data: bytes) -> list[str]:
    try:
        disks = restore_disks(data)
    except VmaError as error:
        return [f"not a whole archive: {error}"]
    if disks == evidence.points_in_time:
        return []
    wanted = evidence.points_in_time
    if set(disks) != set(wanted):
        return [f"holds {sorted(disks)}, the job fixed {sorted(wanted)}"]
    differing = sorted(name for name in disks if disks[name] != wanted[name])
    return [f"{', '.join(differing)} differs from its point in time"]
