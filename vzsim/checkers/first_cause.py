"""G7, second half: a run fails only for a reason, and the first cause is the one reported."""

from __future__ import annotations

from vzsim.evidence import Ending, Evidence
from vzsim.faults import Fault, Kind

_SEE_LOG = " - check log"
# What an operator must find in the error for a fault that ends a run by itself.
_CAUSES: dict[Kind, tuple[str, ...]] = {
    Kind.EIO: ("Input/output error", "unable to"),
    Kind.ENOSPC: ("No space left on device", "unable to"),
    Kind.PARTIAL: ("No space left on device",),
    Kind.EXDEV: ("unable to rename",),
    Kind.EROFS: ("Read-only file system", "unable to"),
    Kind.EDQUOT: ("Disk quota exceeded", "unable to"),
    Kind.EXITS: ("exit status 1", "exit code 1"),
    Kind.KILLED: ("signal 9",),
    Kind.HANGS: ("got timeout",),
    Kind.KILLED_LATE: ("signal 9",),
    Kind.QEMU_DIES: ("not running", "closed", "ended"),
    Kind.QEMU_DIES_AFTER: ("not running", "closed", "ended"),
    Kind.QEMU_DIES_MIDWAY: ("not running", "ended"),
    Kind.CLOSED_BEFORE: ("closed", "connection"),
    Kind.CLOSED_AFTER: ("closed", "connection"),
    Kind.REPLY_LOST: ("timeout", "did not answer", "nothing moved", "no data has moved"),
    Kind.WRONG_ID: ("timeout",),
    Kind.REFUSED: ("no greeting", "no answer", "unable to connect"),
    Kind.SERVER_DIES: ("connection", "unable to connect", "nothing moved"),
    Kind.SERVER_DIES_AFTER: ("connection", "unable to connect", "nothing moved"),
    Kind.TOKEN_REVOKED: ("authentication failed",),
    Kind.CANCEL_JOB: ("cancel",),
    Kind.OTHER_JOB: ("another backup job", "unexpected uuid", "not finished", "cancel"),
    Kind.OTHER_LOCK: ("VM is locked (",),
    Kind.DISK_UNPLUGGED: ("not found",),
    Kind.FD_LEAKS: ("did not end within",),
}
_OTHER_ENDINGS = {"killed": Ending.KILLED, "cancelled": Ending.CANCELLED}
_MARKED = frozenset({Kind.ERROR, Kind.ERROR_AFTER, Kind.JOB_FAILS})


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    if evidence.attempt_index > 0:
        return []
    faults, expected = evidence.triggered, evidence.scenario.expect
    if not set(faults) - set(evidence.scenario.faults.faults):
        return _check_expectation(evidence, expected)
    if evidence.ending is Ending.CANCELLED:
        if evidence.met(Kind.CANCEL_TOOL, Kind.CANCEL_TOOL_AFTER):
            return []
        return ["the run was given up although nobody asked for it"]
    if evidence.ending is not Ending.FAILED or len(faults) != 1 or expected != "ok":
        return []
    wanted = _wanted(faults[0])
    if evidence.error.endswith(_SEE_LOG) and _is_in_log(evidence, wanted):
        return []
    if wanted and not any(text in evidence.error for text in wanted):
        return [f"'{evidence.error}' does not name the cause: {faults[0].render()}"]
    return []


def _is_in_log(evidence: Evidence, wanted: tuple[str, ...]) -> bool:
    return any(text in line for line in evidence.observed.public_lines for text in wanted)


def _check_expectation(evidence: Evidence, expected: str) -> list[str]:
    if expected == "ok":
        if evidence.ending is Ending.OK:
            return []
        return [f"a run without faults ends {evidence.ending.value}: {evidence.error}"]
    if expected in _OTHER_ENDINGS:
        if evidence.ending is _OTHER_ENDINGS[expected]:
            return []
    elif evidence.ending is Ending.FAILED and expected in evidence.error:
        return []
    return [f"expected an error with '{expected}', got {evidence.ending.value}: {evidence.error}"]


def _wanted(fault: Fault) -> tuple[str, ...]:
    if fault.kind in _MARKED:
        return (f"simulated failure at {fault.site}#{fault.nth}",)
    return _CAUSES.get(fault.kind, ())
