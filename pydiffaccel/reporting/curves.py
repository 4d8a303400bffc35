"""Curves of a run: from the lines of metrics.jsonl to the few hundred points that a chart shows."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["COLUMNS", "Metrics", "envelope", "every_step", "parse_metrics", "running_mean", "thinned"]

Values = NDArray[np.float64]

COLUMNS = (
    *("step", "loss", "grad_norm", "learning_rate", "images", "evaluations", "seconds"),
    *("cost_reduction", "noise_mean_square", "coupling_ms"),
)


@dataclass(frozen=True)
class Metrics:
    """metrics.jsonl by columns.

    Attributes:
        columns: each name of ``COLUMNS`` to float64 ``[steps]``, by rising step; NaN where a line has no such number.
        skipped: steps that say so themselves, or whose loss is no finite number.
        broken: lines that are no metrics of a step, as the last one of a run that was killed while it wrote.
    """

    columns: Mapping[str, Values]
    skipped: int = 0
    broken: int = 0

    def __len__(self) -> int:
        return len(self.columns["step"])

    def mean(self, name: str) -> float | None:
        """Mean of a column over the steps that have it; None where none has."""
        values = self.columns[name]
        values = values[np.isfinite(values)]
        return float(values.mean()) if len(values) else None

    def last(self, name: str) -> float | None:
        """The last number of a column; None where there is none."""
        values = self.columns[name]
        values = values[np.isfinite(values)]
        return float(values[-1]) if len(values) else None


def parse_metrics(lines: Iterable[bytes]) -> Metrics:
    """The columns of metrics.jsonl; of lines about the same step the last one counts.

    Works line by line, so that a million lines take eight bytes for each number and no more.
    """
    rows, skipped, broken = array("d"), set[float](), 0
    for line in lines:
        try:
            row = json.loads(line)
            step = float(row["step"])
            if not (math.isfinite(step) and step >= 0):
                raise ValueError(step)
        except (ValueError, TypeError, KeyError):
            broken += bool(line.strip())
            continue
        if row.get("skipped") is True or not math.isfinite(_number(row.get("loss"))):
            skipped.add(step)
            row["loss"] = row["grad_norm"] = None
        values = [row.get(name, math.nan) for name in COLUMNS]
        try:
            rows.extend(array("d", values))
        except (TypeError, OverflowError):  # something that is no number
            rows.extend(map(_number, values))
    table = np.array(rows, np.float64).reshape(-1, len(COLUMNS))
    table[np.isinf(table)] = np.nan
    # The first of the reversed rows of each step is the last one written; unique sorts by step.
    _, first = np.unique(table[::-1, 0], return_index=True)
    table = table[::-1][first]
    columns = {name: np.ascontiguousarray(table[:, index]) for index, name in enumerate(COLUMNS)}
    columns["seconds"] = every_step(columns["step"], columns["seconds"])
    return Metrics(columns, len(skipped), broken)


def _number(value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value) if math.isfinite(value) else math.nan
        except OverflowError:
            return math.nan
    return math.nan


def every_step(steps: Values, seconds: Values) -> Values:
    """Seconds for each step. The log is written every few steps, and the steps of one write share its seconds."""
    known = np.isfinite(seconds)
    last = known & np.append(seconds[1:] != seconds[:-1], True)
    if not last.any():
        return seconds
    # A run begins with step 1, at 0 seconds.
    values: Values = np.interp(steps, np.append(0.0, steps[last]), np.append(0.0, seconds[last]))
    return values


def running_mean(values: Values, window: int) -> Values:
    """Mean of the last `window` values at each place, of fewer at the beginning; values that are NaN do not count.

    NaN where a whole window is.
    """
    if window <= 1 or not len(values):
        return values
    known = np.isfinite(values)
    # Around the mean, so that the difference of two long sums keeps its digits.
    centre = float(values[known].mean()) if known.any() else 0.0
    sums = np.append(0.0, np.cumsum(np.where(known, values - centre, 0.0)))
    counts = np.append(0, np.cumsum(known))
    begin = np.maximum(np.arange(len(values)) + 1 - window, 0)
    total, count = sums[1:] - sums[begin], counts[1:] - counts[begin]
    return np.where(count > 0, centre + total / np.maximum(count, 1), np.nan)


def thinned(values: Values, count: int) -> NDArray[np.int64]:
    """Places of at most count + 1 values, evenly spread, that are no NaN; the first and the last are among them."""
    places = np.flatnonzero(np.isfinite(values))
    if len(places) > count:
        places = places[np.unique(np.linspace(0, len(places) - 1, count + 1).round().astype(np.int64))]
    return places.astype(np.int64)


def envelope(values: Values, count: int) -> NDArray[np.int64]:
    """Places of at most 2 count values: the least and the greatest of each of count parts, so that no peak is lost."""
    places = np.flatnonzero(np.isfinite(values))
    if len(places) <= 2 * count:
        return places.astype(np.int64)
    chosen: set[int] = set()
    for part in np.array_split(places, count):
        chosen.add(int(part[values[part].argmin()]))
        chosen.add(int(part[values[part].argmax()]))
    return np.array(sorted(chosen), np.int64)
