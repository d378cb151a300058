"""G10: no secret of the VM's configuration in a log line or an argument vector."""

from __future__ import annotations

from vzsim.evidence import Evidence


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    secret = evidence.secret
    lines = [*evidence.observed.public_lines, *evidence.rest.journalled, evidence.error]
    found = [line for line in lines if secret in line]
    return [f"a secret is told: {line[:80]}" for line in found]
