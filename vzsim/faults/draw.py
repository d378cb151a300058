"""Where faults can be put, all of them or some by chance.

Owns the census of a scenario's sites, the exhaustive lists for one and two faults, and the swarm: a
run's own mix of kinds, some of them off altogether.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vzsim.faults.kinds import (
    ACTLESS,
    ACTS,
    KILLS,
    KINDS_OF,
    LENGTHS_S,
    SYNCING,
    Family,
    Kind,
)
from vzsim.faults.script import Fault, FaultScript

FAULT_COUNT_MAX = 5
_SIGNALS = KILLS | {Kind.CANCEL_TOOL, Kind.CANCEL_TOOL_AFTER}
# Of a site that is used in a loop these uses stand for all: the first two and the last.
_EARLY_USES = 2
_RECOVERY = "recovery."
_STARTS = ("backup", "blockdev-reopen")
_WINDOW = ("agent.freeze", "agent.status", "agent.thaw", *_STARTS)
_PUBLISHING = (
    "intake.finish",
    "intake.publish",
    "files.fsync",
    "files.rename",
    "files.fsync-directory",
)
_FOCUS = (*_WINDOW, *_PUBLISHING)
"""The freeze window and the publish step, where pairs of faults are tried exhaustively."""
_ENDS = frozenset({Kind.CANCEL_TOOL, Kind.KILL_TOOL, Kind.POWER_LOSS, Kind.QEMU_DIES})
# Of faults that are drawn so many meet the focus, a handful among some eighty sites.
_FOCUS_SHARE = 0.35
# Runs that meet nothing but what their scenario is about.
_PLAIN_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Place:
    """One use of one site."""

    site: str
    nth: int
    family: str


def census(counts: Mapping[str, int], families: Mapping[str, Family]) -> list[Place]:
    """The places of one run worth trying, in the order of their names."""
    places = []
    for site, count in sorted(counts.items()):
        uses = {*range(1, min(count, _EARLY_USES) + 1), count}
        family = families[site].value
        places += [Place(site=site, nth=nth, family=family) for nth in sorted(uses)]
    return places


def faults_at(place: Place, *, with_kills: bool) -> Iterator[Fault]:
    """Every fault that can happen at a place."""
    family = Family(place.family)
    kinds: list[Kind] = list(KINDS_OF[family])
    if family not in ACTLESS:
        kinds += [kind for kind in Kind if kind in ACTS and (with_kills or kind not in KILLS)]
    elif family in SYNCING and with_kills:
        kinds.append(Kind.POWER_LOSS)
    for kind in kinds:
        for length_s in LENGTHS_S.get(kind, (0.0,)):
            yield Fault(site=place.site, nth=place.nth, kind=kind, length_s=length_s)


def list_singles(places: Sequence[Place], *, with_kills: bool) -> Iterator[FaultScript]:
    """Each fault at each place, alone."""
    for place in places:
        for fault in faults_at(place, with_kills=with_kills):
            yield FaultScript((fault,))


def start_site(places: Sequence[Place]) -> str:
    """What fixes the point in time in a run that freezes its guest; empty if nothing does."""
    sites = {place.site for place in places}
    starts = [site for site in _STARTS if site in sites]
    return starts[0] if starts and "agent.freeze" in sites else ""


def list_doubles(places: Sequence[Place], *, with_kills: bool) -> Iterator[FaultScript]:
    """Each pair of faults in the freeze window, and each at the publish step.

    First uses only, of a kind with several lengths the longest, and of what others do only that
    which ends the tool or QEMU; the rest is left to chance.
    """
    for sites in (_WINDOW, _PUBLISHING):
        focus = [place for place in places if place.site in sites and place.nth == 1]
        for first, second in itertools.combinations(focus, 2):
            for one in _kinds_at(first, with_kills=with_kills):
                for other in _kinds_at(second, with_kills=with_kills):
                    yield FaultScript((one, other))


def _kinds_at(place: Place, *, with_kills: bool) -> list[Fault]:
    longest = {
        fault.kind: fault
        for fault in faults_at(place, with_kills=with_kills)
        if fault.kind not in ACTS or fault.kind in _ENDS
    }
    return list(longest.values())


def draw_script(
    stream: random.Random,
    places: Sequence[Place],
    *,
    with_kills: bool,
    first_site: str = "",
) -> FaultScript:
    """A run's own mix: some kinds are off, few faults are likelier than many.

    Args:
        first_site: the site that is tried first; a caller that goes round them leaves none out
            for long, however many there are. Empty for any.
    """
    allowed = {kind for kind in Kind if stream.random() < 0.6}
    by_site: dict[str, list[Place]] = {}
    for place in places:
        by_site.setdefault(place.site, []).append(place)
    sites = sorted(by_site)
    # (A tool that asks nothing of its world has no sites.)
    if stream.random() < _PLAIN_SHARE or not sites:
        return FaultScript()
    focus = [site for site in sites if site in _FOCUS]
    faults: dict[tuple[str, int], Fault] = {}
    count = min(FAULT_COUNT_MAX, 1 + int(stream.expovariate(1.0)))
    for attempt_index in range(4 * count):
        if len(faults) == count:
            break
        near = focus if focus and stream.random() < _FOCUS_SHARE else sites
        site = stream.choice(near)
        if first_site in by_site and attempt_index == 0:
            site = first_site
        place = stream.choice(by_site[site])
        options = [
            fault for fault in faults_at(place, with_kills=with_kills) if fault.kind in allowed
        ]
        if options:
            # By kind first: a kind with many lengths is no likelier than one with none.
            kinds = sorted({fault.kind for fault in options})
            kind = stream.choice(_choose_group(stream, kinds))
            fault = stream.choice([fault for fault in options if fault.kind is kind])
            faults[(place.site, place.nth)] = fault
    if with_kills and any(site.startswith(_RECOVERY) for site, _ in faults):
        _add_kill(stream, places, faults)
    return FaultScript(tuple(faults.values()))


def _choose_group(stream: random.Random, kinds: Sequence[Kind]) -> Sequence[Kind]:
    """What fails by itself half of the time, else a signal to the tool or something others do.

    Others can do so many things that, one by one, they would leave little room for the rest.
    """
    own = [kind for kind in kinds if kind not in ACTS]
    signals = [kind for kind in kinds if kind in _SIGNALS]
    others = [kind for kind in kinds if kind in ACTS - _SIGNALS]
    groups = [group for group in (own, own, signals, others) if group]
    return stream.choice(groups)


def _add_kill(
    stream: random.Random, places: Sequence[Place], faults: dict[tuple[str, int], Fault]
) -> None:
    """A recovery can only fail where there is one: the run before it is killed somewhere."""
    own = [
        place
        for place in places
        if not place.site.startswith(_RECOVERY) and Family(place.family) not in ACTLESS
    ]
    if own:
        place = stream.choice(own)
        kind = stream.choice(sorted(KILLS))
        faults[(place.site, place.nth)] = Fault(site=place.site, nth=place.nth, kind=kind)
