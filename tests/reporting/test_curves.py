"""From lines of a log to the points of a chart."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from pydiffaccel.reporting.charts import Line, position_axis, value_axis
from pydiffaccel.reporting.curves import COLUMNS, envelope, every_step, parse_metrics, running_mean, thinned
from pydiffaccel.reporting.html import compact, duration, number

from .conftest import rows


def encoded(*lines: object) -> list[bytes]:
    return [(line if isinstance(line, str) else json.dumps(line)).encode() + b"\n" for line in lines]


def test_every_column_is_read() -> None:
    made = rows(25, coupling="knn")
    metrics = parse_metrics(encoded(*made))
    assert set(metrics.columns) == set(COLUMNS)
    for name in set(COLUMNS) - {"seconds"}:
        assert metrics.columns[name].tolist() == [row[name] for row in made]
    assert (len(metrics), metrics.skipped, metrics.broken) == (25, 0, 0)
    # A step takes 0.05 s; the log only knows every tenth.
    assert np.allclose(metrics.columns["seconds"], 0.05 * np.arange(1, 26))
    assert (metrics.last("step"), metrics.mean("noise_mean_square")) == (25, pytest.approx(0.9))


def test_what_is_missing_is_no_number() -> None:
    metrics = parse_metrics(encoded({"step": 1, "loss": 0.5, "grad_norm": None}, {"step": 2, "loss": 0.25}))
    assert np.isnan(metrics.columns["grad_norm"]).all()
    assert metrics.mean("coupling_ms") is None
    assert metrics.last("seconds") is None
    assert metrics.columns["loss"].tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    "bad",
    [
        {"step": 2, "loss": math.nan, "grad_norm": 1.0},
        {"step": 2, "loss": math.inf},
        {"step": 2, "loss": None},
        {"step": 2, "loss": 3.0, "skipped": True},
        {"step": 2, "loss": "text"},
        '{"step": 2, "loss": 1' + "0" * 400 + "}",
    ],
)
def test_skipped_steps_are_gaps_and_counted(bad: object) -> None:
    metrics = parse_metrics(encoded({"step": 1, "loss": 0.5}, bad, {"step": 3, "loss": 0.25}))
    assert metrics.skipped == 1
    assert metrics.columns["step"].tolist() == [1, 2, 3]
    assert np.isnan(metrics.columns["loss"]).tolist() == [False, True, False]
    assert np.isnan(metrics.columns["grad_norm"][1])


def test_broken_lines_are_counted_and_left_out() -> None:
    broken = ('{"step": 2, "lo', "[1]", '{"loss": 1}', '{"step": "x"}', '{"step": NaN}', '{"step": -1}', "3", "")
    metrics = parse_metrics(encoded({"step": 1, "loss": 0.5}, *broken))
    assert (len(metrics), metrics.broken) == (1, 7)
    assert parse_metrics([b"\xff\xfe\n"]).broken == 1


def test_of_lines_about_one_step_the_last_counts() -> None:
    made = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 2, "loss": 3.0}, {"step": 1, "loss": 4.0}]
    assert parse_metrics(encoded(*made)).columns["loss"].tolist() == [4.0, 3.0]


def test_no_lines() -> None:
    metrics = parse_metrics(())
    assert (len(metrics), metrics.last("step"), metrics.mean("loss")) == (0, None, None)


@pytest.mark.parametrize("window", [1, 2, 7, 50, 1000])
def test_running_mean_is_the_mean_of_the_window(window: int) -> None:
    values = 1e6 + np.random.default_rng(0).random(200)
    values[[3, 4, 5, 90]] = np.nan
    expected = [values[max(0, i + 1 - window) : i + 1] for i in range(len(values))]
    means = [np.nanmean(part) if np.isfinite(part).any() else np.nan for part in expected]
    assert np.allclose(running_mean(values, window), means, rtol=1e-14, equal_nan=True)


def test_seconds_of_an_unknown_log_stay() -> None:
    nothing = np.full(3, np.nan)
    assert np.isnan(every_step(np.arange(1.0, 4.0), nothing)).all()
    assert every_step(np.array([]), np.array([])).tolist() == []


def test_a_million_steps_become_a_few_hundred_points_and_no_peak_is_lost() -> None:
    values = np.random.default_rng(0).random(1_000_000)
    values[123_456], values[654_321] = 9.0, -9.0
    values[:100] = np.nan
    shown = envelope(values, 300)
    assert len(shown) == 600
    assert {123_456, 654_321} <= set(shown.tolist())
    assert (np.diff(shown) > 0).all()
    line = thinned(values, 300)
    assert (len(line), line[0], line[-1]) == (301, 100, 999_999)
    few = np.array([1.0, np.nan, 2.0])
    assert envelope(few, 300).tolist() == thinned(few, 300).tolist() == [0, 2]


def line(values: list[float]) -> Line:
    y = np.array(values)
    places = np.arange(len(y))
    return Line(0, "run", np.arange(1.0, len(y) + 1), y, y, places, places)


@pytest.mark.parametrize(
    "values",
    [[1.0, 0.1], [0.0, 0.0], [5.0], [-3.0, 4.0], [1e-30, 1e30], [2.0, 2.0 + 1e-15], [0.002, 0.0005], [1e-300], []],
)
@pytest.mark.parametrize("log", [True, False])
def test_axes_hold_their_values_and_have_ticks(values: list[float], log: bool) -> None:
    axis = value_axis([line(values)], log=log)
    placed = axis.place(np.array(values))
    assert ((placed >= 0) & (placed <= 1)).all()
    assert 2 <= len(axis.ticks) <= 12
    assert all(axis.low <= tick <= axis.high * (1 + 1e-12) for tick in axis.ticks)
    assert len({compact(tick) for tick in axis.ticks}) == len(axis.ticks) or max(values) < 2.1


def test_logarithmic_only_where_it_helps() -> None:
    assert value_axis([line([1.0, 0.1])], log=True).log
    assert not value_axis([line([1.0, 0.5])], log=True).log
    assert not value_axis([line([1.0, 0.0])], log=True).log
    assert not value_axis([line([1.0, 0.1])], log=False).log


@pytest.mark.parametrize("high", [0.0, math.nan, 3e-4, 1.0, 400.0, 51_200.0, 1e12])
def test_positions_begin_at_zero(high: float) -> None:
    axis = position_axis(high)
    assert axis.ticks[0] == axis.low == 0
    assert 3 <= len(axis.ticks) <= 7


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((3, "3"), (51_200, "51,200"), (0.067842, "0.06784"), (17.2911, "17.29"), (1234.56, "1,235")),
        *((-0.5, "-0.5"), (1e-9, "1e-09"), (400.0, "400"), (1e20, "1e+20")),
        *((value, "\u2013") for value in (math.nan, None, True)),
    ],
)
def test_numbers_for_readers(value: object, text: str) -> None:
    assert number(value) == text


def test_durations_and_axis_labels() -> None:
    assert [duration(s) for s in (12.34, 59.9, 65, 3600, 12_000, None)] == [
        *("12.3 s", "59.9 s", "1 min 5 s", "1 h 0 min", "3 h 20 min", "\u2013"),
    ]
    assert [compact(v) for v in (0, 0.05, 400, 1500, 3e6, 2.5e9)] == ["0", "0.05", "400", "1.5k", "3M", "2.5G"]
