"""How fast backups are simulated: whole backups per CPU second of a core, simulated to real time.

Run: python benchmarks/simulation.py [RUNS_PER_SCENARIO]. The runs are those that `vzsim explore
--jobs 1` makes by seed, in the same order. Rates are per second of processor time; on a machine
shared with others such a second does less (caches, threads of one core), so the load is told. The
totals are given by the wall clock as well. The goals: 200 backups per CPU second over all
scenarios, 10,000 times real time on the long ones.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

from vzsim.explore import replay
from vzsim.run_lists import ExploreOptions, list_tokens
from vzsim.scenario import load_scenarios
from vzsim.token import Token

BACKUPS_PER_S_GOAL = 200
SPEED_GOAL = 10_000
# A scenario is long if its backups take at least so much simulated time on average.
LONG_S = 600.0


@dataclass(slots=True)
class Sums:
    """Of runs; `processor_s` and `wall_s` are real, `simulated_s` is not."""

    run_count: int = 0
    backup_count: int = 0
    simulated_s: float = 0.0
    processor_s: float = 0.0
    wall_s: float = 0.0

    def add(self, other: Sums) -> None:
        """Add other runs."""
        self.run_count += other.run_count
        self.backup_count += other.backup_count
        self.simulated_s += other.simulated_s
        self.processor_s += other.processor_s
        self.wall_s += other.wall_s

    @property
    def is_long(self) -> bool:
        """Whether these runs are the ones that the goal for simulated time is about."""
        return self.simulated_s >= LONG_S * self.backup_count

    def render(self, name: str) -> str:
        """One row of the table."""
        return (
            f"{name:36} {self.run_count:6} {self.backup_count:8} "
            f"{self.backup_count / self.processor_s:12.0f} {self.simulated_s:14,.0f} "
            f"{self.simulated_s / self.processor_s:14,.0f}"
        )


def measure(token: Token) -> Sums:
    """Make one run."""
    wall_s, processor_s = time.perf_counter(), time.process_time()
    report = replay(token)
    return Sums(
        run_count=1,
        backup_count=report.backup_count,
        simulated_s=report.simulated_s,
        processor_s=time.process_time() - processor_s,
        wall_s=time.perf_counter() - wall_s,
    )


def total_of(rows: Iterable[Sums]) -> Sums:
    """All of them as one row."""
    total = Sums()
    for row in rows:
        total.add(row)
    return total


def main() -> None:
    """Measure and print."""
    runs_per_scenario = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    count = runs_per_scenario * len(load_scenarios())
    # Listing makes runs of its own, to learn where faults can happen; they are not counted.
    tokens = list(list_tokens(ExploreOptions(seed_count=count)))
    rows: dict[str, Sums] = {}
    for token in tokens:
        rows.setdefault(token.scenario, Sums()).add(measure(token))
    load = os.getloadavg()[0]
    print(
        f"{'scenario':36} {'runs':>6} {'backups':>8} {'per CPU s':>12} {'simulated s':>14} "
        f"{'x real time':>14}"
    )
    for name, row in sorted(rows.items()):
        print(row.render(name))
    total = total_of(rows.values())
    long = total_of(row for row in rows.values() if row.is_long)
    print(total.render("all, per core"))
    if long.run_count:
        print(long.render("long ones, per core"))
    print(
        f"by the wall clock: {total.backup_count / total.wall_s:.0f} backups/s, "
        f"{total.simulated_s / total.wall_s:,.0f} x real time, "
        f"{os.cpu_count()} processors with a load of {load:.1f}"
    )
    print(
        f"goals: {BACKUPS_PER_S_GOAL} backups per CPU second and core, "
        f"long ones {SPEED_GOAL:,} x real time"
    )


if __name__ == "__main__":
    main()
