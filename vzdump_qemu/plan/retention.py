"""Which archives of a VM stay and which go; pure.

Owns the choice, with a reason for every archive, and the promise on top of any rule: the last
whole archive of a VM stays. Reading a rule is left to `retention_rule`, removing to an adapter.
Source: host behaviour, section 2.7; names: section 2.8.

The options of a rule are applied from the finest period to the coarsest. Each one looks at the
archives from the newest on, passes over periods that an earlier option already covers, and keeps
the newest of each further period until it has its number. What else lies in a period that an
option itself opened goes for good; what lies in a period that was covered before stays undecided,
so that a coarser option may still keep it. A protected archive covers nothing: it is there for
reasons of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import assert_never

from vzdump_qemu.plan.names import is_archive_name, parse_standard_name
from vzdump_qemu.plan.retention_rule import KEEP_ALL, KeepOption, RetentionRule

PROTECTED = "protected"
RENAMED = "renamed"
NOT_COVERED = "not covered by keep-retention policy"
LAST_WHOLE = "last whole archive of the VM"
NONE_WHOLE = "no archive of the VM is known to be whole"
JUST_MADE = "just made"

LocalTime = Callable[[int], datetime]

_GUEST_TYPE = "qemu"
_OWNER = re.compile(r"vzdump-qemu-([1-9][0-9]{2,8})[-.]")
_EPOCH = datetime(1970, 1, 1)
_SUPERSEDED = {
    KeepOption.LAST: "same second as another one",
    KeepOption.HOURLY: "same hour as a newer one",
    KeepOption.DAILY: "same day as a newer one",
    KeepOption.WEEKLY: "same week as a newer one",
    KeepOption.MONTHLY: "same month as a newer one",
    KeepOption.YEARLY: "same year as a newer one",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionEntry:
    """One archive as a rule sees it.

    Attributes:
        name: unique among the archives of its VM.
        vmid: None if a renamed archive does not tell.
        time_s: when its backup began, in seconds that the caller's zone understands; None for a
            renamed archive.
    """

    name: str
    vmid: int | None
    time_s: int | None
    is_protected: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionDecision:
    """What becomes of one archive.

    Attributes:
        time_s: as in its entry.
        reason: the keep option that holds it, or one of the texts of this module.
    """

    name: str
    vmid: int | None
    time_s: int | None
    keep: bool
    reason: str


def read_entries(names: Iterable[str], *, protected: Collection[str]) -> list[RetentionEntry]:
    """The archives of VMs among base names; every other name is passed over.

    Names carry no zone, and what they say is what counts: their times are understood by
    `local_time_as_named` alone.

    Args:
        protected: those of the names that are protected.
    """
    entries = []
    for name in names:
        if not name.startswith(f"vzdump-{_GUEST_TYPE}-"):
            continue
        standard = parse_standard_name(name)
        vmid, time_s = None, None
        if standard is not None:
            vmid = standard.vmid
            time_s = (standard.local_time - _EPOCH) // timedelta(seconds=1)
        elif is_archive_name(name):
            owner = _OWNER.match(name)
            vmid = int(owner[1]) if owner else None
        else:
            continue
        entries.append(
            RetentionEntry(name=name, vmid=vmid, time_s=time_s, is_protected=name in protected)
        )
    return entries


def local_time_as_named(time_s: int) -> datetime:
    """The local time that a name told, of the seconds that `read_entries` made of it."""
    return _EPOCH + timedelta(seconds=time_s)


def decide_retention(
    entries: Iterable[RetentionEntry], rule: RetentionRule, *, local_time: LocalTime
) -> tuple[RetentionDecision, ...]:
    """Decide for all archives, each VM by itself.

    Args:
        local_time: the node's zone: local time, without a zone, of an entry's `time_s`.
    Returns:
        A decision for each entry whatever their order: by VM, newest first, renamed ones last.
    """
    decisions: list[RetentionDecision] = []
    groups: dict[int, list[_Candidate]] = {}
    for entry in entries:
        if entry.is_protected or entry.time_s is None or entry.vmid is None:
            decisions.append(
                RetentionDecision(
                    name=entry.name,
                    vmid=entry.vmid,
                    time_s=entry.time_s,
                    keep=True,
                    reason=PROTECTED if entry.is_protected else RENAMED,
                )
            )
            continue
        candidate = _Candidate(
            name=entry.name, time_s=entry.time_s, local_time=local_time(entry.time_s)
        )
        groups.setdefault(entry.vmid, []).append(candidate)
    for vmid, group in groups.items():
        # Names tell archives of the same second apart, so that no order of listing matters.
        group.sort(key=lambda candidate: (-candidate.time_s, candidate.name))
        decisions += _decide_group(vmid, group, rule)
    return tuple(sorted(decisions, key=_listing_order))


def spare_last_whole(
    decisions: Sequence[RetentionDecision], *, is_whole: Callable[[str], bool]
) -> tuple[RetentionDecision, ...]:
    """Keep the newest whole archive of each VM where the rule would leave no whole one.

    A VM of which no archive is known to be whole loses none: one of them may be after all.

    Args:
        is_whole: whether an archive can be restored from, by its name. Asked as seldom as
            possible, newest first, and only of VMs that would lose something.
    """
    spared: dict[int, str] = {}
    by_vmid: dict[int | None, list[int]] = {}
    for index, decision in enumerate(decisions):
        by_vmid.setdefault(decision.vmid, []).append(index)
    for indexes in by_vmid.values():
        going = [index for index in indexes if not decisions[index].keep]
        staying = [index for index in indexes if decisions[index].keep]
        if not going or any(is_whole(decisions[index].name) for index in staying):
            continue
        newest = next((index for index in going if is_whole(decisions[index].name)), None)
        if newest is None:
            spared |= dict.fromkeys(going, NONE_WHOLE)
        else:
            spared[newest] = LAST_WHOLE
    return tuple(
        replace(decision, keep=True, reason=spared[index]) if index in spared else decision
        for index, decision in enumerate(decisions)
    )


def spare_new(decisions: Sequence[RetentionDecision], name: str) -> tuple[RetentionDecision, ...]:
    """Keep the archive that was just made, even if a clock set back makes it look old."""
    return tuple(
        replace(decision, keep=True, reason=JUST_MADE)
        if decision.name == name and not decision.keep
        else decision
        for decision in decisions
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """An archive that a rule may remove."""

    name: str
    time_s: int
    local_time: datetime


def _decide_group(
    vmid: int, group: Sequence[_Candidate], rule: RetentionRule
) -> list[RetentionDecision]:
    if rule.keeps_all:
        marks = [(True, KEEP_ALL)] * len(group)
    else:
        found: list[tuple[bool, str] | None] = [None] * len(group)
        for option in KeepOption:
            _mark(group, found, option, count=rule.counts.get(option, 0))
        marks = [mark or (False, NOT_COVERED) for mark in found]
    return [
        RetentionDecision(
            name=candidate.name,
            vmid=vmid,
            time_s=candidate.time_s,
            keep=keep,
            reason=reason,
        )
        for candidate, (keep, reason) in zip(group, marks, strict=True)
    ]


def _mark(
    group: Sequence[_Candidate],
    marks: list[tuple[bool, str] | None],
    option: KeepOption,
    *,
    count: int,
) -> None:
    """Apply one option to archives sorted newest first; marks once set stay."""
    if count <= 0:
        return
    # Before anything is opened: all of what earlier options keep, be it newer or older.
    covered = {
        _period(candidate, option)
        for candidate, mark in zip(group, marks, strict=True)
        if mark is not None and mark[0]
    }
    opened: set[Hashable] = set()
    for index, candidate in enumerate(group):
        if marks[index] is not None:
            continue
        period = _period(candidate, option)
        if period in covered:
            continue
        if period in opened:
            marks[index] = (False, _SUPERSEDED[option])
        elif len(opened) >= count:
            return
        else:
            opened.add(period)
            marks[index] = (True, option.value)


def _period(candidate: _Candidate, option: KeepOption) -> Hashable:
    moment = candidate.local_time
    match option:
        case KeepOption.LAST:
            return candidate.time_s
        case KeepOption.HOURLY:
            return moment.year, moment.month, moment.day, moment.hour
        case KeepOption.DAILY:
            return moment.year, moment.month, moment.day
        case KeepOption.WEEKLY:
            return moment.isocalendar()[:2]
        case KeepOption.MONTHLY:
            return moment.year, moment.month
        case KeepOption.YEARLY:
            return moment.year
        case _:
            assert_never(option)


def _listing_order(decision: RetentionDecision) -> tuple[bool, int, bool, int, str]:
    time_s = decision.time_s
    return decision.vmid is None, decision.vmid or 0, time_s is None, -(time_s or 0), decision.name
