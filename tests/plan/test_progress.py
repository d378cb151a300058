"""When a progress line is due, and its figures."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vzdump_qemu.plan.progress import ProgressTracker, percent_of
from vzdump_qemu.ports import JobProgress, JobStatus


def _look(transferred: int, *, done: bool = False, **more: Any) -> JobProgress:
    return JobProgress(
        status=JobStatus.DONE if done else JobStatus.ACTIVE,
        total_bytes=more.pop("total_bytes", 1000),
        dirty_bytes=more.pop("dirty_bytes", 1000),
        transferred_bytes=transferred,
        **more,
    )


def test_percentage_is_a_floor_and_100_for_nothing_to_do() -> None:
    assert (percent_of(999, 1000), percent_of(0, 0), percent_of(1, 3)) == (99, 100, 33)


def test_more_done_than_there_is_to_do_is_100_percent() -> None:
    assert percent_of(1180160, 1) == 100


def test_line_waits_for_two_seconds_and_a_new_percentage() -> None:
    tracker = ProgressTracker()
    assert tracker.take(_look(10), elapsed_s=1.0) is None
    assert tracker.take(_look(10), elapsed_s=2.1) is not None
    assert tracker.take(_look(10), elapsed_s=9.0) is None


def test_last_look_makes_a_line_unless_100_percent_was_told() -> None:
    tracker = ProgressTracker()
    line = tracker.take(_look(1000, done=True), elapsed_s=0.5)
    assert line is not None and line.percent == 100
    assert tracker.take(_look(1000, done=True), elapsed_s=0.6) is None


def test_rates_count_since_the_last_line_and_leave_out_zeroes() -> None:
    tracker = ProgressTracker()
    tracker.take(_look(100, zero_bytes=50), elapsed_s=5.0)
    line = tracker.take(_look(500, zero_bytes=150), elapsed_s=9.0)
    assert line is not None
    assert (line.read_bytes_per_s, line.write_bytes_per_s) == (100.0, 75.0)


def test_rates_leave_out_reused_data_of_an_incremental_run() -> None:
    tracker = ProgressTracker()
    line = tracker.take(_look(400, reused_bytes=100, zero_bytes=7), elapsed_s=4.0)
    assert line is not None
    assert (line.read_bytes_per_s, line.write_bytes_per_s) == (100.0, 75.0)


def test_backup_that_the_server_has_already_makes_no_absurd_rate() -> None:
    line = ProgressTracker().take(_look(1000, done=True, reused_bytes=1000), elapsed_s=0.01)
    assert line is not None
    assert (line.read_bytes_per_s, line.write_bytes_per_s) == (1000.0, 0.0)


def test_zeroes_past_the_end_never_make_a_rate_negative() -> None:
    line = ProgressTracker().take(_look(512, done=True, zero_bytes=61440), elapsed_s=1.0)
    assert line is not None and line.write_bytes_per_s == 0.0


def test_target_is_the_dirty_amount_where_that_is_smaller() -> None:
    line = ProgressTracker().take(_look(100, dirty_bytes=200), elapsed_s=3.0)
    assert line is not None
    assert (line.percent, line.target_bytes) == (50, 200)


def test_nothing_dirty_is_100_percent() -> None:
    line = ProgressTracker().take(_look(0, done=True, dirty_bytes=0), elapsed_s=1.0)
    assert line is not None and line.percent == 100


def test_line_exactly_two_seconds_after_the_last_is_not_due() -> None:
    tracker = ProgressTracker()
    assert tracker.take(_look(10), elapsed_s=2.0) is None
    assert tracker.take(_look(20), elapsed_s=2.5) is not None
    assert tracker.take(_look(30), elapsed_s=4.5) is None


def test_failed_job_still_tells_how_far_it_came() -> None:
    tracker = ProgressTracker()
    tracker.take(_look(100), elapsed_s=3.0)
    failed = JobProgress(
        status=JobStatus.ERROR, total_bytes=1000, dirty_bytes=1000, transferred_bytes=100
    )
    line = tracker.take(failed, elapsed_s=3.5)
    assert line is not None and line.percent == 10


def test_what_need_not_be_looked_at_is_reused_without_taking_time() -> None:
    tracker = ProgressTracker()
    look = _look(100, dirty_bytes=400, reused_bytes=600 + 40)
    line = tracker.take(look, elapsed_s=4.0)
    assert line is not None and (line.percent, line.target_bytes) == (25, 400)
    assert (line.read_bytes_per_s, line.write_bytes_per_s) == (25.0, 15.0)
    look = _look(300, dirty_bytes=400, reused_bytes=600 + 140)
    line = tracker.take(look, elapsed_s=8.0)
    assert line is not None and (line.read_bytes_per_s, line.write_bytes_per_s) == (50.0, 25.0)


def test_ended_job_told_at_100_percent_while_active_makes_no_second_line() -> None:
    tracker = ProgressTracker()
    assert tracker.take(_look(1000), elapsed_s=3.0) is not None
    assert tracker.take(_look(1000, done=True), elapsed_s=9.0) is None


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400), st.floats(0.01, 3.0)), max_size=25)
)
def test_lines_of_any_run_keep_their_distance_and_never_show_negative_rates(
    steps: list[tuple[int, int, float]],
) -> None:
    tracker = ProgressTracker()
    transferred, zero, elapsed_s, told_s, told_percent = 0, 0, 0.0, 0.0, -1
    for more, zeroes, seconds in steps:
        transferred, zero, elapsed_s = transferred + more, zero + zeroes, elapsed_s + seconds
        look = _look(transferred, zero_bytes=zero, total_bytes=10_000, dirty_bytes=10_000)
        line = tracker.take(look, elapsed_s=elapsed_s)
        if line is None:
            continue
        assert elapsed_s - told_s > 2.0
        assert line.percent != told_percent
        assert 0 <= line.write_bytes_per_s <= line.read_bytes_per_s
        told_s, told_percent = elapsed_s, line.percent
