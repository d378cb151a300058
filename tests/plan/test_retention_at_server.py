"""What a server decided of backups, told with reasons; host behaviour 2.7 and 5.8."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from vzdump_qemu.plan.retention import NOT_COVERED, PROTECTED, spare_last_whole
from vzdump_qemu.plan.retention_at_server import (
    BY_SERVER,
    NO_VM,
    UNFINISHED,
    ServerEntry,
    decide_at_server,
)
from vzdump_qemu.plan.retention_calendar import render_calendar
from vzdump_qemu.plan.retention_rule import (
    KeepOption,
    RetentionRule,
    parse_prune_backups,
    positive_counts,
)
from vzsim.fakepbs.retention import KeptBackup, Mark, mark_backups

DAY_S = 24 * 3600
NOON_S = 20_000 * DAY_S + DAY_S // 2


def utc(time_s: int) -> datetime:
    return datetime.fromtimestamp(time_s, UTC).replace(tzinfo=None)


def east(time_s: int) -> datetime:
    return utc(time_s) + timedelta(hours=14)


def entry(days: float, **more: object) -> ServerEntry:
    time_s = NOON_S + int(days * DAY_S)
    name = str(more.pop("name", f"vm/100/{days}"))
    fields = {"name": name, "vmid": 100, "time_s": time_s, **more}
    return ServerEntry(**fields)  # type: ignore[arg-type]


def reasons(entries: list[ServerEntry], rule: str, going: set[str]) -> dict[str, tuple[bool, str]]:
    decisions = decide_at_server(entries, parse_prune_backups(rule), going=going, local_time=utc)
    return {decision.name: (decision.keep, decision.reason) for decision in decisions}


def test_reasons_are_those_of_the_rule_where_both_agree() -> None:
    entries = [entry(0), entry(1), entry(2)]
    assert reasons(entries, "keep-daily=2", {"vm/100/0"}) == {
        "vm/100/2": (True, "keep-daily"),
        "vm/100/1": (True, "keep-daily"),
        "vm/100/0": (False, NOT_COVERED),
    }


def test_server_of_another_zone_has_the_last_word() -> None:
    entries = [entry(0), entry(1)]
    assert reasons(entries, "keep-daily=1", {"vm/100/1"}) == {
        "vm/100/1": (False, NOT_COVERED),
        "vm/100/0": (True, BY_SERVER),
    }


def test_protected_backup_stays_whatever_an_older_server_says() -> None:
    entries = [entry(0, is_protected=True), entry(1)]
    assert reasons(entries, "keep-last=1", {"vm/100/0"})["vm/100/0"] == (True, PROTECTED)


def test_unfinished_backup_covers_no_period() -> None:
    entries = [entry(0), entry(1), entry(2, is_finished=False)]
    assert reasons(entries, "keep-last=1", {"vm/100/0"}) == {
        "vm/100/2": (True, UNFINISHED),
        "vm/100/1": (True, "keep-last"),
        "vm/100/0": (False, NOT_COVERED),
    }


def test_group_of_no_vm_is_told_as_such_and_the_calendar_draws_it() -> None:
    entries = [entry(0, vmid=None, name="vm/web/0"), entry(1)]
    decisions = decide_at_server(
        entries, parse_prune_backups("keep-last=1"), going=(), local_time=utc
    )
    assert [(one.name, one.reason) for one in decisions] == [
        ("vm/100/1", "keep-last"),
        ("vm/web/0", NO_VM),
    ]
    assert "unknown VM: 1 stay, 0 go" in render_calendar(decisions, local_time=utc)


def test_only_positive_counts_are_sent() -> None:
    assert positive_counts(parse_prune_backups("keep-last=0,keep-weekly=4")) == {"keep-weekly": 4}
    assert positive_counts(parse_prune_backups("keep-all=1")) == {}


times = st.lists(st.integers(0, 3 * 365 * 24), unique=True, max_size=40)
rules = st.dictionaries(st.sampled_from(list(KeepOption)), st.integers(1, 5), min_size=1)


def judge(hours: list[int], rule: RetentionRule, damaged: set[int]) -> tuple[set[str], list[str]]:
    """What the server would remove, and what is removed in the end."""
    entries = [entry(hour / 24, name=f"vm/100/{hour}") for hour in hours]
    kept = [
        KeptBackup(backup_time_s=each.time_s, is_finished=True, is_protected=False)
        for each in entries
    ]
    marks = mark_backups(kept, positive_counts(rule))
    going = {each.name for each, mark in zip(entries, marks, strict=True) if mark is Mark.REMOVE}
    decisions = decide_at_server(entries, rule, going=going, local_time=east)
    spared = spare_last_whole(
        decisions, is_whole=lambda name: int(name.rpartition("/")[2]) not in damaged
    )
    return going, [decision.name for decision in spared if not decision.keep]


@given(times, rules, st.sets(st.integers(0, 3 * 365 * 24)))
def test_nothing_goes_that_the_server_keeps_and_a_whole_backup_is_left(
    hours: list[int], counts: dict[KeepOption, int], damaged: set[int]
) -> None:
    broken = damaged | set(hours[: len(damaged)])
    going, removed = judge(hours, RetentionRule(counts=counts), broken)
    assert set(removed) <= going
    if set(hours) - broken:
        gone = {int(name.rpartition("/")[2]) for name in removed}
        assert set(hours) - gone - broken
    else:
        assert not removed


@given(times, rules)
def test_newest_stays_by_any_rule_in_any_zone(
    hours: list[int], counts: dict[KeepOption, int]
) -> None:
    _, removed = judge(hours, RetentionRule(counts=counts), set())
    assert not hours or f"vm/100/{max(hours)}" not in removed
