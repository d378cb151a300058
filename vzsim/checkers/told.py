"""What an operator is told: what the scenario asks for is said, and no figure makes no sense.

Guarantees that are kept by words alone (a warning, a skipped freeze, an alarm) show nowhere else.
"""

from __future__ import annotations

import re

from vzsim.evidence import Evidence

_PERCENT = re.compile(r"percent=(-?[0-9]+)")


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    lines = evidence.observed.public_lines
    found = [
        f"a percentage that cannot be is told: {line[:80]}"
        for line in lines
        for percent in _PERCENT.findall(line)
        if not 0 <= int(percent) <= 100
    ]
    scenario = evidence.scenario
    if evidence.attempt_index > 0 or set(evidence.triggered) - set(scenario.faults.faults):
        return found
    found += [f"not told: '{text}'" for text in scenario.says if not _is_in(text, lines)]
    found += [f"told: '{text}'" for text in scenario.says_not if _is_in(text, lines)]
    return found


def _is_in(text: str, lines: list[str]) -> bool:
    return any(text in line for line in lines)
