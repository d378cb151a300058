"""G5: nothing is left over: job, node, image, descriptor, process, handle, lock, temporary file.

An undo whose own call failed may leave its thing behind; the next run must then remove it.
"""

from __future__ import annotations

from vzsim.evidence import RECOVERY_PREFIX, Evidence
from vzsim.faults import Kind

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
_FILE_SITES = ("files.unlink", "files.remove-tree", "store.remove_tree", "intake.discard")


def _qmp_failed(evidence: Evidence) -> bool:
    return any(
        fault.kind in _QMP_KINDS
        and not fault.site.removeprefix(RECOVERY_PREFIX).startswith((*_HOST_SITES, "agent."))
        for fault in evidence.triggered
    )


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    rest = evidence.rest
    found = []
    if rest.lock and not evidence.hit("node.clear_vm_lock", "node.set_vm_lock"):
        found.append(f"lock '{rest.lock}' is left")
    if rest.journalled and not evidence.triggered:
        found.append(f"the journal still lists: {', '.join(rest.journalled)}")
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
        found += [f"block node {name} is left" for name in rest.extra_nodes]
        if not evidence.hit("storages.free", "node.record_fleecing"):
            found += [f"fleecing image {path} is left" for path in rest.extra_images]
            if rest.recorded_fleecing:
                found.append(f"record of {', '.join(rest.recorded_fleecing)} is left")
    return found


def _odd_files(evidence: Evidence) -> list[str]:
    kept = {*evidence.older, *evidence.new_archives()}
    return [path for path in sorted(evidence.rest.files) if path not in kept]
