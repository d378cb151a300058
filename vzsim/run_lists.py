"""Which runs an exploration makes: every fault at every site, pairs in the focus, seeds.

Owns the scouting of a scenario's sites and the order of the runs; what faults there are at a site
is left to `vzsim.faults.draw`, making the runs to `vzsim.explore`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from vzsim.batch.draw import draw_batch_script, spread_places
from vzsim.faults import FaultScript, bare_site
from vzsim.faults.draw import (
    Place,
    census,
    draw_script,
    list_doubles,
    list_singles,
    start_site,
)
from vzsim.kernel import Chance, keep_all
from vzsim.scenario import Scenario, choose_scenarios, load_scenarios
from vzsim.simulation import simulate
from vzsim.system import DEFAULT_SYSTEM, System, load_system
from vzsim.token import Token
from vzsim.trial import SECOND_PREFIX

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
    "power.start_paused#1: error",
    "quit#1: error",
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
    "kill-tool-after@power.start_paused#1; recovery.quit#1: error",
    "kill-tool@packer.begin#1",
    "power-loss@clock.sleep#1",
)
_TURN_STRIDE = 13
# Where a site is tried if that scenario comes to it; the cheap ones first.
_BASIC = ("pull-running", "snapshot-running", "pull-pbs", "native-pbs")
_USE_COUNT = 3


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


@cache
def known_scenarios() -> dict[str, Scenario]:
    """All scenarios by name."""
    return load_scenarios()


@cache
def known_system(name: str) -> System:
    """A system under test by name."""
    system = load_system(name)
    keep_all()
    return system


@cache
def _places_of_run(system: str, scenario_name: str, script: str) -> tuple[Place, ...]:
    report = simulate(
        known_system(system), known_scenarios()[scenario_name], FaultScript.parse(script), seed=0
    )
    places = census(report.visit_counts, report.families)
    return tuple(place for place in places if not place.site.startswith(SECOND_PREFIX))


@cache
def _scouts_for(system: str, scenario_name: str, *, with_kills: bool) -> tuple[str, ...]:
    """The scouts whose first fault would happen; any other ends as the run without one does."""
    last_uses: dict[str, int] = {}
    for place in _places_of_run(system, scenario_name, ""):
        last_uses[place.site] = max(place.nth, last_uses.get(place.site, 0))
    texts = _SCOUTS + (_KILLED_SCOUTS if with_kills else ())
    firsts = {text: FaultScript.parse(text).faults[0] for text in texts}
    return tuple(text for text in texts if last_uses.get(firsts[text].site, 0) >= firsts[text].nth)


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
    names = options.scenarios or tuple(each.name for each in choose_scenarios(""))
    if options.exhaustive:
        yield from _list_exhaustive(options, sorted(names, key=_rank))
    for seed in range(options.first_seed, options.first_seed + options.seed_count):
        turn_count, name_index = divmod(seed, len(names))
        name = names[name_index]
        # Scenarios of one kind share their sites: they begin at different ones.
        turn_index = turn_count + _TURN_STRIDE * name_index
        if known_scenarios()[name].is_batch:
            yield Token(scenario=name, seed=seed, script=_draw_for_batch(options, name, seed))
            continue
        places_of, site = _take_turn(
            options.system, name, turn_index, with_kills=options.with_kills
        )
        stream = Chance(seed).of("faults").stream()
        script = draw_script(stream, places_of, with_kills=options.with_kills, first_site=site)
        yield Token(scenario=name, seed=seed, script=script.render())


@cache
def _places_of_batch(system: str, name: str) -> tuple[Place, ...]:
    """Of all VMs of a job, from a job over two of them: they are alike."""
    scenario = known_scenarios()[name]
    small = replace(scenario, vm_count=2, faults=FaultScript(), failing={}, heals=False)
    report = simulate(known_system(system), small, FaultScript(), seed=0)
    return tuple(spread_places(census(report.visit_counts, report.families), scenario.vm_count))


def _draw_for_batch(options: ExploreOptions, name: str, seed: int) -> str:
    script = draw_batch_script(
        Chance(seed).of("faults").stream(),
        _places_of_batch(options.system, name),
        with_job_wide=not known_scenarios()[name].is_big,
        with_kills=options.with_kills,
    )
    return script.render()


def _rank(name: str) -> int:
    return _BASIC.index(name) if name in _BASIC else len(_BASIC)


def _list_exhaustive(options: ExploreOptions, names: Sequence[str]) -> Iterator[Token]:
    """Every scenario as it is, every fault at every site once, and pairs in the focus.

    A site is tried in the first scenario that comes to it: as it is, or after a scout's fault
    where only a failing or killed run comes there. Pairs are tried in the first scenario of each
    kind of freeze window.
    """
    for name in names:
        yield Token(scenario=name, seed=0, script="")
    seen: set[tuple[str, int]] = set()
    paired: set[str] = set()
    for name in names:
        plain = _places_of_run(options.system, name, "")
        texts = [""]
        # Where a plain run shows nothing new its failures do not either.
        if any(_use_of(place) not in seen for place in plain):
            texts += _scouts_for(options.system, name, with_kills=options.with_kills)
        for text in texts:
            places = _places_of_run(options.system, name, text)
            fresh = _only_new(places, seen)
            for script in list_singles(fresh, with_kills=options.with_kills):
                yield Token(scenario=name, seed=0, script=_join(text, script))
        if options.exhaustive > 1:
            start = start_site(plain)
            if start and start not in paired:
                paired.add(start)
                for script in list_doubles(plain, with_kills=options.with_kills):
                    yield Token(scenario=name, seed=0, script=script.render())


def _only_new(places: Sequence[Place], seen: set[tuple[str, int]]) -> list[Place]:
    """One place for each use that was not seen yet; they count as seen from now on."""
    fresh = []
    for place in places:
        if _use_of(place) not in seen:
            fresh.append(place)
            if "/" in place.site:  # other VMs come to the same
                seen.add(_use_of(place))
    seen.update(map(_use_of, fresh))
    return fresh


def _use_of(place: Place) -> tuple[str, int]:
    """The first, the second, and any later use of a site, whichever VM's it is."""
    return bare_site(place.site), min(place.nth, _USE_COUNT)


def _join(text: str, script: FaultScript) -> str:
    return (FaultScript.parse(text) + script).render()
