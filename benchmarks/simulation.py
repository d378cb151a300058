"""How fast backups are simulated: whole backups per second on one core, simulated to real time.

Run: python benchmarks/simulation.py [SECONDS]. The goals: 200 backups/s per core over all scenarios
with faults, 10,000 times real time on the long ones.
"""

from __future__ import annotations

import sys
import time

from vzsim.explore import ExploreOptions, list_tokens, replay
from vzsim.token import Token

LONG = (
    "snapshot-running/1/agent.freeze#1:reply-lost",
    "snapshot-running/2/query-backup#2:stall+700s",
    "stop-refusing-guest/3/",
    "agent-absent/4/qmp.connect#3:other-client+700s",
)


def _measure(name: str, tokens: list[Token], limit_s: float) -> None:
    backup_count, simulated_s, run_count = 0, 0.0, 0
    began_s = time.process_time()
    while time.process_time() - began_s < limit_s:
        report = replay(tokens[run_count % len(tokens)])
        run_count += 1
        backup_count += report.backup_count
        simulated_s += report.simulated_s
    took_s = time.process_time() - began_s
    print(
        f"{name:34} {backup_count / took_s:8.0f} backups/s   "
        f"{simulated_s / took_s:12,.0f} x real time   ({run_count} runs)"
    )


def main() -> None:
    """Measure and print."""
    limit_s = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    names = ("snapshot-running", "suspend-running", "stop-running", "snapshot-stopped")
    for name in names:
        _measure(name, [Token(scenario=name, seed=1, script="")], limit_s / 5)
    drawn = list(list_tokens(ExploreOptions(seed_count=160)))
    _measure("all scenarios, faults by seed", drawn, limit_s)
    _measure("long waits", [Token.parse(text) for text in LONG], limit_s)


if __name__ == "__main__":
    main()
