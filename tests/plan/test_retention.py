"""Retention: the vectors of host behaviour 2.7, each also with one protected entry, and laws."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vzdump_qemu.plan.retention import (
    JUST_MADE,
    LAST_WHOLE,
    NONE_WHOLE,
    NOT_COVERED,
    PROTECTED,
    RENAMED,
    RetentionDecision,
    RetentionEntry,
    decide_retention,
    local_time_as_named,
    read_entries,
    spare_last_whole,
    spare_new,
)
from vzdump_qemu.plan.retention_rule import KeepOption, RetentionRule, parse_prune_backups

AROUND_NEW_YEAR = (
    *("2024-12-28 01:00", "2024-12-29 01:00", "2024-12-30 01:00", "2024-12-31 01:00"),
    *("2025-01-01 01:00", "2025-01-02 01:00", "2025-01-06 01:00"),
)
ADVENT = tuple(
    f"{datetime(2020, 11, 29, 2) + timedelta(days=day):%Y-%m-%d %H:%M}" for day in range(8)
)
MARCH = (
    *("2024-03-01 00:00", "2024-03-02 00:00", "2024-03-02 13:00", "2024-03-03 00:00"),
    *("2024-03-04 00:00", "2024-03-04 13:00", "2024-03-05 00:00"),
)


def name_of(moment: str, vmid: int = 100) -> str:
    """Archive name of a moment like ``2024-03-01 13:00``."""
    return f"vzdump-qemu-{vmid}-{datetime.fromisoformat(moment):%Y_%m_%d-%H_%M_%S}.vma.zst"


def decide(
    moments: Sequence[str], rule: str, protected: Sequence[str] = ()
) -> tuple[RetentionDecision, ...]:
    entries = read_entries(
        map(name_of, moments), protected=frozenset(name_of(moment) for moment in protected)
    )
    return decide_retention(entries, parse_prune_backups(rule), local_time=local_time_as_named)


def kept(decisions: Sequence[RetentionDecision]) -> set[str]:
    return {
        f"{local_time_as_named(decision.time_s):%Y-%m-%d %H:%M}"
        for decision in decisions
        if decision.keep and decision.time_s is not None
    }


@pytest.mark.parametrize(
    ("moments", "rule", "stay"),
    [
        (
            ADVENT,
            "keep-daily=1,keep-weekly=1,keep-monthly=1",
            {"2020-12-06 02:00", "2020-11-29 02:00"},
        ),
        (
            AROUND_NEW_YEAR,
            "keep-last=1,keep-weekly=1,keep-yearly=1",
            {"2025-01-06 01:00", "2025-01-02 01:00", "2024-12-29 01:00"},
        ),
        (AROUND_NEW_YEAR, "keep-weekly=2", {"2025-01-06 01:00", "2025-01-02 01:00"}),
        (
            MARCH,
            "keep-last=1,keep-daily=2",
            {"2024-03-05 00:00", "2024-03-04 13:00", "2024-03-03 00:00"},
        ),
    ],
    ids=["weeks-and-months", "iso-week-over-new-year", "weekly-2", "last-then-daily"],
)
def test_row_2_7_vector_keeps_what_the_row_says(
    moments: tuple[str, ...], rule: str, stay: set[str]
) -> None:
    assert kept(decide(moments, rule)) == stay
    assert kept(decide(tuple(reversed(moments)), rule)) == stay


# The same with one protected entry, which stays and covers no period.
@pytest.mark.parametrize(
    ("moments", "rule", "protected", "stay"),
    [
        (
            ADVENT,
            "keep-daily=1,keep-weekly=1,keep-monthly=1",
            "2020-12-06 02:00",
            {"2020-12-06 02:00", "2020-12-05 02:00", "2020-11-29 02:00"},
        ),
        (
            AROUND_NEW_YEAR,
            "keep-last=1,keep-weekly=1,keep-yearly=1",
            "2025-01-06 01:00",
            # `last` covers week 1 and 2025, `weekly` takes week 52 and so covers 2024.
            {"2025-01-06 01:00", "2025-01-02 01:00", "2024-12-29 01:00"},
        ),
        (
            AROUND_NEW_YEAR,
            "keep-weekly=2",
            "2025-01-06 01:00",
            {"2025-01-06 01:00", "2025-01-02 01:00", "2024-12-29 01:00"},
        ),
        (
            MARCH,
            "keep-last=1,keep-daily=2",
            "2024-03-04 13:00",
            {"2024-03-05 00:00", "2024-03-04 13:00", "2024-03-04 00:00", "2024-03-03 00:00"},
        ),
    ],
    ids=["weeks-and-months", "iso-week-over-new-year", "weekly-2", "last-then-daily"],
)
def test_row_10_1_6_vector_with_a_protected_entry(
    moments: tuple[str, ...], rule: str, protected: str, stay: set[str]
) -> None:
    decisions = decide(moments, rule, protected=(protected,))
    assert kept(decisions) == stay
    assert [d.reason for d in decisions if d.name == name_of(protected)] == [PROTECTED]


def test_days_of_a_covered_week_may_be_kept_by_a_coarser_option() -> None:
    moments = ("2024-12-30 01:00", "2024-12-31 01:00", "2025-01-02 01:00")
    decisions = decide(moments, "keep-last=1,keep-weekly=1,keep-yearly=1")
    assert kept(decisions) == {"2025-01-02 01:00", "2024-12-31 01:00"}
    opened = decide(moments, "keep-weekly=1,keep-yearly=1")
    assert kept(opened) == {"2025-01-02 01:00"}


def test_reasons_name_the_option_or_what_stood_in_the_way() -> None:
    decisions = decide(MARCH, "keep-last=1,keep-daily=2")
    assert [(decision.keep, decision.reason) for decision in decisions] == [
        (True, "keep-last"),
        (True, "keep-daily"),
        (False, "same day as a newer one"),
        (True, "keep-daily"),
        (False, NOT_COVERED),
        (False, NOT_COVERED),
        (False, NOT_COVERED),
    ]


@pytest.mark.parametrize("rule", ["keep-all=1", "keep-last=0", "keep-daily=0,keep-weekly=0"])
def test_rule_without_a_positive_count_keeps_all(rule: str) -> None:
    assert {(d.keep, d.reason) for d in decide(MARCH, rule)} == {(True, "keep-all")}


def test_renamed_archives_stay_and_cover_nothing() -> None:
    renamed = "vzdump-qemu-100-before-the-upgrade.vma.zst"
    entries = read_entries([renamed, *map(name_of, MARCH)], protected=())
    decisions = decide_retention(
        entries, parse_prune_backups("keep-last=1"), local_time=local_time_as_named
    )
    assert (decisions[-1].name, decisions[-1].reason) == (renamed, RENAMED)
    assert decisions[-1].vmid == 100
    assert kept(decisions) == {"2024-03-05 00:00"}


def test_protected_renamed_archive_is_told_as_protected() -> None:
    renamed = "vzdump-qemu-100-mine.vma"
    entries = read_entries([renamed], protected=[renamed])
    [decision] = decide_retention(
        entries, parse_prune_backups("keep-last=1"), local_time=local_time_as_named
    )
    assert (decision.keep, decision.reason) == (True, PROTECTED)


@pytest.mark.parametrize(
    "name",
    [
        "vzdump-lxc-100-2024_03_01-00_00_00.tar.zst",
        "vzdump-qemu-100-2024_03_01-00_00_00.vma.dat",
        "vzdump-qemu-100-2024_03_01-00_00_00.log",
        "vzdump-qemu-100-2024_03_01-00_00_00.vma.zst.notes",
        "vzdump-qemu-100-2024_03_01-00_00_00.tmp",
        "disk.raw",
    ],
)
def test_other_names_take_no_part(name: str) -> None:
    assert read_entries([name], protected=()) == []


@pytest.mark.parametrize(
    ("name", "vmid"),
    [
        ("vzdump-qemu-100-2024_02_30-00_00_00.vma", 100),
        ("vzdump-qemu-0100-2024_03_01-00_00_00.vma", None),
        ("vzdump-qemu-99-2024_03_01-00_00_00.vma", None),
        ("vzdump-qemu-100-2024_03_01-00_00_00-copy.vma", 100),
        ("vzdump-qemu-web.vma", None),
    ],
)
def test_names_that_are_not_standard_count_as_renamed(name: str, vmid: int | None) -> None:
    [entry] = read_entries([name], protected=())
    assert (entry.time_s, entry.vmid) == (None, vmid)


def test_each_vm_is_decided_by_itself() -> None:
    names = [name_of(moment, vmid) for moment in MARCH for vmid in (100, 101)]
    decisions = decide_retention(
        read_entries(names, protected=()),
        parse_prune_backups("keep-last=1"),
        local_time=local_time_as_named,
    )
    assert [(d.vmid, d.name) for d in decisions if d.keep] == [
        (100, name_of(MARCH[-1], 100)),
        (101, name_of(MARCH[-1], 101)),
    ]


@pytest.mark.parametrize(
    ("zone", "stay_hours"),
    [("UTC", {0, 23}), ("Europe/Vienna", {0})],
)
def test_periods_are_those_of_the_given_zone(zone: str, stay_hours: set[int]) -> None:
    # 23:00 UTC of the 30th and 00:00 UTC of the 31st: one day in Vienna, two in UTC.
    moments = [datetime(2024, 10, 30, 23, tzinfo=UTC), datetime(2024, 10, 31, 0, tzinfo=UTC)]
    entries = [
        RetentionEntry(name=f"{moment:%H}", vmid=100, time_s=int(moment.timestamp()))
        for moment in moments
    ]

    def local_time(time_s: int) -> datetime:
        return datetime.fromtimestamp(time_s, ZoneInfo(zone)).replace(tzinfo=None)

    decisions = decide_retention(
        entries, parse_prune_backups("keep-daily=5"), local_time=local_time
    )
    assert {int(decision.name) for decision in decisions if decision.keep} == stay_hours


def test_hour_that_comes_twice_is_one_period() -> None:
    # 2024-10-27: 02:30 summer time, then 02:10 winter time, 40 minutes later.
    zone = ZoneInfo("Europe/Vienna")
    first = int(datetime(2024, 10, 27, 2, 30, tzinfo=zone, fold=0).timestamp())
    second = int(datetime(2024, 10, 27, 2, 10, tzinfo=zone, fold=1).timestamp())
    assert second - first == 40 * 60
    decisions = decide_retention(
        [
            RetentionEntry(name="first", vmid=100, time_s=first),
            RetentionEntry(name="second", vmid=100, time_s=second),
        ],
        parse_prune_backups("keep-hourly=3"),
        local_time=lambda s: datetime.fromtimestamp(s, zone).replace(tzinfo=None),
    )
    assert [(d.name, d.keep) for d in decisions] == [("second", True), ("first", False)]


def test_archives_of_one_second_leave_one() -> None:
    moment = name_of(MARCH[0])
    twin = moment.removesuffix(".zst")
    for names in ([moment, twin], [twin, moment]):
        decisions = decide_retention(
            read_entries(names, protected=()),
            parse_prune_backups("keep-last=5"),
            local_time=local_time_as_named,
        )
        assert [(d.name, d.keep) for d in decisions] == [(twin, True), (moment, False)]


# The promise on top of every rule: the last whole archive of a VM stays.


def whole_but(*broken: str) -> tuple[RetentionDecision, ...]:
    names = {name_of(moment) for moment in broken}
    return spare_last_whole(decide(MARCH, "keep-last=1"), is_whole=lambda name: name not in names)


def test_whole_archive_that_stays_needs_no_other() -> None:
    assert whole_but() == decide(MARCH, "keep-last=1")


def test_last_whole_archive_stays_when_the_newest_is_broken() -> None:
    decisions = whole_but("2024-03-05 00:00", "2024-03-04 13:00")
    assert kept(decisions) == {"2024-03-05 00:00", "2024-03-04 00:00"}
    assert [d.reason for d in decisions if d.keep] == ["keep-last", LAST_WHOLE]


def test_vm_without_a_whole_archive_loses_none() -> None:
    decisions = whole_but(*MARCH)
    assert all(decision.keep for decision in decisions)
    assert {decision.reason for decision in decisions[1:]} == {NONE_WHOLE}


def test_wholeness_is_asked_only_where_something_goes() -> None:
    def refuse(name: str) -> bool:
        raise AssertionError(name)

    decisions = decide(MARCH, "keep-last=50")
    assert spare_last_whole(decisions, is_whole=refuse) == decisions


def test_wholeness_is_asked_of_the_newest_that_stays_first() -> None:
    asked: list[str] = []

    def is_whole(name: str) -> bool:
        asked.append(name)
        return True

    spare_last_whole(decide(MARCH, "keep-last=3"), is_whole=is_whole)
    assert asked == [name_of("2024-03-05 00:00")]


def test_protected_whole_archive_is_enough() -> None:
    decisions = decide(MARCH, "keep-last=1", protected=("2024-03-01 00:00",))
    spared = spare_last_whole(decisions, is_whole=lambda name: name == name_of("2024-03-01 00:00"))
    assert spared == decisions


def test_archive_that_was_just_made_stays_though_the_clock_was_set_back() -> None:
    decisions = spare_new(decide(MARCH, "keep-last=1"), name_of("2024-03-01 00:00"))
    assert [(d.reason) for d in decisions if d.keep] == ["keep-last", JUST_MADE]
    assert spare_new(decisions, name_of("2024-03-05 00:00")) == decisions


# Laws.

START_S = int((datetime(2023, 12, 20) - datetime(1970, 1, 1)).total_seconds())
HOUR_S = 3600
SOME: dict[str, Any] = {"min_size": 1, "max_size": 60, "unique": True}
# Many of a few days, or a few of many.
times = st.one_of(
    st.lists(st.integers(0, 60 * 24).map(lambda hour: hour * HOUR_S // 4), **SOME),
    st.lists(st.integers(0, 900).map(lambda day: day * 24 * HOUR_S), **SOME),
).map(lambda offsets: [START_S + offset for offset in offsets])
counts = st.dictionaries(st.sampled_from(list(KeepOption)), st.integers(0, 6))
# Each period of these lies within one period of the next: weeks do not fit into months.
NESTED = (
    (KeepOption.LAST, KeepOption.HOURLY, KeepOption.DAILY, KeepOption.WEEKLY),
    (
        *(KeepOption.LAST, KeepOption.HOURLY, KeepOption.DAILY),
        *(KeepOption.MONTHLY, KeepOption.YEARLY),
    ),
)
nested_counts = st.sampled_from(NESTED).flatmap(
    lambda options: st.tuples(
        st.sampled_from(options), st.dictionaries(st.sampled_from(options), st.integers(0, 6))
    )
)
# What comes after months is nested whatever came before.
coarse_counts = st.tuples(st.sampled_from([KeepOption.MONTHLY, KeepOption.YEARLY]), counts)


def make_entries(times_s: Sequence[int], protected: Sequence[bool] = ()) -> list[RetentionEntry]:
    return [
        RetentionEntry(
            name=str(index),
            vmid=100,
            time_s=time_s,
            is_protected=index < len(protected) and protected[index],
        )
        for index, time_s in enumerate(times_s)
    ]


def names_kept(entries: Sequence[RetentionEntry], rule: RetentionRule) -> set[str]:
    decisions = decide_retention(entries, rule, local_time=local_time_as_named)
    return {decision.name for decision in decisions if decision.keep}


@given(times, counts, st.randoms(use_true_random=False))
def test_order_of_listing_changes_nothing(
    times_s: list[int], counts: dict[KeepOption, int], random: object
) -> None:
    entries = make_entries(times_s)
    shuffled = list(entries)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    rule = RetentionRule(counts=counts)
    assert decide_retention(entries, rule, local_time=local_time_as_named) == decide_retention(
        shuffled, rule, local_time=local_time_as_named
    )


@given(times, nested_counts | coarse_counts)
def test_greater_count_keeps_everything_and_perhaps_more(
    times_s: list[int], chosen: tuple[KeepOption, dict[KeepOption, int]]
) -> None:
    raised, counts = chosen
    rule = RetentionRule(counts=counts)
    if rule.keeps_all:
        return
    more = RetentionRule(counts={**counts, raised: counts.get(raised, 0) + 1})
    entries = make_entries(times_s)
    assert names_kept(entries, rule) <= names_kept(entries, more)


def test_one_week_more_may_trade_an_archive_of_the_month_before() -> None:
    # A week over the turn of the month: opened by `weekly`, its days of the old month are gone.
    moments = ("2024-12-28 01:00", "2024-12-31 01:00", "2025-01-02 01:00", "2025-01-08 01:00")
    without = kept(decide(moments, "keep-weekly=1,keep-monthly=1"))
    assert without == {"2025-01-08 01:00", "2024-12-31 01:00"}
    with_week = kept(decide(moments, "keep-weekly=2,keep-monthly=1"))
    assert with_week == {"2025-01-08 01:00", "2025-01-02 01:00", "2024-12-28 01:00"}


def test_one_day_more_may_cost_an_archive_of_the_month_before() -> None:
    # The week that `weekly` has to spare by then holds the turn of the month.
    moments = ("2024-02-28 01:00", "2024-03-01 01:00", "2024-04-04 01:00", "2024-04-14 01:00")
    assert kept(decide(moments, "keep-weekly=2,keep-monthly=3")) == set(moments)
    with_day = kept(decide(moments, "keep-daily=1,keep-weekly=2,keep-monthly=3"))
    assert with_day == set(moments[1:])


@given(times, counts, st.lists(st.booleans(), max_size=60))
def test_protected_entries_are_untouched_and_touch_nothing(
    times_s: list[int], counts: dict[KeepOption, int], protected: list[bool]
) -> None:
    entries = make_entries(times_s, protected)
    rule = RetentionRule(counts=counts)
    own = {entry.name for entry in entries if entry.is_protected}
    others = [entry for entry in entries if not entry.is_protected]
    assert names_kept(entries, rule) == own | names_kept(others, rule)


@given(times, counts)
def test_newest_is_always_kept(times_s: list[int], counts: dict[KeepOption, int]) -> None:
    entries = make_entries(times_s)
    newest = max(entries, key=lambda entry: entry.time_s or 0)
    assert newest.name in names_kept(entries, RetentionRule(counts=counts))


@given(times, counts)
def test_no_more_stay_than_the_counts_allow(
    times_s: list[int], counts: dict[KeepOption, int]
) -> None:
    rule = RetentionRule(counts=counts)
    if not rule.keeps_all:
        assert len(names_kept(make_entries(times_s), rule)) <= rule.limit_count


@given(times, counts, st.sets(st.integers(0, 59)))
def test_sparing_leaves_a_whole_archive_wherever_there_was_one(
    times_s: list[int], counts: dict[KeepOption, int], whole: set[int]
) -> None:
    entries = make_entries(times_s)
    decisions = decide_retention(
        entries, RetentionRule(counts=counts), local_time=local_time_as_named
    )
    spared = spare_last_whole(decisions, is_whole=lambda name: int(name) in whole)
    stay = {decision.name for decision in spared if decision.keep}
    assert stay >= {decision.name for decision in decisions if decision.keep}
    if any(index in whole for index in range(len(entries))):
        assert any(int(name) in whole for name in stay)
