"""How long a year of hourly backups takes to be decided.

The rival is what any tool must do: reading the times in the names. Medians of interleaved runs.

    python benchmarks/retention.py [--runs 9]
"""

from __future__ import annotations

import argparse
import statistics
import time
from datetime import datetime, timedelta

from vzdump_qemu.plan.names import parse_standard_name
from vzdump_qemu.plan.retention import decide_retention, local_time_as_named, read_entries
from vzdump_qemu.plan.retention_calendar import render_calendar
from vzdump_qemu.plan.retention_rule import parse_prune_backups

ARCHIVE_COUNT = 365 * 24
GOAL_S = 0.2
RULE = "keep-last=24,keep-hourly=48,keep-daily=14,keep-weekly=8,keep-monthly=12,keep-yearly=2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    run_count = parser.parse_args().runs
    first = datetime(2025, 1, 1)
    names = [
        f"vzdump-qemu-100-{first + timedelta(hours=hour):%Y_%m_%d-%H_%M_%S}.vma.zst"
        for hour in range(ARCHIVE_COUNT)
    ]
    rule = parse_prune_backups(RULE)
    parsed, decided, drawn = [], [], []
    stay_count = 0
    for _ in range(run_count):
        began_s = time.perf_counter()
        for name in names:
            parse_standard_name(name)
        parsed.append(time.perf_counter() - began_s)
        began_s = time.perf_counter()
        entries = read_entries(names, protected=frozenset())
        decisions = decide_retention(entries, rule, local_time=local_time_as_named)
        decided.append(time.perf_counter() - began_s)
        stay_count = sum(decision.keep for decision in decisions)
        began_s = time.perf_counter()
        render_calendar(decisions, local_time=local_time_as_named)
        drawn.append(time.perf_counter() - began_s)
    base_s, mine_s = statistics.median(parsed), statistics.median(decided)
    print(
        f"{ARCHIVE_COUNT} archives, {stay_count} stay: {mine_s:.3f} s from names to decisions "
        f"(goal: under {GOAL_S} s), reading the names alone {base_s:.3f} s, "
        f"ratio {mine_s / base_s:.1f}; the calendar {statistics.median(drawn):.3f} s"
    )


if __name__ == "__main__":
    main()
