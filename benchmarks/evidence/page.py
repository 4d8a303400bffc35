"""docs/evidence.md and its pictures, from the committed JSON: ``python -m benchmarks.evidence.page``."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.analyse import AXES, FEWEST_SEEDS, SURE, Answer, Interval, answer, load_results, verdict
from benchmarks.evidence.cells import SPOKEN, Cell, cells_of
from benchmarks.evidence.cost import cost
from benchmarks.evidence.pictures import curves, pictures
from benchmarks.evidence.run import RESULTS
from benchmarks.evidence.sets import NAMES, SETS
from benchmarks.evidence.solvers import VARIANTS
from pydiffaccel.trainer.checkpoint import read_json

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEMPLATE = Path(__file__).with_name("page.md")
HEAD = "| data | objective | cell | NFE | at the end: control, cell | change | KID | steps | evaluations | seconds | |"

Results = dict[str, dict[str, Any]]


def times(found: Answer, axis: str = "step") -> str:
    """A ratio with its interval."""
    ratio = found.ratios[axis]
    if not found.steady:
        return "~"
    if not ratio.value:
        return "-"
    if found.at_once:
        return f"at least {ratio.value:.1f}"
    if found.seeds < FEWEST_SEEDS:
        return f"{ratio.value:.1f}"
    return f"{ratio.value:.1f} ({f'{ratio.low:.1f}' if ratio.low else 'never'} to {ratio.high:.1f})"


def percent(change: Interval, seeds: int = FEWEST_SEEDS) -> str:
    """A change with its interval, if there are seeds enough for one."""
    if seeds < FEWEST_SEEDS:
        return f"{100 * change.value:+.0f} %"
    return f"{100 * change.value:+.0f} % ({100 * change.low:+.0f} to {100 * change.high:+.0f})"


def figures(found: Answer) -> str:
    """The columns that all tables have: the distances at the end, their change, and the ratios."""
    columns = [f"{found.control_last:.2f}, {found.last:.2f}", percent(found.change, found.seeds)]
    columns += [f"{100 * found.kernel.value:+.0f} %", *(times(found, axis) for axis in AXES)]
    return " | ".join(columns)


def objective_of(cell: Cell) -> str:
    """What the cell's network predicts."""
    return SPOKEN[cell.name.split("-")[0]]


def answers(results: Results, cell: Cell) -> Iterable[tuple[int, Answer]]:
    """(NFE, answer) of a cell; none where it or its control is not there yet."""
    if cell.control == cell.name or cell.name not in results or cell.control not in results:
        return
    for count in results[cell.name]["set"]["evaluations"]:
        yield count, answer(results[cell.name], results[cell.control], count)


def table(every: dict[str, Results], method: str) -> str:
    rows = []
    for name, results in every.items():
        for cell in cells_of(name):
            if cell.method != method:
                continue
            for count, found in answers(results, cell):
                about = f"{NAMES[name]} | {objective_of(cell)} | {cell.about} | {count}"
                rows.append(f"| {about} | {figures(found)} | {verdict(found)} |")
    return "\n".join([HEAD, "|" + "---|" * 11, *rows]) if rows else "Not measured yet."


def summary(every: dict[str, Results]) -> str:
    """One line per method, data set and objective: where it helps and where it harms."""
    lines = []
    for name, results in every.items():
        for cell in cells_of(name):
            found = list(answers(results, cell))
            if not found:
                continue
            words: dict[str, list[str]] = {}
            for count, one in found:
                words.setdefault(verdict(one), []).append(f"{count}")
            text = "; ".join(f"{word} at {', '.join(counts)}" for word, counts in words.items())
            lines.append(f"| {NAMES[name]} | {objective_of(cell)} | {cell.about} | {text} |")
    if not lines:
        return "Nothing is measured yet."
    return "\n".join(["| data | objective | cell | at which NFE |", "|---|---|---|---|", *lines])


def recipes(every: dict[str, Results]) -> str:
    parts = []
    for name, results in every.items():
        if not results:
            continue
        record = next(iter(results.values()))
        recipe, data = record["recipe"], record["set"]
        seeds = sorted({len(found["seeds"]) for found in results.values()})
        commits = ", ".join(sorted({found["commit"] for found in results.values()}))
        runs = [entry["rows"][-1]["cpu_seconds"] for found in results.values() for entry in found["seeds"]]
        parts.append(
            f"**{NAMES[name]}.** {data['about']}. U-Net of channels {', '.join(map(str, data['channels']))}, "
            f"{data['steps']:,} steps of 128 images, {' or '.join(map(str, seeds))} seeds; "
            f"{data['num_samples']:,} samples behind each figure, against {recipe['reference']}. "
            f"Features: {recipe['features']['about']}. "
            f"One half of the reference has a distance of {recipe['floor']:.2f} to the other. "
            f"{len(runs)} trainings of {sum(runs) / 3600:.1f} hours ({record['clock']} time) on "
            f"{record['device']}, torch {record['torch']}, commits {commits}."
        )
    return "\n\n".join(parts) or "Nothing is measured yet."


def paces(every: dict[str, Results]) -> str:
    """How well paces are known, and the cells of which none is."""
    errors = [
        record["pace_error"] / record["pace"]
        for results in every.values()
        for record in results.values()
        if record["pace_error"] is not None
    ]
    parts = []
    if errors:
        parts.append(f"A pace has a standard error of {np.median(errors):.1%}, at most {max(errors):.1%}.")
    unknown = {
        NAMES[name]: [cell for cell, record in results.items() if record["pace"] is None]
        for name, results in every.items()
    }
    if any(unknown.values()):
        told = "; ".join(f"{name}: {', '.join(cells)}" for name, cells in unknown.items() if cells)
        parts.append(f"Where it was not measured they are the CPU seconds of the runs: {told}.")
    return " ".join(parts)


def missing(every: dict[str, Results]) -> str:
    parts = []
    for name in SETS:
        wanted = {cell.name for cell in cells_of(name)}
        have = len(wanted & set(every.get(name, {})))
        if have == 0:
            parts.append(f"{NAMES[name]} is not measured")
        elif have < len(wanted):
            parts.append(f"{have} of {len(wanted)} cells are measured on {NAMES[name]}")
    return f"**Not complete:** {'; '.join(parts)}." if parts else ""


def noise(every: dict[str, Results]) -> str:
    rows: list[str] = []
    seen: set[tuple[Any, ...]] = set()
    for name, results in every.items():
        for cell in cells_of(name):
            record = results.get(cell.name)
            settings = {key: value for key, value in cell.flags.items() if key.split("_")[0] in ("coupling", "knn")}
            kind = (name, cell.center, cell.flags.get("data_scale"), *sorted(settings.items()))
            if record and kind not in seen:
                seen.add(kind)
                laws = [entry["noise"] for entry in record["seeds"]]
                law = {key: float(np.mean([one[key] for one in laws])) for key in laws[0]}
                rows.append(
                    f"| {NAMES[name]} | {cell.about if settings else 'plain'} | {law['mean_square']:.3f} | "
                    f"{law['mean_norm']:.3f} | "
                    f"{law['top_variance']:.3f} | {100 * law['cost_reduction']:.1f} % |"
                )
    head = "| data | noise | mean square | norm of the mean | variance along the data's first axis | nearer by |"
    return "\n".join([head, "|" + "---|" * 6, *rows]) if rows else "Not measured yet."


def solvers(folder: Path) -> str:
    """One row per network and solver, one column per number of evaluations: as it is, and distilled in each way."""
    parts = []
    for name in SETS:
        path = folder / name / "solvers.json"
        if not path.exists():
            continue
        rows = [row for row in read_json(path)["rows"] if row["figures"]]
        counts = sorted({row["evaluations"] for row in rows})
        lines = []
        for cell, solver in dict.fromkeys((row["cell"], row["solver"]) for row in rows):
            columns = []
            for count in counts:
                found: dict[str, list[float]] = {}
                for row in rows:
                    if (row["cell"], row["solver"], row["evaluations"]) == (cell, solver, count):
                        found.setdefault(row["variant"], []).append(row["figures"]["frechet"])
                means = {variant: float(np.mean(values)) for variant, values in found.items()}
                columns.append(" / ".join(f"{means[name]:.2f}" if name in means else "-" for name in VARIANTS))
            lines.append(f"| {cell} | {solver} | " + " | ".join(columns) + " |")
        seeds = len({row["seed"] for row in rows})
        fits = [row["fit_cpu_seconds"] for row in rows if row["evaluations"] == 10 and row["variant"] == "lambda"]
        intro = f"**{NAMES[name]}**, {seeds} seed{'s' * (seeds > 1)}; {' / '.join(VARIANTS)}."
        if fits:
            intro += f" A fit of lambda at 10 evaluations took {np.median(fits):.0f} CPU seconds (median)."
        head = f"| network | solver | {' | '.join(f'NFE {count}' for count in counts)} |"
        parts.append("\n".join([intro, "", head, "|" + "---|" * (2 + len(counts)), *lines]))
    return "\n\n".join(parts) or "Not measured yet."


def solved(folder: Path, where: str) -> str:
    """The distance of a solver on a network: {{solver:digits/eps-plain/ddim/5/lambda}}, the mean over seeds."""
    name, *wanted = where.split("/")
    path = folder / name / "solvers.json"
    rows = read_json(path)["rows"] if path.exists() else []
    keys = ("cell", "solver", "evaluations", "variant")
    found = [row["figures"]["frechet"] for row in rows if row["figures"] and [str(row[key]) for key in keys] == wanted]
    return f"{np.mean(found):.2f}" if found else "(not measured yet)"


def reasons(folder: Path) -> str:
    """What ``benchmarks.evidence.why`` found, one row per cell, means over seeds."""
    parts = []
    for name in SETS:
        path = folder / name / "why.json"
        if not path.exists():
            continue
        rows = read_json(path)["rows"]
        counts = list(rows[0]["plain"])
        head = ["cell", "first image", *(f"off at {count}" for count in counts), f"NFE {rows[0]['fine_nfe']}"]
        head += ["as it is", "clipped", "from the law", "both"]
        lines = []
        for cell in dict.fromkeys(row["cell"] for row in rows):
            mine = [row for row in rows if row["cell"] == cell]

            def mean(*keys: str, mine: list[dict[str, Any]] = mine) -> float:
                values: list[Any] = mine
                for key in keys:
                    values = [value.get(key, {}) for value in values]
                return float(np.mean(values)) if all(isinstance(value, float) for value in values) else math.nan

            columns = [f"{mean('implied_error'):.2f}"]
            columns += [f"{mean('plain', count, 'off'):.3f}" for count in counts]
            columns.append(f"{mean('fine', 'plain', 'frechet'):.2f}")
            for start, figures in (("plain", "figures"), ("plain", "clipped"), ("law", "figures"), ("law", "clipped")):
                values = [mean(start, count, figures, "frechet") for count in counts]
                columns.append("-" if math.isnan(values[0]) else ", ".join(f"{value:.2f}" for value in values))
            lines.append(f"| {cell} | {' | '.join(columns)} |")
        seeds = len({row["seed"] for row in rows})
        intro = f"**{NAMES[name]}**, {seeds} seed{'s' * (seeds > 1)}; the last four columns at NFE {', '.join(counts)}:"
        parts.append("\n".join([intro, "", f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines]))
    return "\n\n".join(parts) or "Not measured yet."


# The goals: (objective, cell, control, how many times fewer steps at the fewest evaluations, at the most).
GOALS: tuple[tuple[str, str, str, int | None, int | None], ...] = (
    ("flow matching", "flow-preset", "flow-plain", 4, 2),
    ("DDPM, beside noise prediction", "x-preset", "eps-plain", 2, 2),
    ("DDPM, beside v-prediction", "v-preset", "v-plain", 2, 2),
    ("DDPM, beside data prediction", "x-preset", "x-plain", 2, 2),
    ("DDPM, where noise is predicted", "eps-scaled2-minsnr", "eps-plain", None, None),
)


def goals(every: dict[str, Results]) -> str:
    rows = []
    for name, results in every.items():
        for about, cell, control, few, many in GOALS:
            if cell not in results or control not in results:
                continue
            counts = results[cell]["set"]["evaluations"]
            for count in counts:
                found = answer(results[cell], results[control], count)
                goal = {counts[0]: few, counts[-1]: many}.get(count) or ""
                about_it = f"{NAMES[name]} | {about} | {cell}, {control} | {count}"
                rows.append(f"| {about_it} | {figures(found)} | {goal} |")
    head = ["data", "objective", "cell, beside", "NFE", "at the end: beside, cell", "change", "KID", "steps"]
    head = [f"| {' | '.join(head)} | evaluations | seconds | goal |", "|" + "---|" * 11]
    return "\n".join([*head, *rows]) if rows else "Not measured yet."


def quality(every: dict[str, Results]) -> str:
    """The other figures of what the goals compare, at the most evaluations: means over seeds of the end."""
    names = {"kid": "KID", "precision": "precision", "recall": "recall", "sliced_wasserstein": "sliced Wasserstein"}
    rows = []
    for name, results in every.items():
        for _, cell, control, *_ in GOALS:
            if cell not in results or control not in results:
                continue
            count = str(results[cell]["set"]["evaluations"][-1])
            columns = []
            for metric in names:
                pair = [
                    float(np.mean([entry["rows"][-1]["figures"][count][metric] for entry in results[one]["seeds"]]))
                    for one in (control, cell)
                ]
                columns.append(", ".join(f"{value:.3g}" for value in pair))
            rows.append(f"| {NAMES[name]} | {cell}, {control} | {count} | {' | '.join(columns)} |")
    head = f"| data | cell, beside | NFE | {' | '.join(names.values())} |"
    return "\n".join([head, "|" + "---|" * 7, *rows]) if rows else "Not measured yet."


def preset_sentence(every: dict[str, Results]) -> str:
    """What the help of --preset tells of it: where plain training falls steadily, so that its best means something."""
    sets = []
    for name, results in every.items():
        parts = []
        for about, cell, control, *_ in GOALS:
            if cell not in results or control not in results:
                continue
            counts = results[cell]["set"]["evaluations"]
            found = {count: answer(results[cell], results[control], count) for count in (counts[0], counts[-1])}
            sure = {count: one for count, one in found.items() if one.steady and verdict(one) == "helps"}
            told = [f"{times(one).split(' (')[0]} at {count}" for count, one in sure.items()]
            if told:
                parts.append(f"{about.replace('DDPM', 'vp')} {' and '.join(told)}")
        if parts:
            sets.append(f"{NAMES[name]}: {'; '.join(parts)}")
    return f"Times fewer steps to the best of plain training, by the evaluations of the sampler: {'. '.join(sets)}."


def inline(every: dict[str, Results], kind: str, where: str) -> str:
    """A figure in a sentence: {{ratio:digits/flow-fast/flow-plain/4}}, {{seconds:...}}, {{change:...}}, {{kid:...}}."""
    name, cell, control, count = where.split("/")
    results = every.get(name, {})
    pair = [results.get(cell), results.get(control)]
    if not all(record and int(count) in record["set"]["evaluations"] for record in pair):
        return "(not measured yet)"
    found = answer(results[cell], results[control], int(count))
    if kind == "kid":
        return f"{100 * found.kernel.value:+.0f} %"
    if kind == "seconds":
        return times(found, "cpu_seconds")
    return times(found) if kind == "ratio" else percent(found.change, found.seeds)


def text(folder: Path = RESULTS) -> str:
    """The page."""
    every = {name: load_results(folder / name) for name in SETS if (folder / name).is_dir()}
    parts = {
        "missing": lambda: missing(every),
        "summary": lambda: summary(every),
        "recipes": lambda: recipes(every),
        "cost": lambda: cost(folder, every),
        "paces": lambda: paces(every),
        "noise": lambda: noise(every),
        "solvers": lambda: solvers(folder),
        "reasons": lambda: reasons(folder),
        "goals": lambda: goals(every),
        "quality": lambda: quality(every),
    }

    def fill(match: re.Match[str]) -> str:
        kind, _, argument = match[1].partition(":")
        if kind == "solver":
            return solved(folder, argument)
        if kind in ("ratio", "seconds", "change", "kid"):
            return inline(every, kind, argument)
        return table(every, argument) if kind == "table" else parts[kind]()

    return re.sub(r"\{\{(.+?)\}\}", fill, TEMPLATE.read_text())


def main() -> int:
    every = {name: load_results(RESULTS / name) for name in SETS if (RESULTS / name).is_dir()}
    (DOCS / "evidence.md").write_text(text())
    if any(every.values()):
        curves(DOCS / "evidence_curves.png", every)
        pictures(DOCS / "evidence_samples.png", every)
    print(f"{DOCS / 'evidence.md'} is written; a change below {SURE:.0%} is no clear effect")
    return 0


if __name__ == "__main__":
    sys.exit(main())
