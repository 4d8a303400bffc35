"""From the figures of cells to answers: how much sooner a cell reaches its control's best, and how far it ends off.

Curves are means over seeds; intervals come from all ways to draw as many seeds with replacement, the same for a cell
and its control, which share initial weights and the order of the images seed by seed. With three seeds they are coarse,
and hold what differs between seeds, not between data sets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pydiffaccel.trainer.checkpoint import read_json

__all__ = ["AXES", "Answer", "Interval", "answer", "load_results", "reached", "verdict"]

AXES = ("step", "evaluations", "cpu_seconds")
SURE = 0.03  # a change of less than this, or an interval that holds one, is no clear effect


@dataclass(frozen=True)
class Interval:
    """A figure and the middle 95 % of what it is over the draws of seeds; ratios are 0 where nothing is reached."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Answer:
    """One cell against its control at one number of evaluations.

    Attributes:
        change: of the figure at the end, relative to the control's: -0.5 is half of it.
        ratios: for each axis, what the control spent until its best over what the cell spent to reach that; 0 where it
            did not. Seconds are steps times the pace of a step where that was measured (``pace``), else those of the
            runs.
        best: the cell's best figure, and the control's.
        steady: whether the control's best is its last figure, at most two thirds of its first; otherwise the steps to
            reach it mean little.
        at_once: whether the cell is there at its first checkpoint already: the ratios are at least what they say.
    """

    change: Interval
    ratios: Mapping[str, Interval]
    best: float
    control_best: float
    steady: bool = True
    at_once: bool = False


def load_results(folder: Path) -> dict[str, dict[str, Any]]:
    """The JSON of every cell below a folder, by name, with "pace": how long a step of it takes, None if not known."""
    known = folder / "pace.json"
    paces = {row["cell"]: row["pace"] for row in read_json(known)["rows"]} if known.exists() else {}
    found = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
    return {name: {**record, "pace": paces.get(name)} for name, record in found.items() if "cell" in record}


def reached(axis: Sequence[float], values: Sequence[float], target: float) -> float:
    """Where a curve first comes down to a target, on straight lines through (log axis, log value); inf if never."""
    for place, (here, value) in enumerate(zip(axis, values, strict=True)):
        if value > target:
            continue
        if place == 0 or value == target:
            return here
        before, start = axis[place - 1], values[place - 1]
        part = math.log(start / target) / math.log(start / value)
        return math.exp(math.log(before) + part * (math.log(here) - math.log(before)))
    return math.inf


def answer(cell: Mapping[str, Any], control: Mapping[str, Any], count: int, metric: str = "frechet") -> Answer:
    """A cell against its control, sampled with `count` network evaluations; the seeds that both have."""
    ours, theirs = ({entry["seed"]: entry["rows"] for entry in record["seeds"]} for record in (cell, control))
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        raise ValueError(f"{cell['cell']['name']} and {control['cell']['name']} have no seed in common")
    paces = cell.get("pace"), control.get("pace")
    picks = list(itertools.product(seeds, repeat=len(seeds)))

    def curve(rows: Mapping[int, Any], picked: Sequence[int], axis: str) -> tuple[list[float], list[float]]:
        where = np.mean([[row[axis] for row in rows[seed]] for seed in picked], axis=0)
        values = np.mean([[row["figures"][str(count)][metric] for row in rows[seed]] for seed in picked], axis=0)
        return where.tolist(), values.tolist()

    def figures(picked: Sequence[int]) -> dict[str, float]:
        out = {}
        for axis in AXES:
            where, values = curve(theirs, picked, axis)
            best = min(values)
            spent = where[values.index(best)]
            out[axis] = spent / reached(*curve(ours, picked, axis), best)
            out["best"], out["last"] = best, values[-1]
        if paces[0] and paces[1]:
            out["cpu_seconds"] = out["step"] * paces[1] / paces[0]
        _, values = curve(ours, picked, "step")
        return {**out, "change": values[-1] / out["last"] - 1, "own": min(values)}

    every = [figures(picked) for picked in picks]
    middle = figures(seeds)

    def interval(name: str) -> Interval:
        low, high = np.quantile([found[name] for found in every], [0.025, 0.975])
        return Interval(middle[name], float(low), float(high))

    _, values = curve(theirs, seeds, "step")
    steady = values[-1] == min(values) <= values[0] * 2 / 3
    ratios = {axis: interval(axis) for axis in AXES}
    _, own = curve(ours, seeds, "step")
    return Answer(interval("change"), ratios, middle["own"], middle["best"], steady, own[0] <= middle["best"])


def verdict(change: Interval) -> str:
    """Whether a cell ends clearly better or worse than its control."""
    if change.high < -SURE:
        return "helps"
    return "harms" if change.low > SURE else "no clear effect"
