"""One mutant's trial, in a process of its own: explore until a guarantee is violated.

``python -m tests.mutants.trial NAME SEEDS [SCENARIO ...]`` reads the violations that the unspoiled
tool has as JSON lines on its standard input and writes one JSON list. NAME is ``-`` for the tool as
it is, which uses two processes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Set
from dataclasses import asdict, dataclass

from tests.mutants.catalogue import load_catalogue
from tests.mutants.loading import plant

UNSPOILED = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was seen of one violated guarantee; `seed_count` runs were needed."""

    seed_count: int
    token: str
    text: str


def key_of(token: str, text: str) -> str:
    """Violations in one scenario that differ in figures alone are the same."""
    figureless = "".join(char for char in text if not char.isdigit())
    return f"{token.partition('/')[0]} {figureless}"


def look_for_violation(
    seed_count_max: int, scenarios: tuple[str, ...], known: Set[str]
) -> Finding | None:
    """The first violation that is not a known one, over the seeds from 1 on."""
    from vzsim.explore import explore
    from vzsim.run_lists import ExploreOptions

    first_seed = 1
    while first_seed <= seed_count_max:
        tally = explore(
            ExploreOptions(
                scenarios=scenarios,
                first_seed=first_seed,
                seed_count=seed_count_max - first_seed + 1,
                stop_early=True,
            )
        )
        for token, text in tally.violations:
            if key_of(token.render(), text) not in known:
                return Finding(seed_count=token.seed, token=token.render(), text=text)
        first_seed += tally.run_count
    return None


def list_violations(seed_count: int, scenarios: tuple[str, ...]) -> list[Finding]:
    """All violations, the first of each kind in each scenario."""
    from vzsim.explore import explore
    from vzsim.run_lists import ExploreOptions

    tally = explore(ExploreOptions(scenarios=scenarios, seed_count=seed_count, job_count=2))
    found: dict[str, Finding] = {}
    for token, text in tally.violations:
        finding = Finding(seed_count=token.seed, token=token.render(), text=text)
        found.setdefault(key_of(finding.token, text), finding)
    return list(found.values())


def main() -> None:
    name, seed_count, scenarios = sys.argv[1], int(sys.argv[2]), tuple(sys.argv[3:])
    known = {json.loads(line) for line in sys.stdin}
    if name == UNSPOILED:
        findings = list_violations(seed_count, scenarios)
    else:
        plant(load_catalogue()[name])
        finding = look_for_violation(seed_count, scenarios, known)
        findings = [finding] if finding else []
    print(json.dumps([asdict(finding) for finding in findings]))


if __name__ == "__main__":
    main()
