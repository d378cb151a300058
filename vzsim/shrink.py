"""Shrinking: the smallest fault script that still violates the same guarantee.

Leaves out one fault at a time, then moves to simpler kinds of the same fault: the default length,
the first use of the site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from vzsim.faults import FaultScript
from vzsim.token import Token
from vzsim.trial import Report

# Each round removes or simplifies something; scripts are a handful of faults long.
ROUND_COUNT_MAX = 50


def shrink(token: Token, run: Callable[[Token], Report]) -> tuple[Token, Report]:
    """The smallest token found whose run violates one of the same guarantees, and its report.

    A token whose run violates nothing comes back as it is.

    Args:
        run: makes the run of a token.
    """
    report = run(token)
    if not report.violations:
        return token, report
    wanted = {violation.checker for violation in report.violations}
    for _ in range(ROUND_COUNT_MAX):
        for candidate in _smaller(token):
            found = run(candidate)
            if wanted & {violation.checker for violation in found.violations}:
                token, report = candidate, found
                break
        else:
            break
    return token, report


def _smaller(token: Token) -> Iterator[Token]:
    script = token.faults
    for index in range(len(script.faults)):
        yield replace(token, script=script.without(index).render())
    for index, fault in enumerate(script.faults):
        for simpler in (replace(fault, length_s=0.0), replace(fault, nth=1)):
            if simpler != fault:
                faults = (*script.faults[:index], simpler, *script.faults[index + 1 :])
                yield replace(token, script=FaultScript(faults).render())
    if token.seed > 1:
        yield replace(token, seed=1)
