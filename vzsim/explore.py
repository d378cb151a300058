"""Exploring: scenarios × fault scripts × seeds, many runs, one verdict.

Owns which runs are made, spreading them over processes, and the sums. What a run is belongs to
`vzsim.simulation`; how sums are shown to `vzsim.explore_table`.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.pool
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from vzdump_qemu.errors import ConfigError
from vzsim.faults import FaultScript
from vzsim.faults.draw import Place, census, draw_script, list_doubles, list_singles
from vzsim.kernel import Chance
from vzsim.scenario import Scenario, load_scenarios
from vzsim.simulation import DEFAULT_SYSTEM, SECOND_PREFIX, Report, System, load_system, simulate
from vzsim.token import Token

# Runs handed to a process at a time: enough to keep it busy, few enough to stop in time.
_CHUNK = 16
# Runs that fail in different ways, so that the sites of every undo are known.
_SCOUTS = (
    "backup#1: job-fails",
    "cancel-tool@clock.sleep#1",
    "cancel-tool@agent.thaw#1",
    "cancel-tool@intake.finish#1",
    "agent.freeze#1: stall 700s",
    "agent.thaw#1: error",
    "query-proxmox-support#1: error",
    "start-vm@clock.sleep#1",
    "qemu-dies@clock.sleep#1",
    "files.rename#1: eio",
)
_KILLED_SCOUTS = (
    "kill-tool@agent.thaw#1",
    "kill-tool@clock.sleep#1",
    "kill-tool@qmp.connect#4",
    "kill-tool@intake.publish#1",
    "kill-tool-after@getfd#1",
    "kill-tool-after@power.suspend#1",
    "kill-tool-after@power.shut_down#1",
    "kill-tool-after@power.start_paused#1",
    "kill-tool@packer.begin#1",
    "power-loss@clock.sleep#1",
)
_TURN_STRIDE = 13


@dataclass(frozen=True, slots=True, kw_only=True)
class ExploreOptions:
    """What to explore.

    Attributes:
        seed_count: runs with faults drawn by seed, over all scenarios in turn.
        first_seed: where seeds begin.
        exhaustive: 0, or every single fault (1), or pairs in the focus as well (2).
        time_limit_s: no new runs after that; 0 means no limit.
        log_directory: one event log per run; empty for none.
        with_kills: the tool may be killed as well.
        stop_early: no new runs after the first that violates something.
    """

    system: str = DEFAULT_SYSTEM
    scenarios: tuple[str, ...] = ()
    seed_count: int = 200
    first_seed: int = 1
    exhaustive: int = 0
    job_count: int = 1
    time_limit_s: float = 0.0
    log_directory: str = ""
    with_kills: bool = True
    stop_early: bool = False


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
            site for site in report.visit_counts if not site.startswith(SECOND_PREFIX)
        )
        for evidence in report.evidences[:1]:
            self.endings[evidence.ending.value] += 1
        for fault in report.triggered:
            self.kinds[fault.kind.value] += 1
            self.sites[fault.site] += 1
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


@cache
def _scenarios() -> dict[str, Scenario]:
    return load_scenarios()


@cache
def _system(name: str) -> System:
    return load_system(name)


def replay(token: Token, *, system: str = DEFAULT_SYSTEM) -> Report:
    """Make the run of a token. Raises ConfigError for a scenario that does not exist."""
    scenario = _scenarios().get(token.scenario)
    if scenario is None:
        raise ConfigError(f"no scenario '{token.scenario}'")
    return simulate(_system(system), scenario, token.faults, token.seed)


@cache
def _places_of_run(system: str, scenario_name: str, script: str) -> tuple[Place, ...]:
    report = simulate(
        _system(system), _scenarios()[scenario_name], FaultScript.parse(script), seed=0
    )
    places = census(report.visit_counts, report.families)
    return tuple(place for place in places if not place.site.startswith(SECOND_PREFIX))


def _scouts_for(system: str, scenario_name: str, *, with_kills: bool) -> list[str]:
    """The scouts whose fault would happen; any other ends as the run without one does."""
    last_uses: dict[str, int] = {}
    for place in _places_of_run(system, scenario_name, ""):
        last_uses[place.site] = max(place.nth, last_uses.get(place.site, 0))
    texts = _SCOUTS + (_KILLED_SCOUTS if with_kills else ())
    return [
        text
        for text in texts
        if all(last_uses.get(f.site, 0) >= f.nth for f in FaultScript.parse(text).faults)
    ]


def scout(system: str, scenario_name: str, *, with_kills: bool) -> tuple[Place, ...]:
    """All places of a scenario that we know of, from runs that end in different ways."""
    texts = ["", *_scouts_for(system, scenario_name, with_kills=with_kills)]
    places = {place for text in texts for place in _places_of_run(system, scenario_name, text)}
    return tuple(sorted(places))


def _take_turn(
    system: str, scenario_name: str, turn_index: int, *, with_kills: bool
) -> tuple[tuple[Place, ...], str]:
    """Places from the plain run and one scout's, and the site whose turn it is.

    Each scout comes round in turn, and each site: one that only this scout found, then one of the
    plain run.
    """
    plain = _places_of_run(system, scenario_name, "")
    texts = _scouts_for(system, scenario_name, with_kills=with_kills)
    if not texts:
        sites = sorted({place.site for place in plain})
        return plain, sites[turn_index % len(sites)] if sites else ""
    round_index, scout_index = divmod(turn_index, len(texts))
    found = _places_of_run(system, scenario_name, texts[scout_index])
    known = {place.site for place in plain}
    added = sorted({place.site for place in found} - known)
    if added and round_index % 2 == 0:
        site = added[round_index // 2 % len(added)]
    else:
        site = sorted(known)[turn_index % len(known)]
    return tuple(sorted({*plain, *found})), site


def list_tokens(options: ExploreOptions) -> Iterator[Token]:
    """Every run that these options ask for."""
    names = options.scenarios or tuple(_scenarios())
    for name in names:
        if options.exhaustive:
            plain = simulate(_system(options.system), _scenarios()[name], FaultScript(), 0)
            places = census(plain.visit_counts, plain.families)
            yield Token(scenario=name, seed=0, script="")
            lists = [list_singles(places, with_kills=options.with_kills)]
            if options.exhaustive > 1:
                lists.append(list_doubles(places, with_kills=options.with_kills))
            for scripts in lists:
                for script in scripts:
                    yield Token(scenario=name, seed=0, script=script.render())
    for seed in range(options.first_seed, options.first_seed + options.seed_count):
        turn_count, name_index = divmod(seed, len(names))
        name = names[name_index]
        # Scenarios of one kind share their sites: they begin at different ones.
        turn_index = turn_count + _TURN_STRIDE * name_index
        places_of, site = _take_turn(
            options.system, name, turn_index, with_kills=options.with_kills
        )
        stream = Chance(seed).of("faults").stream()
        script = draw_script(stream, places_of, with_kills=options.with_kills, first_site=site)
        yield Token(scenario=name, seed=seed, script=script.render())


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


def explore(options: ExploreOptions) -> Tally:
    """Make all runs (until the time is over) and add them up."""
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

    if options.job_count <= 1:
        for chunk in bounded():
            total.add(_run_chunk(chunk))
    else:
        with multiprocessing.get_context("spawn").Pool(options.job_count) as pool:
            for tally in _spread(pool, bounded(), options.job_count):
                total.add(tally)
    total.real_s = time.monotonic() - began_s
    return total


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
