"""The checkers can see: every mutant in the catalogue is found by exploring a few thousand seeds.

``python -m tests.mutants [NAME ...]`` prints a table and exits with 1 if a mutant survives, or if
the tool as it is violates anything over the same seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.mutants.catalogue import load_catalogue
from tests.mutants.trial import UNSPOILED, key_of

SEED_COUNT = 5000
# Far above what a survivor needs; a mutant that loops without waiting would never end.
TRIAL_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How one process ended; `trouble` is empty if it could do its work."""

    name: str
    findings: list[dict[str, str | int]]
    trouble: str = ""


def try_one(name: str, seed_count: int, known: Sequence[str] = ()) -> Trial:
    """Run one mutant in a process of its own, politely."""
    command = ["nice", sys.executable, "-m", "tests.mutants.trial", name, str(seed_count)]
    try:
        done = subprocess.run(
            command,
            check=False,
            input="".join(json.dumps(key) + "\n" for key in known),
            capture_output=True,
            text=True,
            timeout=TRIAL_TIMEOUT_S,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
    except subprocess.TimeoutExpired:
        return Trial(name=name, findings=[], trouble=f"no end within {TRIAL_TIMEOUT_S:g} seconds")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        return Trial(name=name, findings=[], trouble=last)
    return Trial(name=name, findings=json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="mutants; all without one")
    parser.add_argument("--seeds", type=int, default=SEED_COUNT)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--skip-baseline", action="store_true", help="take the tool as it is for good"
    )
    arguments = parser.parse_args()
    catalogue = load_catalogue()
    unknown = sorted(set(arguments.names) - set(catalogue))
    if unknown:
        parser.error(f"no such mutant: {', '.join(unknown)}")
    baseline = Trial(name=UNSPOILED, findings=[])
    if not arguments.skip_baseline:
        baseline = try_one(UNSPOILED, arguments.seeds)
        _print_baseline(baseline, arguments.seeds)
    print(f"\n{'mutant':42} {'seeds':>5}  violated", flush=True)
    known = [key_of(str(finding["token"]), str(finding["text"])) for finding in baseline.findings]
    bad = bool(baseline.findings or baseline.trouble)
    found_count = 0
    names = arguments.names or list(catalogue)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for trial in pool.map(lambda name: try_one(name, arguments.seeds, known), names):
            found_count += bool(trial.findings)
            _print_trial(trial, catalogue[trial.name].removes)
    print(f"\n{found_count} of {len(names)} mutants found")
    return 1 if bad or found_count < len(names) else 0


def _print_baseline(baseline: Trial, seed_count: int) -> None:
    if baseline.trouble:
        print(f"the tool as it is: {baseline.trouble}")
    for finding in baseline.findings:
        print(f"the tool as it is: {finding['text']}\n    {finding['token']}")
    if not baseline.findings and not baseline.trouble:
        print(f"the tool as it is: nothing in {seed_count} seeds")


def _print_trial(trial: Trial, removes: str) -> None:
    if trial.findings:
        finding = trial.findings[0]
        print(f"{trial.name:42} {finding['seed_count']:5}  {finding['text']}")
        print(f"{'':42} {'':5}  {finding['token']}", flush=True)
    else:
        print(f"{trial.name:42} {'-':>5}  SURVIVED: {removes} {trial.trouble}".rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
