"""What a prune keeps."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from vzsim.fakepbs.retention import KeptBackup, Mark, mark_backups


def backup(text: str, *, is_finished: bool = True, is_protected: bool = False) -> KeptBackup:
    moment = datetime.fromisoformat(text).replace(tzinfo=UTC)
    return KeptBackup(
        backup_time_s=int(moment.timestamp()), is_finished=is_finished, is_protected=is_protected
    )


AROUND_NEW_YEAR = [
    f"{day}T01:00" for day in (
        "2024-12-28", "2024-12-29", "2024-12-30", "2024-12-31", "2025-01-01", "2025-01-02",
        "2025-01-06",
    )
]  # fmt: skip
IN_MARCH = [
    "2024-03-01T01:00", "2024-03-02T01:00", "2024-03-02T13:00", "2024-03-03T01:00",
    "2024-03-04T01:00", "2024-03-04T13:00", "2024-03-05T01:00",
]  # fmt: skip


@pytest.mark.parametrize(
    ("times", "keep", "kept"),
    [
        (
            AROUND_NEW_YEAR,
            {"keep-last": 1, "keep-weekly": 1, "keep-yearly": 1},
            ["2024-12-29T01:00", "2025-01-02T01:00", "2025-01-06T01:00"],
        ),
        (
            AROUND_NEW_YEAR,
            {"keep-last": 1, "keep-weekly": 2, "keep-yearly": 1},
            ["2024-12-29T01:00", "2025-01-02T01:00", "2025-01-06T01:00"],
        ),
        (
            IN_MARCH,
            {"keep-last": 1, "keep-daily": 2},
            ["2024-03-03T01:00", "2024-03-04T13:00", "2024-03-05T01:00"],
        ),
        (IN_MARCH, {"keep-hourly": 2}, ["2024-03-04T13:00", "2024-03-05T01:00"]),
        (IN_MARCH, {"keep-monthly": 3}, ["2024-03-05T01:00"]),
        (IN_MARCH, {}, IN_MARCH),
    ],
)
def test_newest_of_each_period_is_kept(
    times: list[str], keep: dict[str, int], kept: list[str]
) -> None:
    marks = mark_backups([backup(text) for text in times], keep)
    found = [text for text, mark in zip(times, marks, strict=True) if mark is Mark.KEEP]
    assert found == kept


def test_protected_backup_covers_no_period() -> None:
    backups = [backup(text, is_protected=text == IN_MARCH[-1]) for text in IN_MARCH]
    marks = mark_backups(backups, {"keep-last": 1})
    assert marks[-2:] == [Mark.KEEP, Mark.PROTECTED]
    assert set(marks[:-2]) == {Mark.REMOVE}


def test_unfinished_backup_is_kept_only_as_the_newest() -> None:
    backups = [backup(text, is_finished=text != IN_MARCH[0]) for text in IN_MARCH]
    backups.append(backup("2024-03-06T01:00", is_finished=False))
    marks = mark_backups(backups, {})
    assert (marks[0], marks[-1]) == (Mark.REMOVE, Mark.KEEP_PARTIAL)
    assert set(marks[1:-1]) == {Mark.KEEP}
