"""G1, second half: the power state is as it was found; a guest we halt runs on within budget."""

from __future__ import annotations

from vzsim.evidence import Evidence
from vzsim.faults import Kind

_MODES_THAT_HALT = ("suspend", "stop")
_DEATHS = (Kind.QEMU_DIES, Kind.QEMU_DIES_AFTER, Kind.QEMU_DIES_MIDWAY)


def _allowed_states(evidence: Evidence) -> set[str]:
    found = {"running": {"running"}, "paused": {"paused"}, "stopped": {""}}
    allowed = set(found[evidence.scenario.state])
    seen = evidence.observed
    if seen.operator_paused:
        allowed |= {"paused"}
    if seen.operator_started:
        allowed = {"running"} | ({"paused"} if seen.operator_paused else set())
    if seen.guest_went_off:
        allowed |= {"shutdown", ""}
    if evidence.met(*_DEATHS):
        # In stop mode the tool itself starts the guest again; else nobody has to.
        allowed |= {"", "running"}
    return allowed


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    found = []
    state, allowed = evidence.rest.run_state, _allowed_states(evidence)
    if state not in allowed:
        expected = " or ".join(sorted(name or "off" for name in allowed))
        found.append(f"the VM ends '{state or 'off'}', it should be {expected}")
    seen = evidence.observed
    others_acted = seen.operator_paused or seen.guest_went_off or seen.operator_started
    if others_acted or evidence.met(*_DEATHS):
        return found
    scenario = evidence.scenario
    if scenario.state == "running":
        halts = scenario.options.get("mode", "snapshot") in _MODES_THAT_HALT
        budget_s = (scenario.budget.halted_s if halts else 1.0) + evidence.allowance_s
        if seen.halted.longest_s > budget_s:
            found.append(
                f"the guest stood still for {seen.halted.longest_s:.1f} s, budget {budget_s:.1f} s"
            )
    return found
