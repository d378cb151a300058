"""The curve of rates: nothing lost, nothing counted twice, and on round axes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.plan.report_jobs import BEGAN_S, COPY_S, good_run, job, local_time
from vzdump_qemu.plan.batch_record import JobRecord
from vzdump_qemu.plan.report_axis import TimeAxis
from vzdump_qemu.plan.report_rates import BIN_COUNT, RateCurve, make_rate_curve, render_rates
from vzdump_qemu.plan.report_text import nice_rate_step, round_rate
from vzdump_qemu.units import GIB, KIB, MIB, TIB


def curve_of(record: JobRecord, **changes: float) -> RateCurve:
    axis = TimeAxis(record, local_time)
    return make_rate_curve(record, **{"begin_s": axis.begin_s, "span_s": axis.span_s, **changes})


def test_curve_of_an_even_run_is_flat_while_it_copies() -> None:
    curve = curve_of(job(good_run()))
    # The second before the copying, and the ten after it.
    inside = curve.read_bytes_per_s[3:94]
    assert inside == pytest.approx([GIB] * len(inside))
    assert curve.written_bytes_per_s[3:94] == pytest.approx([GIB * 3 / 4] * len(inside))
    assert curve.read_bytes_per_s[0] == curve.read_bytes_per_s[-1] == 0
    assert curve.peak_bytes_per_s == pytest.approx(GIB)


def test_curve_of_runs_at_once_adds_them_up() -> None:
    curve = curve_of(job(good_run(100), good_run(101)))
    assert curve.peak_bytes_per_s == pytest.approx(2 * GIB)


def test_curve_of_a_run_without_samples_takes_its_totals() -> None:
    curve = curve_of(job(replace(good_run(), samples=())))
    assert sum(curve.read_bytes_per_s) * curve.bin_s == pytest.approx(40 * GIB)
    assert curve.peak_bytes_per_s == pytest.approx(GIB)


def test_curve_of_a_failed_run_takes_its_samples() -> None:
    curve = curve_of(job(replace(good_run(), transfer=None)))
    assert sum(curve.read_bytes_per_s) * curve.bin_s == pytest.approx(36 * GIB)


@given(
    begin=st.floats(-100, 100),
    span=st.floats(0.001, 10_000),
    spread=st.lists(st.floats(0, COPY_S), min_size=1, max_size=20),
)
def test_curve_of_any_span_keeps_every_byte(begin: float, span: float, spread: list[float]) -> None:
    run = good_run()
    samples = tuple(
        replace(run.samples[0], wall_s=BEGAN_S + 1 + at, read_bytes=n * MIB, written_bytes=n * KIB)
        for n, at in enumerate(sorted(spread))
    )
    curve = curve_of(job(replace(run, samples=samples)), begin_s=BEGAN_S + begin, span_s=span)
    assert len(curve.read_bytes_per_s) == BIN_COUNT
    assert sum(curve.read_bytes_per_s) * curve.bin_s == pytest.approx(40 * GIB)
    assert sum(curve.written_bytes_per_s) * curve.bin_s == pytest.approx(30 * GIB)
    assert min(curve.read_bytes_per_s) >= 0


def test_rates_of_a_job_that_copied_nothing_are_no_section() -> None:
    assert render_rates(job(), local_time) == ""
    assert render_rates(job(replace(good_run(), samples=(), transfer=None)), local_time) == ""


@pytest.mark.parametrize(
    ("peak", "label"),
    [
        (3, "1 B/s"),
        (700 * MIB, "200 MiB/s"),
        (1.4 * GIB, "512 MiB/s"),
        (13 * GIB, "5 GiB/s"),
        (900 * KIB, "256 KiB/s"),
    ],
)
def test_axis_of_rates_has_round_steps(peak: float, label: str) -> None:
    assert round_rate(nice_rate_step(peak, count_max=4)) == label


@given(st.floats(1, 100 * TIB))
def test_axis_of_rates_never_has_more_lines_than_wanted(peak: float) -> None:
    assert 1 <= peak / nice_rate_step(peak, count_max=4) + 1 <= 5


@pytest.mark.parametrize(
    ("span_s", "labels"),
    [
        (0.7, ["0", "200 ms", "400 ms", "600 ms"]),
        (30.0, ["0", "10 s", "20 s"]),
        (90.0, ["02:00:30", "02:01:00"]),
        (3600.0, ["02:10", "02:20", "02:30", "02:40", "02:50"]),
        (90 * 86400.0, ["12-06", "12-19", "01-01", "01-14", "01-27", "02-09"]),
    ],
)
def test_axis_of_time_has_few_round_labels(span_s: float, labels: list[str]) -> None:
    record = replace(job(good_run()), ended_wall_s=BEGAN_S + span_s, runs=())
    assert [tick.label for tick in TimeAxis(record, local_time).ticks] == labels
