"""Times as texts, against the vectors of the format and against each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vzdump_qemu.errors import PbsError
from vzdump_qemu.formats.pbs.times import (
    TIME_S_MAX,
    parse_any,
    parse_utc,
    render_local,
    render_utc,
)


def test_render_known_time_gives_the_text_of_the_format() -> None:
    assert render_utc(1700000000) == "2023-11-14T22:13:20Z"
    assert render_local(1700000000) == "2023-11-14T22:13:20+00:00"
    assert render_local(1700000000, utc_offset_s=-12600) == "2023-11-14T18:43:20-03:30"
    assert parse_utc("2020-06-26T13:56:05Z") == 1593179765
    assert render_utc(TIME_S_MAX) == "9999-12-31T23:59:59Z"


@given(st.integers(100_000, TIME_S_MAX - 100_000), st.integers(-1439, 1439))
def test_time_any_second_and_offset_returns(time_s: int, offset_minutes: int) -> None:
    assert parse_utc(render_utc(time_s)) == time_s
    assert parse_any(render_local(time_s, utc_offset_s=60 * offset_minutes)) == time_s


@pytest.mark.parametrize(
    "text",
    [
        "", "2023-11-14T22:13:20", "2023-11-14 22:13:20Z", "2023-11-14T22:13:20Z\n",
        "2023-02-29T00:00:00Z", "2023-11-14T24:00:00Z", "2023-11-14T22:13:60Z",
        "0000-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "2023-11-14T22:13:20.5Z",
        "２023-11-14T22:13:20Z", "2023-11-14T22:13:20+24:00", "9999-12-31T23:59:59-01:00",
    ],
)  # fmt: skip
def test_parse_other_text_is_refused(text: str) -> None:
    with pytest.raises(PbsError):
        parse_any(text)
    with pytest.raises(PbsError):
        parse_utc(text)


def test_parse_utc_with_offset_is_refused() -> None:
    with pytest.raises(PbsError, match="not a time in UTC"):
        parse_utc("2023-11-14T22:13:20+00:00")


@pytest.mark.parametrize("time_s", [-1, TIME_S_MAX + 1, 1 << 70])
def test_render_time_out_of_range_is_refused(time_s: int) -> None:
    with pytest.raises(PbsError):
        render_utc(time_s)


@pytest.mark.parametrize("utc_offset_s", [30, 86400, -86400])
def test_render_offset_without_text_is_refused(utc_offset_s: int) -> None:
    with pytest.raises(PbsError):
        render_local(1700000000, utc_offset_s=utc_offset_s)


def test_render_local_year_out_of_range_is_refused() -> None:
    with pytest.raises(PbsError):
        render_local(TIME_S_MAX, utc_offset_s=3600)
