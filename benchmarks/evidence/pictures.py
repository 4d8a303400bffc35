"""The pictures of docs/evidence.md: distance over training, and the same seeds under each method."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.cells import SPOKEN, cells_of
from benchmarks.evidence.sets import NAMES

__all__ = ["curves", "pictures"]

Results = dict[str, dict[str, Any]]


def every_count(results: Results) -> int:
    """The fewest evaluations that a data set is judged at."""
    fewest: int = next(iter(results.values()))["set"]["evaluations"][0]
    return fewest


def curves(
    path: Path, every: dict[str, Results], shown: Sequence[str] = ("plain", "hungarian", "knn-l24", "preset")
) -> None:
    """Frechet distance over steps, one panel for each data set and objective, at the fewest evaluations."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, ScalarFormatter

    names = [name for name, results in every.items() if results]
    about = {cell.name: cell.about.split(":")[0] for name in names for cell in cells_of(name)}
    figure = Figure(figsize=(13, 3.4 * len(names) + 0.5), layout="constrained")
    panels = figure.subplots(len(names), len(SPOKEN), squeeze=False)
    lines: dict[str, Any] = {}
    for row, name in enumerate(names):
        for column, objective in enumerate(SPOKEN):
            ax = panels[row][column]
            count, steps = every_count(every[name]), []
            for number, method in enumerate(shown):
                record = every[name].get(f"{objective}-{method}")
                if record is None:
                    continue
                steps = [entry["step"] for entry in record["seeds"][0]["rows"]]
                values = np.array(
                    [[entry["figures"][str(count)]["frechet"] for entry in seed["rows"]] for seed in record["seeds"]]
                )
                (line,) = ax.plot(steps, values.mean(0), marker="o", markersize=4, color=f"C{number}")
                ax.fill_between(steps, values.min(0), values.max(0), alpha=0.2, color=line.get_color())
                lines.setdefault("independent noise" if method == "plain" else about[f"{objective}-{method}"], line)
            ax.set_title(f"{NAMES[name]}: {SPOKEN[objective]}, {count} evaluations", fontsize=9)
            if not steps:
                ax.set_axis_off()
                continue
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter(ScalarFormatter())
            ax.yaxis.set_minor_formatter(ScalarFormatter())
            ax.set_xticks(steps, [f"{step:,}" for step in steps])
            ax.minorticks_off()
            ax.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
            ax.tick_params(labelsize=8, which="both")
            ax.set_xlabel("optimizer steps", fontsize=8)
            ax.set_ylabel("Frechet distance", fontsize=8)
            ax.grid(alpha=0.3, which="both")
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=len(lines), fontsize=9)
    figure.savefig(path, dpi=90)


def pictures(path: Path, every: dict[str, Results]) -> None:
    """The same seeds under each method that has a network of its own, at the fewest evaluations."""
    from matplotlib.figure import Figure

    wanted = ("plain", "hungarian", "preset", "knn-l24", "logit", "scaled2")
    wanted += ("curriculum0.3", "momentum-both", "minsnr", "kl3")
    strips = []
    for name, results in every.items():
        for cell in (f"{objective}-{method}" for objective in SPOKEN for method in wanted):
            if cell in results:
                record = results[cell]
                count, entry = str(record["set"]["evaluations"][0]), record["seeds"][0]
                shape = record["recipe"]["shape"]
                images = np.frombuffer(base64.b64decode(entry["shown"][count]), np.uint8).reshape(-1, *shape)
                framed = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=128)
                distance = entry["rows"][-1]["figures"][count]["frechet"]
                title = f"{NAMES[name]}, {cell}, {count} evaluations: {distance:.2f}"
                strips.append((title, np.concatenate(list(framed.transpose(0, 2, 3, 1)), axis=1)))
    rows = -(-len(strips) // 2)
    figure = Figure(figsize=(11, 0.95 * rows), layout="constrained")
    for ax, strip in itertools.zip_longest(figure.subplots(rows, 2, squeeze=False).T.flat, strips):
        ax.set_axis_off()
        if strip is not None:
            ax.imshow(strip[1].squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            ax.set_title(strip[0], fontsize=8, loc="left", pad=2)
    figure.savefig(path, dpi=90)
