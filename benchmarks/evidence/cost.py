"""What the evidence cost, and what its cells would cost once more."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.sets import NAMES
from pydiffaccel.trainer.checkpoint import read_json

__all__ = ["cost"]

COLUMNS = ("training", "judging", "pace of steps", "solvers", "reasons", "training and judging once more")


def clocked(values: Iterable[float | None]) -> float:
    """The sum, with the mean of those that are known for each that is not; NaN where none is."""
    everything = list(values)
    known = [value for value in everything if value is not None]
    return len(everything) * float(np.mean(known)) if known else (math.nan if everything else 0.0)


def once_more(results: Mapping[str, Any], pace: Mapping[str, Mapping[str, Any]]) -> float:
    """The CPU seconds that training and judging these cells would take at their pace; NaN where one is not known."""
    known = [row["seconds_of_a_checkpoint"] for row in pace.values() if "seconds_of_a_checkpoint" in row]
    if len(known) != 1 or not set(results) <= set(pace):
        return math.nan
    return sum(
        entry["rows"][-1]["step"] * pace[name]["milliseconds_of_a_step"] / 1000 + len(entry["rows"]) * known[0]
        for name, record in results.items()
        for entry in record["seeds"]
    )


def spent(folder: Path, results: Mapping[str, Any]) -> list[float]:
    """The CPU seconds of each of COLUMNS, NaN where they are not known, of a data set whose files are in a folder."""

    def rows_of(file: str) -> list[dict[str, Any]]:
        path = folder / file
        return list(read_json(path)["rows"]) if path.exists() else []

    entries = [entry for found in results.values() for entry in found["seeds"]]
    pace, solvers = rows_of("pace.json"), rows_of("solvers.json")
    recipe = read_json(folder / "pace.json")["recipe"] if pace else {}
    steps = recipe.get("steps", 0) * (recipe.get("turns", 0) + 1)  # one turn to warm up
    return [
        sum(entry["rows"][-1]["cpu_seconds"] for entry in entries),
        clocked(entry.get("judge_cpu_seconds") for entry in entries),
        sum(steps * row["milliseconds_of_a_step"] / 1000 * (1 + 1 / row["pace"]) for row in pace),
        sum(row["fit_cpu_seconds"] for row in solvers) + clocked(row.get("judge_cpu_seconds") for row in solvers),
        clocked(row.get("cpu_seconds") for row in rows_of("why.json")),
        once_more(results, {row["cell"]: row for row in pace}),
    ]


def hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} CPU hours ({seconds / 7200:.1f} hours of two cores)"


def cost(folder: Path, every: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of CPU hours of all data sets that were run on a CPU, and their sums."""
    found = {
        name: spent(folder / name, results)
        for name, results in every.items()
        if results and next(iter(results.values()))["clock"] == "CPU"
    }
    if not found:
        return "Nothing is measured yet."
    lines = [f"| CPU hours | {' | '.join(COLUMNS)} |", "|" + "---|" * (len(COLUMNS) + 1)]
    for name, seconds in found.items():
        told = ("not known" if math.isnan(value) else f"{value / 3600:.2f}" for value in seconds)
        lines.append(f"| {NAMES[name]} | {' | '.join(told)} |")
    once = np.array([seconds[:-1] for seconds in found.values()])
    again = sum(seconds[-1] for seconds in found.values())
    known = "without what is not known" if np.isnan(once).any() else "in all"
    sums = f"As it was run: {hours(np.nansum(once))} {known}."
    if not math.isnan(again):
        sums += f" To train and judge all cells once more: {hours(again)}."
    return "\n".join([*lines, "", sums])
