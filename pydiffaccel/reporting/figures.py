"""The charts of a report: which figures, over what, with the table of numbers that belongs to each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from pydiffaccel.reporting.charts import Axis, Line, plot, position_axis, value_axis
from pydiffaccel.reporting.curves import Values, envelope, running_mean, thinned
from pydiffaccel.reporting.html import MISSING, number, table
from pydiffaccel.reporting.runs import Run

__all__ = ["POSITIONS", "charts"]

_POINTS = 300  # of a line
_ROWS = 8  # of a table


@dataclass(frozen=True)
class _Figure:
    """A column of the metrics and how it is drawn: smoothed over its raw values or as it is, logarithmic or not."""

    column: str
    title: str
    smooth: bool
    log: bool = False


FIGURES = (
    _Figure("loss", "Loss", smooth=True, log=True),
    _Figure("grad_norm", "Norm of the gradient", smooth=True, log=True),
    _Figure("learning_rate", "Learning rate", smooth=False),
    _Figure("cost_reduction", "Cost reduction by the coupling, %", smooth=True),
    _Figure("noise_mean_square", "Mean square of the selected noise", smooth=True),
)

# What the horizontal axis counts: the column and its name.
POSITIONS = {"step": "steps", "evaluations": "network evaluations", "seconds": "time"}
_TIMES = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


def charts(runs: Sequence[Run], smoothing: float) -> str:
    """All charts that there are numbers for, each over every position; smoothing is a share of a run's steps."""
    return "".join(_chart(figure, runs, smoothing) for figure in FIGURES)


def _chart(figure: _Figure, runs: Sequence[Run], smoothing: float) -> str:
    smooth = [_smoothed(figure, run, smoothing) for run in runs]
    if not any(np.isfinite(values).any() for values in smooth):
        return ""
    drawn = "".join(_over(figure, runs, smooth, position, unit, smoothing > 0) for position, unit in POSITIONS.items())
    how = ""
    if figure.smooth and smoothing > 0:
        how = f"mean of the last {100 * smoothing:g} % of the steps; faint: single steps"
    title = f"{escape(figure.title)} <small>{how}</small>" if how else escape(figure.title)
    numbers = _numbers(figure, runs, smooth)
    return (
        f'<figure class="chart"><figcaption>{title}</figcaption>{drawn}'
        f"<details><summary>Figures of this chart</summary>{numbers}</details></figure>"
    )


def _smoothed(figure: _Figure, run: Run, smoothing: float) -> Values:
    raw = run.metrics.columns[figure.column]
    return running_mean(raw, round(smoothing * len(raw))) if figure.smooth else raw


def _over(figure: _Figure, runs: Sequence[Run], smooth: Sequence[Values], position: str, unit: str, faint: bool) -> str:
    high, factor = max((run.metrics.last(position) or 0.0 for run in runs), default=0.0), 1.0
    if position == "seconds":
        factor, unit = next((f, name) for f, name in _TIMES if high >= 5 * f or f == 1)
    lines = []
    for index, (run, values) in enumerate(zip(runs, smooth, strict=True)):
        raw = run.metrics.columns[figure.column]
        behind = envelope(raw, _POINTS) if figure.smooth and faint else np.empty(0, np.int64)
        x = run.metrics.columns[position] / factor
        lines.append(Line(index, run.name, x, values, raw, thinned(values, _POINTS), behind))
    across = position_axis(high / factor)
    up: Axis = value_axis(lines, log=figure.log)
    ends = [
        f"{run.name} ends at {number(float(values[np.isfinite(values)][-1]))}"
        for run, values in zip(runs, smooth, strict=True)
        if np.isfinite(values).any()
    ]
    return plot(
        lines, across, up, kind=f"by-{position}", unit=unit, label=f"{figure.title} over {unit}: {'; '.join(ends)}."
    )


def _numbers(figure: _Figure, runs: Sequence[Run], smooth: Sequence[Values]) -> str:
    """The lines at a few steps; the last row of a run that ends before is its own end."""
    most = max(run.steps for run in runs)
    steps = sorted({max(1, round(most * part / _ROWS)) for part in range(1, _ROWS + 1)} | {run.steps for run in runs})
    rows = []
    for step in steps:
        found = []
        for run, values in zip(runs, smooth, strict=True):
            place = int(np.searchsorted(run.metrics.columns["step"], step))
            there = place < len(values) and run.metrics.columns["step"][place] == step
            found.append(number(float(values[place])) if there else MISSING)
        if any(text != MISSING for text in found):
            rows.append([f"{step:,}", *found])
    return table(["step", *(run.name for run in runs)], rows, f"{figure.title} at some steps")
