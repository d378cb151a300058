"""How fast the command answers: help, the first QMP command, and our share of the freeze window.

Whole processes, medians of interleaved runs. The rival for the start is the interpreter itself
(`python -c pass`); the freeze window is told by the tool: what it spent beyond the replies it
waited for.

    python benchmarks/startup.py [--runs 7]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

TOOL = [sys.executable, "-m", "vzdump_qemu"]


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def _help_against_interpreter(run_count: int) -> None:
    empty, helped = [], []
    for _ in range(run_count):
        empty.append(_seconds([sys.executable, "-c", "pass"]))
        helped.append(_seconds([*TOOL, "--help"]))
    base, mine = statistics.median(empty), statistics.median(helped)
    print(f"--help: {mine:.3f} s, the bare interpreter {base:.3f} s, ratio {mine / base:.1f}")
    print("  goal: under 0.15 s")


def _one_backup(lab: Path) -> tuple[float, float, float]:
    """Start to the answer of the first QMP command, freeze window, our share of it; seconds."""
    began_s = time.time()
    done = subprocess.run(
        [*TOOL, "--root", str(lab), "100", "--output", "json"],
        check=True,
        capture_output=True,
        text=True,
    )
    first_s = window_s = own_s = float("nan")
    for line in done.stdout.splitlines():
        event = json.loads(line)
        # The first event after a QMP reply: the look for a left-over job comes before it.
        if event["event"] == "VmNamed":
            first_s = datetime.fromisoformat(event["time"]).timestamp() - began_s
        if event["event"] == "FreezeWindowClosed":
            window_s, own_s = event["freeze_window_s"], event["own_s"]
    return first_s, window_s, own_s


def _backups(run_count: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        lab = Path(directory) / "lab"
        subprocess.run(
            [*TOOL, "lab", "create", str(lab), "--vm", "100", "--disk", "scsi0=16M"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        try:
            subprocess.run(
                [*TOOL, "lab", "start", str(lab), "100"], check=True, stdout=subprocess.DEVNULL
            )
            time.sleep(1)
            results = []
            for _ in range(run_count):
                # A second archive within one second waits for a name of its own.
                time.sleep(1.1)
                results.append(_one_backup(lab))
        finally:
            subprocess.run(
                [*TOOL, "lab", "destroy", str(lab)], check=True, stdout=subprocess.DEVNULL
            )
    first, window, own = (statistics.median(column) for column in zip(*results, strict=True))
    print(f"process start to the first QMP reply: {first:.3f} s (goal: under 0.4 s)")
    print(
        f"freeze window: {window * 1000:.2f} ms, of it ours {own * 1000:.2f} ms "
        f"(goal: at most 2 ms beyond the replies), ratio {window / (window - own):.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    run_count = parser.parse_args().runs
    _help_against_interpreter(run_count)
    _backups(run_count)


if __name__ == "__main__":
    main()
