"""The whole report: one HTML file that needs nothing else, with scripts or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from pydiffaccel.reporting.charts import COLOURS, DASHES
from pydiffaccel.reporting.figures import POSITIONS, charts
from pydiffaccel.reporting.html import MISSING, counted, duration, number, table
from pydiffaccel.reporting.runs import Run

__all__ = ["coupling_rows", "different_options", "page"]

_LAST = 50  # steps behind the loss of the overview, as in summary.json


def page(runs: Sequence[Run], *, title: str, smoothing: float) -> str:
    """The report as HTML.

    Args:
        runs: at least one.
        title: of the page.
        smoothing: share of a run's steps that lines are means over, in [0, 1]; 0 shows single steps.
    """
    resources = files("pydiffaccel.reporting")
    style, script = ((resources / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    sections = (
        _overview(runs),
        _curves(runs, smoothing),
        _couplings(runs),
        _samples(runs),
        _evaluations(runs),
        _options(runs),
        _notes(runs),
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n"
        f"<body><header><h1>{escape(title)}</h1><p>{_subtitle(runs)}</p></header><main>\n"
        f"{chr(10).join(section for section in sections if section)}\n</main>"
        f"<script>{script}</script></body></html>\n"
    )


def _section(name: str, heading: str, content: str) -> str:
    return f'<section id="{name}"><h2>{escape(heading)}</h2>{content}</section>'


def _subtitle(runs: Sequence[Run]) -> str:
    data = sorted({run.data for run in runs if run.data})
    count = counted(len(runs), "run")
    return escape(f"{count} on {', '.join(data)}" if data else count)


def _state(run: Run) -> str:
    planned = run.options.get("max_train_steps")
    if run.finished:
        return "finished"
    return f"unfinished, of {number(planned)}"


def _overview(runs: Sequence[Run]) -> str:
    head = (
        *("run", "state", "steps", "images", "network evaluations", "training time", "images / s"),
        *(f"loss, mean of last {_LAST}", "coupling", "device"),
    )
    rows = []
    for run in runs:
        images, seconds = run.metrics.last("images"), run.seconds
        loss = run.metrics.columns["loss"][-_LAST:]
        loss = loss[loss == loss]
        rows.append(
            [
                *(run.name, _state(run), f"{run.steps:,}", number(images)),
                *(number(run.metrics.last("evaluations")), duration(seconds)),
                number(images / seconds if images and seconds else None, 3),
                number(float(loss.mean()) if len(loss) else None),
                *(str(run.options.get("coupling", MISSING)), str(run.summary.get("device", MISSING))),
            ]
        )
    return _section("overview", "Overview", table(head, rows, "The runs"))


def _legend(runs: Sequence[Run]) -> str:
    items = []
    for index, run in enumerate(runs):
        dash = DASHES[index // COLOURS % len(DASHES)]
        pattern = f' stroke-dasharray="{dash}"' if dash else ""
        items.append(
            f'<li><svg class="key" viewBox="0 0 24 8" aria-hidden="true"><line class="s{index % COLOURS}" x1="1" y1="4"'
            f' x2="23" y2="4"{pattern}/></svg>{escape(run.name)}</li>'
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _curves(runs: Sequence[Run], smoothing: float) -> str:
    drawn = charts(runs, smoothing)
    if not drawn:
        return ""
    # The inputs stand before what they switch: the style sheet alone shows the charts of the one that is checked.
    inputs = "".join(
        f'<input type="radio" name="position" class="switch" id="over-{position}"'
        f' aria-label="over {unit}"{" checked" if position == "step" else ""}>'
        for position, unit in POSITIONS.items()
    )
    labels = "".join(f'<label for="over-{position}">{escape(unit)}</label>' for position, unit in POSITIONS.items())
    bar = f'<div class="bar"><div class="choice"><span>over</span>{labels}</div>{_legend(runs)}</div>'
    return _section("curves", "Curves", f'{inputs}{bar}<div class="charts">{drawn}</div>')


def coupling_rows(runs: Sequence[Run]) -> list[list[str]]:
    """What choosing the noise of each run cost and what it did, as texts for a table.

    The time of pairing is that of drawing and choosing noise, also where it ran beside the network; the time waited is
    what of it the training could not hide.
    """
    rows = []
    for run in runs:
        steps, seconds = run.steps, run.seconds
        pairing, waited = run.metrics.mean("coupling_ms"), run.summary.get("coupling_seconds")
        step_ms = 1000 * seconds / steps if steps and seconds else None
        waited_ms = 1000 * waited / steps if isinstance(waited, (int, float)) and steps else None
        rows.append(
            [
                *(run.name, str(run.options.get("coupling", MISSING))),
                *(number(pairing, 3), _share(pairing, step_ms), number(waited_ms, 3), _share(waited_ms, step_ms)),
                number(run.metrics.mean("cost_reduction"), 3),
                number(run.metrics.mean("noise_mean_square")),
            ]
        )
    return rows


def _share(part: float | None, whole: float | None) -> str:
    return MISSING if part is None or not whole else number(100 * part / whole, 2)


def _couplings(runs: Sequence[Run]) -> str:
    head = (
        *("run", "coupling", "pairing, ms per step", "pairing, % of a step"),
        *("waited for noise, ms per step", "waited for noise, % of the training"),
        *("cost reduction, %", "mean square of the noise"),
    )
    text = (
        "<p>Pairing is drawing and choosing noise, as means over the steps with a coupling. Waiting is the part of all "
        "drawing that was not done beside the network; it is written at the end of a run, also for plain noise. The "
        "cost is the sum of squared distances of data and noise, compared with plain noise, whose mean square "
        "is 1.</p>"
    )
    return _section(
        "couplings", "What the couplings cost and gain", text + table(head, coupling_rows(runs), "Couplings")
    )


def _samples(runs: Sequence[Run]) -> str:
    parts = []
    for run in runs:
        figures = "".join(
            f'<figure><label><input type="checkbox" class="zoom" aria-label="enlarge step {grid.step}"><img '
            f'src="{grid.source}" width="{grid.width}" height="{grid.height}" '
            f'alt="{escape(f"Grid of samples of {run.name} after {grid.step:,} steps", quote=True)}"></label>'
            f"<figcaption>step {grid.step:,}</figcaption></figure>"
            for grid in run.grids
        )
        parts += [f'<h3>{escape(run.name)}</h3><div class="strip">{figures}</div>'] if figures else []
    if not parts:
        return ""
    text = "<p>The same noises at every step. Choose a picture to enlarge it.</p>"
    return _section("samples", "Samples over time", text + "".join(parts))


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    """Nested objects as one, with the names joined; lists as texts."""
    if isinstance(value, Mapping):
        found: dict[str, object] = {}
        for key, inner in value.items():
            found.update(_flat(inner, f"{prefix} {key}".strip()))
        return found
    if isinstance(value, (list, tuple)):
        return {prefix: ", ".join(map(str, value))}
    return {prefix: value}


def _shown(value: object) -> str:
    if isinstance(value, float):
        return number(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _evaluations(runs: Sequence[Run]) -> str:
    rows: list[tuple[str, dict[str, object]]] = []
    how: list[str] = []
    for run in runs:
        evaluation = dict(run.evaluation)
        results = evaluation.pop("results", None)
        for result in results if isinstance(results, list) else ():
            if isinstance(result, Mapping):
                rows.append((run.name, _flat(result)))
        floor = evaluation.pop("floor", None)
        if isinstance(floor, Mapping) and floor:
            rows.append((f"{run.name}: data against data", _flat(floor)))
        evaluation.pop("options", None)
        details = [[name.replace("_", " "), _shown(value)] for name, value in _flat(evaluation).items()]
        if details:
            inner = table(("", "value"), details, f"Recipe of {run.name}")
            how.append(f"<details><summary>How {escape(run.name)} was measured</summary>{inner}</details>")
    if not rows:
        return ""
    names = list(dict.fromkeys(name for _, values in rows for name in values))
    body = [[run, *(_shown(values[name]) if name in values else MISSING for name in names)] for run, values in rows]
    head = ("run", *(name.replace("_", " ") for name in names))
    return _section("evaluation", "Evaluation", table(head, body, "Measures of samples") + "".join(how))


def different_options(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Options by name with the value of each run, where they differ; of a single run what is not the default."""
    from pydiffaccel.trainer.config import TrainOptions

    compared = [run.options for run in runs]
    if len(runs) == 1:
        compared = [*compared, TrainOptions().to_dict()]
    names = list(dict.fromkeys(name for options in compared for name in options))
    return {
        name: [run.options.get(name) for run in runs]
        for name in names
        if name != "output_dir" and any(options.get(name) != compared[0].get(name) for options in compared)
    }


def _spelled(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "default"
    return "none" if value is None else str(value)


def _options(runs: Sequence[Run]) -> str:
    head = ("option", *(run.name for run in runs))
    different = [[name, *map(_spelled, values)] for name, values in different_options(runs).items()]
    names = list(dict.fromkeys(name for run in runs for name in run.options if name != "output_dir"))
    every = [[name, *(_spelled(run.options.get(name)) for run in runs)] for name in names]
    one = len(runs) == 1
    same = "All options are the default." if one else "All options are the same."
    title = "Options that are not the default" if one else "Options that differ"
    first = table(head, different, title) if different else f"<p>{same}</p>"
    rest = f"<details><summary>All options</summary>{table(head, every, 'All options')}</details>"
    return _section("options", title, first + rest)


def _notes(runs: Sequence[Run]) -> str:
    items = "".join(f"<li>{escape(f'{run.name}: {note}')}</li>" for run in runs for note in run.notes)
    return _section("notes", "Notes", f"<ul>{items}</ul>") if items else ""
