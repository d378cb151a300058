"""Exploring: scenarios × fault scripts × seeds, many runs, one verdict.

Owns spreading the runs over processes, and the sums. Which runs are made belongs to
`vzsim.run_lists`, what a run is to `vzsim.simulation`, how sums are shown to
`vzsim.explore_table`.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.pool
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from vzdump_qemu.errors import ConfigError
from vzsim.faults import bare_site
from vzsim.run_lists import ExploreOptions, known_scenarios, known_system, list_tokens
from vzsim.simulation import simulate
from vzsim.system import DEFAULT_SYSTEM
from vzsim.token import Token
from vzsim.trial import SECOND_PREFIX, Report

# Runs handed to a process at a time: enough to keep it busy, few enough to stop in time.
_CHUNK = 16


@dataclass(slots=True)
class Tally:
    """Sums over many runs."""

    run_count: int = 0
    backup_count: int = 0
    simulated_s: float = 0.0
    real_s: float = 0.0
    endings: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    sites: Counter[str] = field(default_factory=Counter)
    known_sites: set[str] = field(default_factory=set)
    violations: list[tuple[Token, str]] = field(default_factory=list)

    def take(self, token: Token, report: Report) -> None:
        """Add one run."""
        self.run_count += 1
        self.backup_count += report.backup_count
        self.simulated_s += report.simulated_s
        self.known_sites.update(
            bare_site(site) for site in report.visit_counts if not site.startswith(SECOND_PREFIX)
        )
        if report.evidences:
            self.endings[report.ending.value] += 1
        for fault in report.triggered:
            self.kinds[fault.kind.value] += 1
            self.sites[bare_site(fault.site)] += 1
        self.violations += [(token, violation.render()) for violation in report.violations]

    def add(self, other: Tally) -> None:
        """Add another tally."""
        self.run_count += other.run_count
        self.backup_count += other.backup_count
        self.simulated_s += other.simulated_s
        self.endings += other.endings
        self.kinds += other.kinds
        self.sites += other.sites
        self.known_sites |= other.known_sites
        self.violations += other.violations


def replay(token: Token, *, system: str = DEFAULT_SYSTEM) -> Report:
    """Make the run of a token. Raises ConfigError for a scenario that does not exist."""
    scenario = known_scenarios().get(token.scenario)
    if scenario is None:
        raise ConfigError(f"no scenario '{token.scenario}'")
    return simulate(known_system(system), scenario, token.faults, token.seed)


def _run_chunk(work: tuple[tuple[Token, ...], str, str]) -> Tally:
    tokens, system, log_directory = work
    tally = Tally()
    for token in tokens:
        report = replay(token, system=system)
        tally.take(token, report)
        if log_directory:
            name = f"{token.scenario}-{token.seed}-{tally.run_count}.log"
            if token.seed:
                name = f"{token.scenario}-{token.seed}.log"
            text = f"# {token.render()}\n{report.log.render()}"
            (Path(log_directory) / name).write_text(text, encoding="utf-8")
    return tally


def _chunks(
    tokens: Iterator[Token], options: ExploreOptions
) -> Iterator[tuple[tuple[Token, ...], str, str]]:
    held: list[Token] = []
    for token in tokens:
        held.append(token)
        if len(held) == _CHUNK:
            yield tuple(held), options.system, options.log_directory
            held = []
    if held:
        yield tuple(held), options.system, options.log_directory


def explore(
    options: ExploreOptions, progress: Callable[[Tally], None] = lambda tally: None
) -> Tally:
    """Make all runs (until the time is over, or until it is interrupted) and add them up.

    Args:
        progress: called after every few runs.
    """
    if options.log_directory:
        Path(options.log_directory).mkdir(parents=True, exist_ok=True)
    began_s = time.monotonic()
    total = Tally()

    def bounded() -> Iterator[tuple[tuple[Token, ...], str, str]]:
        for chunk in _chunks(list_tokens(options), options):
            if options.time_limit_s and time.monotonic() - began_s > options.time_limit_s:
                return
            if options.stop_early and total.violations:
                return
            yield chunk

    with suppress(KeyboardInterrupt), ExitStack() as stack:
        if options.job_count <= 1:
            tallies: Iterator[Tally] = map(_run_chunk, bounded())
        else:
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(context.Pool(options.job_count, _leave_interrupts_to_us))
            tallies = _spread(pool, bounded(), options.job_count)
        for tally in tallies:
            total.add(tally)
            total.real_s = time.monotonic() - began_s
            progress(total)
    total.real_s = time.monotonic() - began_s
    return total


def _leave_interrupts_to_us() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _spread(
    pool: multiprocessing.pool.Pool,
    chunks: Iterator[tuple[tuple[Token, ...], str, str]],
    job_count: int,
) -> Iterator[Tally]:
    """Keep every process busy without listing all runs ahead; results in order."""
    waiting: list[multiprocessing.pool.AsyncResult[Tally]] = []
    for chunk in chunks:
        waiting.append(pool.apply_async(_run_chunk, (chunk,)))
        if len(waiting) > 2 * job_count:
            yield waiting.pop(0).get()
    while waiting:
        yield waiting.pop(0).get()


def first_tokens(violations: Sequence[tuple[Token, str]]) -> list[tuple[int, Token, str]]:
    """Violations that read alike counted as one: how often, the shortest token, the text."""
    groups: dict[str, list[tuple[Token, str]]] = {}
    for token, text in violations:
        key = "".join(char for char in text if not char.isdigit())
        groups.setdefault(key, []).append((token, text))
    found = []
    for members in groups.values():
        token, text = min(members, key=lambda member: (len(member[0].script), member[0]))
        found.append((len(members), token, text))
    return sorted(found, key=lambda entry: (-entry[0], entry[2]))
