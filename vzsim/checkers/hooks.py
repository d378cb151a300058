"""The operator's script: each phase in its turn, failures that mean what they should, no hanging.

Source: host behaviour, sections 1.8 and 2.4; mended there, a failing ``pre-restart`` keeps no
guest down, and no call lasts for ever.
"""

from __future__ import annotations

from vzsim.evidence import Ending, Evidence
from vzsim.faults import ACTS, KILLS, Kind
from vzsim.world.hooks import HookEnd, HookSeen

_SNAPSHOT_RUN = ("backup-start", "pre-stop", "pre-restart", "post-restart", "backup-end")
_HALTING_RUN = ("backup-start", "pre-stop", "backup-end", "pre-restart", "post-restart")
_STOPPED_RUN = ("backup-start", "backup-end")
_BEFORE, _AFTER = ("job-init", "job-start"), ("backup-abort", "log-end", "job-end", "job-abort")
# A failure there fails nothing.
_TOLD_ONLY = ("backup-abort", "log-end")
_SIGNALS = KILLS | {Kind.CANCEL_TOOL, Kind.CANCEL_TOOL_AFTER}
# What halts a guest, or ends it, without us.
_FATES = (ACTS - _SIGNALS) | {Kind.QEMU_DIES_AFTER, Kind.QEMU_DIES_MIDWAY}
_DEFAULT_LIMIT_S = 3600.0
# A call while the guest stands still, or once somebody wants us to end.
_HURRIED_LIMIT_S = 300.0
_SLACK_S = 5.0
_VARIABLES = frozenset(
    {
        "STOREID",
        "DUMPDIR",
        "VMTYPE",
        "HOSTNAME",
        "TARGET",
        "LOGFILE",
        "LC_ALL",
        "LVM_SUPPRESS_FD_WARNINGS",
    }
)


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    if not evidence.scenario.options.get("script"):
        return []
    return [
        *_check_order(evidence),
        *_check_limits(evidence),
        *_check_failures(evidence),
        *(
            f"{call.phase} is given {', '.join(sorted(odd))}"
            for call in evidence.hook_calls
            if (odd := call.environment.keys() - _VARIABLES)
        ),
    ]


def _phases_of_run(evidence: Evidence) -> tuple[str, ...]:
    """All phases of a run that nothing comes between."""
    mode = str(evidence.scenario.options.get("mode", "snapshot"))
    if evidence.scenario.state == "stopped":
        return _STOPPED_RUN
    if mode == "snapshot":
        return _SNAPSHOT_RUN
    return _HALTING_RUN if evidence.scenario.state == "running" else _STOPPED_RUN


def _check_order(evidence: Evidence) -> list[str]:
    """No phase twice, none before its turn; all of them where the run went well."""
    if evidence.met(Kind.SECOND_RUN):
        return []  # it calls the script as well
    phases = [call.phase for call in evidence.hook_calls]
    run = _phases_of_run(evidence)
    others_acted = any(fault.kind in ACTS for fault in evidence.triggered)
    if others_acted:
        # A guest that somebody switched off, or on, has other phases.
        run = _SNAPSHOT_RUN if run == _SNAPSHOT_RUN and "backup-end" in phases[-3:] else run
    order = (*_BEFORE, *run, *_AFTER)
    found = [f"{phase} is none of this run's phases" for phase in phases if phase not in order]
    places = [order.index(phase) for phase in phases if phase in order]
    if found and others_acted:
        return []
    if places != sorted(set(places)):
        return [f"phases out of order: {', '.join(phases)}"]
    if evidence.ending is Ending.OK and not others_acted:
        bad = {call.phase for call in evidence.hook_calls if call.end is not HookEnd.WELL}
        left_out = ("post-restart",) if "pre-restart" in bad else ()
        missing = [each for each in (*run, "log-end") if each not in (*phases, *left_out)]
        found += [f"{phase} was not called" for phase in missing]
    begun = [phase for phase in phases if phase in run]
    if evidence.ending is Ending.FAILED and begun and not others_acted:
        has_failed = "backup-abort" in phases or "job-abort" in phases or phases[-1] == "job-end"
        if not has_failed:
            found.append("backup-abort was not called")
        if "log-end" not in phases:
            found.append("log-end was not called")
    return found


def _check_limits(evidence: Evidence) -> list[str]:
    """A call that hangs is ended, soon where a guest stands still for it."""
    limit_s = float(evidence.scenario.options.get("script_timeout_s", _DEFAULT_LIMIT_S))
    # A guest that somebody else halted stands still whatever we do.
    is_ours = not any(fault.kind in _FATES for fault in evidence.triggered)
    found = []
    for call in evidence.hook_calls:
        is_hurried = call.guest_stood and is_ours
        most_s = min(limit_s, _HURRIED_LIMIT_S) if is_hurried else limit_s
        if call.lasted_s > most_s + _SLACK_S:
            found.append(f"{call.phase} was given {call.lasted_s:.0f} s, limit {most_s:.0f} s")
        if call.end is HookEnd.NEVER and evidence.ending is not Ending.KILLED:
            found.append(f"{call.phase} still runs when the tool has ended")
    return found


def _check_failures(evidence: Evidence) -> list[str]:
    """What the failure of a phase means for the run."""
    bad = [call for call in evidence.hook_calls if call.end in (HookEnd.BADLY, HookEnd.ENDED)]
    if evidence.ending not in (Ending.OK, Ending.FAILED):
        return []
    found = []
    for call in bad:
        if _fails_run(evidence, call) and evidence.ending is Ending.OK:
            found.append(f"{call.phase} failed and the run ends well")
        told = f" {call.phase}"
        if not _fails_run(evidence, call) and evidence.error.startswith("command '"):
            text = evidence.error.partition("' failed")[0]
            if told in text and "job-abort" not in text:
                found.append(f"{call.phase} failed, and the run with it: {evidence.error}")
    return found


def _fails_run(evidence: Evidence, call: HookSeen) -> bool:
    if call.phase in _TOLD_ONLY or call.phase == "job-abort":
        return False
    if call.phase in ("pre-restart", "post-restart"):
        return call.words[:1] == ("snapshot",)
    return True
