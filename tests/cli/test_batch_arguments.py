"""What is said of a job as a whole: at once, limits, deadline."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from vzdump_qemu.cli.batch_arguments import read_batch_options
from vzdump_qemu.errors import ConfigError
from vzdump_qemu.plan.options import BatchOptions, StorageLimits

NOW = datetime(2026, 3, 5, 22, 30, 15)


def read(**merged: Any) -> BatchOptions:
    return read_batch_options(
        {name.replace("_", "-"): value for name, value in merged.items()}, now=NOW
    )


def test_nothing_said_is_one_after_another_without_limits() -> None:
    assert read() == BatchOptions()


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("6h", datetime(2026, 3, 6, 4, 30, 15)),
        ("1h30m", datetime(2026, 3, 6, 0, 0, 15)),
        ("90min", datetime(2026, 3, 6, 0, 0, 15)),
        ("1d", datetime(2026, 3, 6, 22, 30, 15)),
        ("45s", datetime(2026, 3, 5, 22, 31)),
        ("23:00", datetime(2026, 3, 5, 23, 0)),
        ("06:00", datetime(2026, 3, 6, 6, 0)),
        ("6:05", datetime(2026, 3, 6, 6, 5)),
        ("22:30", datetime(2026, 3, 6, 22, 30)),
    ],
)
def test_deadline_is_a_length_or_the_next_such_time_of_day(text: str, moment: datetime) -> None:
    deadline_s = read(deadline=text).deadline_wall_s
    assert deadline_s is not None
    assert datetime.fromtimestamp(deadline_s) == moment


@pytest.mark.parametrize("text", ["soon", "6", "24:00", "06:60", "h", "30m1h", "-1h", "1.5h"])
def test_deadline_that_cannot_be_read_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=f"^deadline: unable to parse '{text}'$") as caught:
        read(deadline=text)
    assert "06:00" in caught.value.hint


def test_limits_are_for_each_storage_and_for_single_ones() -> None:
    limits = read(storage_limit=("3", "nfs=1,fast=8", "/mnt/a=b=2")).storage_limits
    assert limits == StorageLimits(of_each=3, by_storage=(("nfs", 1), ("fast", 8), ("/mnt/a=b", 2)))


@pytest.mark.parametrize("text", ["nfs", "nfs=", "=1", "nfs=0", "0", "nfs=x", "nfs=-1"])
def test_limit_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"^storage-limit: unable to parse '{text}'$"):
        read(storage_limit=(text,))
