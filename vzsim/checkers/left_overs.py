"""G5: nothing is left over: job, node, image, descriptor, process, handle, lock, temporary file.

An undo whose own call failed may leave its thing behind; the next run must then remove it.
"""

from __future__ import annotations

from dataclasses import replace

from vzsim.evidence import RECOVERY_PREFIX, Ending, Evidence
from vzsim.faults import ACTS, Kind

_QMP_KINDS = frozenset(
    {
        Kind.ERROR,
        Kind.STALL,
        Kind.REPLY_LOST,
        Kind.WRONG_ID,
        Kind.CLOSED_BEFORE,
        Kind.CLOSED_AFTER,
        Kind.REFUSED,
        Kind.OTHER_CLIENT,
    }
)
_HOST_SITES = ("node.", "storages.", "store.", "intake.", "files.", "power.", "machine.", "clock.")
_CANCEL_SITES = ("backup-cancel", "query-backup", "qmp.connect", "machine.is_running")
_FILE_SITES = ("files.unlink", "files.remove-tree", "store.remove_tree", "intake.discard")


def _qmp_failed(evidence: Evidence) -> bool:
    return any(
        fault.kind in _QMP_KINDS
        and not fault.site.removeprefix(RECOVERY_PREFIX).startswith((*_HOST_SITES, "agent."))
        for fault in evidence.triggered
    )


def _has_failed(evidence: Evidence, *sites: str) -> bool:
    """Whether a call at one of these sites failed by itself: a signal there excuses nothing."""
    failed = tuple(fault for fault in evidence.triggered if fault.kind not in ACTS)
    return replace(evidence, triggered=failed).hit(*sites)


def _may_go_on(evidence: Evidence) -> bool:
    """A job can outlive the tool if the cancel itself failed, or if QEMU read its start late."""
    if evidence.scenario.has_left_over_job or evidence.hit(*_CANCEL_SITES):
        return True
    return evidence.met(Kind.STALL, Kind.SLOW, Kind.OTHER_CLIENT)


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    rest = evidence.rest
    found = []
    if rest.lock and not _has_failed(evidence, "node.clear_vm_lock", "node.set_vm_lock"):
        found.append(f"lock '{rest.lock}' is left")
    listed = [line for line in rest.journalled if line != "thaw" or rest.can_thaw]
    if listed and not evidence.triggered:
        found.append(f"the journal still lists: {', '.join(listed)}")
    if evidence.job_at_end and not _may_go_on(evidence):
        found.append(f"job {evidence.job_at_end} goes on after the tool has ended")
    if rest.live_compressor_count:
        found.append(f"{rest.live_compressor_count} compressor is left")
    if rest.alive_handle_count:
        found.append("the event daemon is still held")
    if not evidence.hit(*_FILE_SITES):
        found += [f"file {path} is left" for path in _odd_files(evidence)]
        found += [f"directory {path} is left" for path in rest.directories if path.endswith(".tmp")]
    if not _qmp_failed(evidence):
        if rest.active_job:
            found.append(f"job {rest.active_job} is left")
        if rest.open_descriptor_count:
            found.append(f"{rest.open_descriptor_count} descriptors are left")
        was_there = evidence.scenario.tpm_is_attached and evidence.ending is not Ending.OK
        if not was_there:
            found += [f"block node {name} is left" for name in rest.extra_nodes]
        if not evidence.hit("storages.free", "node.record_fleecing"):
            found += [f"fleecing image {path} is left" for path in rest.extra_images]
            if rest.recorded_fleecing:
                found.append(f"record of {', '.join(rest.recorded_fleecing)} is left")
    return found


def _odd_files(evidence: Evidence) -> list[str]:
    kept = {*evidence.older, *evidence.new_archives()}
    return [path for path in sorted(evidence.rest.files) if path not in kept]
