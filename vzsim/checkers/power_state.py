"""G1, second half: the power state is as it was found; a guest we halt runs on within budget.

"As it was found" is the state when the tool came, changed by whatever operators and the guest
itself did since. A power loss of the node is such a change, and the last word: the VM is off when
the node has booted, and from then on only its operator (or the node's own list of VMs to start)
starts it. A recovery that comes later must not, even if the dead run had shut the guest down
itself and its journal says so: what it shut down is no longer what is off. An operator's stop is
his own too, but for STOP mode, which cannot tell it from its own.
"""

from __future__ import annotations

from vzsim.evidence import Evidence
from vzsim.faults import Kind

_MODES_THAT_HALT = ("suspend", "stop")
_DEATHS = (Kind.QEMU_DIES, Kind.QEMU_DIES_AFTER, Kind.QEMU_DIES_MIDWAY)


def _mode(evidence: Evidence) -> str:
    return str(evidence.scenario.options.get("mode", "snapshot"))


def _allowed_states(evidence: Evidence) -> set[str]:
    seen, state = evidence.observed, evidence.scenario.state
    if state == "postmigrate" and evidence.attempt_index > 0:
        state = "stopped"
    if seen.power_was_lost:
        allowed = {""}
    elif seen.operator_stopped:
        allowed = {"", "running"} if _mode(evidence) == "stop" else {""}
    else:
        allowed = {"" if state == "stopped" else state}
    if seen.operator_started:
        allowed = {"running"}
    if seen.operator_paused:
        allowed = {"paused"} if _is_pause_final(evidence) else allowed | {"paused"}
    if seen.guest_slept:
        allowed |= {"suspended"}
    if seen.guest_woke:
        allowed |= {"running"}
    if seen.guest_panicked:
        allowed |= {"guest-panicked"}
    if seen.guest_went_off:
        allowed |= {"shutdown", ""}
    if evidence.met(*_DEATHS) and not seen.power_was_lost:
        # In stop mode the tool itself starts the guest again; else nobody has to.
        allowed |= {"", "running"}
    return allowed


def _is_pause_final(evidence: Evidence) -> bool:
    """Nobody but the operator had a reason to touch the guest, and nobody came between."""
    # Between the tool's look and its `cont` no question can be asked.
    raced = evidence.hit("cont", "qmp.connect")
    return _mode(evidence) not in _MODES_THAT_HALT and not raced and len(evidence.triggered) == 1


def _others_acted(evidence: Evidence) -> bool:
    seen = evidence.observed
    return (
        seen.power_was_lost
        or seen.operator_paused
        or seen.operator_started
        or seen.operator_stopped
        or seen.guest_went_off
        or seen.guest_panicked
        or seen.guest_slept
        or evidence.met(*_DEATHS)
    )


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    found = []
    state, allowed = evidence.rest.run_state, _allowed_states(evidence)
    if state not in allowed:
        expected = " or ".join(sorted(name or "off" for name in allowed))
        found.append(f"the VM ends '{state or 'off'}', it should be {expected}")
    if _others_acted(evidence):
        return found
    scenario, seen = evidence.scenario, evidence.observed
    if scenario.state == "running":
        halts = _mode(evidence) in _MODES_THAT_HALT
        budget_s = (scenario.budget.halted_s if halts else 1.0) + evidence.allowance_s
        if seen.halted.longest_s > budget_s:
            found.append(
                f"the guest stood still for {seen.halted.longest_s:.1f} s, budget {budget_s:.1f} s"
            )
    return found
