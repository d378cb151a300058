"""G2 and G3: a final name, and an OK, only for a whole archive of the point in time."""

from __future__ import annotations

from vzdump_qemu.errors import VmaError
from vzsim.evidence import Ending, Evidence
from vzsim.faults import Kind

# What is asked of a backup server once the new backup is final.
_AFTER_FINISH = ("pbs.notes", "pbs.protected", "pbs.prune", "pbs.upload-backup-log")


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    found = []
    paths = evidence.archive_paths()
    archives = [path for path in paths if path]
    for path in paths:
        place = path or "standard output"
        found += [f"{place}: {text}" for text in _compare(evidence, path)]
    if evidence.ending is Ending.OK:
        to_stdout = evidence.scenario.options.get("stdout")
        if not to_stdout and evidence.archive_path not in paths and not _was_pruned(evidence):
            found.append(f"success is said, '{evidence.archive_path}' does not exist")
        if evidence.archive_path in evidence.rest.undurable:
            found.append(f"success is said, a power loss would take '{evidence.archive_path}'")
        if evidence.says_frozen and not evidence.observed.was_frozen_at_point_in_time:
            found.append("frozen is said, the guest was not frozen at the point in time")
    elif evidence.ending is Ending.FAILED and archives and not _may_be_final(evidence):
        found.append(f"failure is said, {', '.join(sorted(archives))} bears a final name")
    elif evidence.ending is Ending.CANCELLED and not evidence.met(Kind.SECOND_RUN):
        found += _compare_with_words(evidence, len(archives))
    return found


def _was_pruned(evidence: Evidence) -> bool:
    """Somebody removed the newest backup when that was the new one."""
    return any(
        fault.kind is Kind.PREVIOUS_PRUNED and fault.site.startswith(_AFTER_FINISH)
        for fault in evidence.triggered
    )


def _may_be_final(evidence: Evidence) -> bool:
    """A name that could not be taken back; what followed failed, the archive being complete.

    Or a server that was not heard, or whose client died.
    """
    if evidence.rest.server is not None:
        return bool(evidence.triggered)
    return evidence.hit("files.unlink", "hook.backup-end", "hook.job-") or _is_kept_busy(evidence)


def _is_kept_busy(evidence: Evidence) -> bool:
    """Older archives are removed by a rule, which can fail by itself."""
    return bool(evidence.scenario.options.get("keep_last")) and evidence.hit("store.", "files.")


def _compare_with_words(evidence: Evidence, archive_count: int) -> list[str]:
    """A tool that is interrupted has told how its backup ended, and that is how it ended."""
    is_named = archive_count > 0
    if evidence.scenario.options.get("stdout") or evidence.told_good in (None, is_named):
        return []
    options = evidence.scenario.options
    if is_named and (options.get("script") or options.get("keep_last")):
        # Interrupted in what follows: the run counts as failed, its archive is whole and stays.
        return []
    if is_named and evidence.rest.server is not None:
        # A QEMU that sent it made it final before the tool could look; it stays, as it is whole.
        return []
    said = "success" if evidence.told_good else "failure"
    return [f"{said} is said before the signal, {archive_count} archives are there"]


def _compare(evidence: Evidence, path: str) -> list[str]:
    try:
        disks = evidence.restore(path)
    except VmaError as error:
        return [f"not a whole archive: {error}"]
    if disks == evidence.points_in_time:
        return []
    wanted = evidence.points_in_time
    if set(disks) != set(wanted):
        return [f"holds {sorted(disks)}, the job fixed {sorted(wanted)}"]
    differing = sorted(name for name in disks if disks[name] != wanted[name])
    return [f"{', '.join(differing)} differs from its point in time"]
