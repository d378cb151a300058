"""The calendar of what stays: layout, letters, width."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from vzdump_qemu.plan.retention import (
    RetentionDecision,
    decide_retention,
    local_time_as_named,
    read_entries,
    spare_last_whole,
)
from vzdump_qemu.plan.retention_calendar import WIDTH_CHARS, render_calendar
from vzdump_qemu.plan.retention_rule import parse_prune_backups


def decide(
    moments: list[datetime], rule: str, *others: str, vmid: int = 100
) -> tuple[RetentionDecision, ...]:
    names = [f"vzdump-qemu-{vmid}-{moment:%Y_%m_%d-%H_%M_%S}.vma" for moment in moments]
    entries = read_entries([*names, *others], protected=frozenset(names[:1]))
    return decide_retention(entries, parse_prune_backups(rule), local_time=local_time_as_named)


def test_calendar_of_two_months_is_drawn() -> None:
    moments = [datetime(2020, 11, 29, 2) + timedelta(days=day) for day in range(8)]
    moments.append(datetime(2020, 12, 6, 14))
    decisions = decide(
        moments, "keep-last=2,keep-daily=1,keep-monthly=1", "vzdump-qemu-100-mine.vma"
    )
    assert render_calendar(decisions, local_time=local_time_as_named) == (
        "VM 100: 6 stay, 4 go\n"
        "\n"
        "           November 2020                         December 2020\n"
        "Mo   Tu   We   Th   Fr   Sa   Su      Mo   Tu   We   Th   Fr   Sa   Su\n"
        "                               1            1-   2-   3-   4-   5d   6l+\n"
        " 2    3    4    5    6    7    8       7    8    9   10   11   12   13\n"
        " 9   10   11   12   13   14   15      14   15   16   17   18   19   20\n"
        "16   17   18   19   20   21   22      21   22   23   24   25   26   27\n"
        "23   24   25   26   27   28   29p     28   29   30   31\n"
        "30m\n"
        "\n"
        "l keep-last   d keep-daily   m keep-monthly   p protected\n"
        "- nothing of that day stays   + several stay, the newest is shown\n"
        "\n"
        "Days on which several stay:\n"
        "  2020-12-06  keep-last 02:00 14:00\n"
        "\n"
        "Renamed by hand, never removed:\n"
        "  vzdump-qemu-100-mine.vma\n"
    )


def test_nothing_is_drawn_of_nothing() -> None:
    assert render_calendar((), local_time=local_time_as_named) == ""


def test_each_vm_has_a_calendar_of_its_own() -> None:
    both = [
        *decide([datetime(2024, 2, 29, 1)], "keep-last=1"),
        *decide([datetime(2024, 3, 1, 1)], "keep-last=1", vmid=101),
    ]
    text = render_calendar(both, local_time=local_time_as_named)
    assert [line for line in text.splitlines() if line.startswith("VM ")] == [
        "VM 100: 1 stay, 0 go",
        "VM 101: 1 stay, 0 go",
    ]
    assert "29p" in text


def test_renamed_archive_of_no_known_vm_is_listed() -> None:
    text = render_calendar(
        decide([], "keep-last=1", "vzdump-qemu-web.vma"), local_time=local_time_as_named
    )
    assert text == (
        "unknown VM: 1 stay, 0 go\n\nRenamed by hand, never removed:\n  vzdump-qemu-web.vma\n"
    )


@pytest.mark.parametrize(
    "rule",
    [
        "keep-all=1",
        "keep-last=30,keep-hourly=48,keep-daily=14,keep-weekly=8,keep-monthly=12,keep-yearly=3",
    ],
)
def test_a_year_of_hourly_backups_fits_into_80_columns(rule: str) -> None:
    moments = [datetime(2024, 1, 1) + timedelta(hours=hour) for hour in range(8760)]
    text = render_calendar(decide(moments, rule), local_time=local_time_as_named)
    assert max(map(len, text.splitlines())) <= WIDTH_CHARS
    assert all(line == line.rstrip() for line in text.splitlines())


def test_many_times_of_a_day_are_told_as_a_span() -> None:
    moments = [datetime(2024, 5, 5, hour) for hour in range(12)]
    text = render_calendar(decide(moments, "keep-last=10"), local_time=local_time_as_named)
    assert "  2024-05-05  protected 00:00; keep-last 10 from 02:00 to 11:00\n" in text


def test_archive_spared_by_the_promise_has_a_letter_in_the_legend() -> None:
    moments = [datetime(2024, 5, day) for day in (1, 2, 3)]
    decisions = [d for d in decide(moments, "keep-last=1") if d.reason != "protected"]
    spared = spare_last_whole(decisions, is_whole=lambda name: "05_02" in name)
    text = render_calendar(spared, local_time=local_time_as_named)
    assert " 2* " in text
    assert "* last whole archive of the VM" in text
    unknown = spare_last_whole(decisions, is_whole=lambda _: False)
    assert "? no archive of the VM is known to be whole" in render_calendar(
        unknown, local_time=local_time_as_named
    )
