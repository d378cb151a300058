"""G10: no secret of the VM's configuration in a log line or an argument vector."""

from __future__ import annotations

from vzsim.evidence import Evidence


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    secret = evidence.secret
    found = [line for line in evidence.observed.public_lines if secret in line]
    return [f"a secret is told: {line[:80]}" for line in found]
