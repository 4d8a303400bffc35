"""From the figures of cells to answers: how much sooner a cell reaches its control's best, and how far it ends off.

Curves are means over seeds; intervals come from all ways to draw as many seeds with replacement, the same for a cell
and its control, which share initial weights and the order of the images seed by seed. With three seeds that is nearly
the range of what they did, and holds what differs between seeds, not between data sets; with fewer it is nothing.
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
FEWEST_SEEDS = 3  # below, an interval says nothing


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
        kernel: the same of the kernel distance, which is measured in the same features.
        ratios: for each axis, what the control spent until its best over what the cell spent to reach that; 0 where it
            did not. Seconds are steps times the pace of a step where that was measured (``pace``), else those of the
            runs.
        last: the cell's figure at the end, and the control's.
        seeds: how many both have.
        steady: whether the control's best is its last figure, at most two thirds of its first; otherwise the steps to
            reach it mean little.
        at_once: whether the cell is there at its first checkpoint already: the ratios are at least what they say.
    """

    change: Interval
    kernel: Interval
    ratios: Mapping[str, Interval]
    last: float
    control_last: float
    seeds: int
    steady: bool = True
    at_once: bool = False


def load_results(folder: Path) -> dict[str, dict[str, Any]]:
    """The JSON of every cell below a folder, by name, with "pace": how long a step of it takes, None if not known.

    "pace_error" is its standard error.
    """
    known = folder / "pace.json"
    paces = {row["cell"]: row for row in read_json(known)["rows"]} if known.exists() else {}
    found = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
    return {
        name: {
            **record,
            "pace": paces.get(name, {}).get("pace"),
            "pace_error": paces.get(name, {}).get("error"),
        }
        for name, record in found.items()
        if "cell" in record
    }


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


def answer(cell: Mapping[str, Any], control: Mapping[str, Any], count: int) -> Answer:
    """A cell against its control, sampled with `count` network evaluations; the seeds that both have."""
    ours, theirs = ({entry["seed"]: entry["rows"] for entry in record["seeds"]} for record in (cell, control))
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        raise ValueError(f"{cell['cell']['name']} and {control['cell']['name']} have no seed in common")
    paces = cell.get("pace"), control.get("pace")
    picks = list(itertools.product(seeds, repeat=len(seeds)))

    def values(rows: Mapping[int, Any], picked: Sequence[int], metric: str = "frechet") -> list[float]:
        found = np.mean([[row["figures"][str(count)][metric] for row in rows[seed]] for seed in picked], axis=0)
        return list(found.tolist())

    def axis_of(rows: Mapping[int, Any], picked: Sequence[int], axis: str) -> list[float]:
        return list(np.mean([[row[axis] for row in rows[seed]] for seed in picked], axis=0).tolist())

    def figures(picked: Sequence[int]) -> dict[str, float]:
        mine, other = values(ours, picked), values(theirs, picked)
        best = min(other)
        out = {"change": mine[-1] / other[-1] - 1}
        out["kernel"] = values(ours, picked, "kid")[-1] / values(theirs, picked, "kid")[-1] - 1
        for axis in AXES:
            spent = axis_of(theirs, picked, axis)[other.index(best)]
            out[axis] = spent / reached(axis_of(ours, picked, axis), mine, best)
        if paces[0] and paces[1]:
            out["cpu_seconds"] = out["step"] * paces[1] / paces[0]
        return out

    every = [figures(picked) for picked in picks]
    middle = figures(seeds)

    def interval(name: str) -> Interval:
        low, high = np.quantile([found[name] for found in every], [0.025, 0.975])
        return Interval(middle[name], float(low), float(high))

    own, other = values(ours, seeds), values(theirs, seeds)
    steady = other[-1] == min(other) <= other[0] * 2 / 3
    ratios = {axis: interval(axis) for axis in AXES}
    at_once = own[0] <= min(other)
    return Answer(interval("change"), interval("kernel"), ratios, own[-1], other[-1], len(seeds), steady, at_once)


def verdict(found: Answer) -> str:
    """Whether a cell ends clearly better or worse than its control, by the Frechet and not against the kernel
    distance."""
    if found.seeds < FEWEST_SEEDS:
        return "too few seeds"
    if found.change.low <= SURE and found.change.high >= -SURE:
        return "no clear effect"
    word = "helps" if found.change.value < 0 else "harms"
    return word if found.change.value * found.kernel.value > 0 else "the distances differ"
