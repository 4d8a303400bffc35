"""A run's folder as a report needs it: read with care, since it may be unfinished, damaged or of another version."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydiffaccel._cli import CommandError
from pydiffaccel.reporting.curves import Metrics, parse_metrics
from pydiffaccel.reporting.html import counted

__all__ = ["Grid", "Run", "names_of", "read_run"]

_GRID = re.compile(r"step_(\d{8,})\.png")
_MOST_BYTES = 16 * 2**20  # of one picture


@dataclass(frozen=True)
class Grid:
    """A picture of samples.

    Attributes:
        step: training steps behind the weights.
        width, height: in pixels.
        source: the picture as a data URI.
    """

    step: int
    width: int
    height: int
    source: str


@dataclass(frozen=True)
class Run:
    """What a run's folder says.

    Attributes:
        name: for the reader, unique in the report.
        path: the folder.
        options: of the training; the defaults where the run is older than an option.
        metrics: of each step.
        summary: written at the end of the training; empty before.
        evaluation: of ``python -m pydiffaccel.evaluate``; empty without.
        grids: samples, by rising step.
        data: the data's name.
        notes: sentences on what could not be read.
    """

    name: str
    path: Path
    options: Mapping[str, Any]
    metrics: Metrics
    summary: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    grids: Sequence[Grid] = ()
    data: str = ""
    notes: Sequence[str] = ()

    @property
    def steps(self) -> int:
        """Steps done."""
        return int(self.metrics.last("step") or 0)

    @property
    def seconds(self) -> float | None:
        """Seconds of training."""
        return self.metrics.last("seconds")

    @property
    def finished(self) -> bool:
        planned = self.options.get("max_train_steps")
        return bool(self.summary) and isinstance(planned, int) and self.steps >= planned


def names_of(paths: Sequence[Path]) -> list[str]:
    """Short names for folders: the last part of each path, and as many parts before it as make all of them different.

    Raises:
        CommandError: a folder is named twice.
    """
    parts = [path.resolve().parts for path in paths]
    if len(set(parts)) < len(parts):
        twice = next(path for index, path in enumerate(paths) if parts[index] in parts[:index])
        raise CommandError(f"{twice} is given twice")
    length = 1
    while len({part[-length:] for part in parts}) < len(parts):
        length += 1
    return ["/".join(part[-length:]) for part in parts]


def read_run(path: Path, name: str, *, grids: int) -> Run:
    """The run in a folder, with at most so many grids of samples.

    Raises:
        CommandError: there is no run, or its options cannot be read.
    """
    from pydiffaccel.trainer.checkpoint import read_json
    from pydiffaccel.trainer.config import TrainOptions
    from pydiffaccel.trainer.run import RunFolder

    folder = RunFolder(path)
    if not folder.options.exists():
        reason = "holds no run" if path.is_dir() else "is a file" if path.exists() else "does not exist"
        raise CommandError(f"{path} {reason}; give the folders of runs of: python -m pydiffaccel.train")
    notes: list[str] = []
    metrics = parse_metrics(())
    if folder.metrics.exists():
        with folder.metrics.open("rb") as lines:
            metrics = parse_metrics(lines)
    if not len(metrics):
        notes.append("no step is logged yet")
    if metrics.skipped:
        notes.append(f"{counted(metrics.skipped, 'step')} without an update, or with a loss that is no finite number")
    if metrics.broken:
        notes.append(f"{counted(metrics.broken, 'line')} of metrics.jsonl left out, not readable")
    summary = _object(folder.summary, notes)
    steps = summary.get("step")
    if summary and steps != metrics.last("step"):
        notes.append("the run goes on after its summary was written, which is left out")
        summary = {}
    data = _object(folder.process, notes).get("data")
    return Run(
        name=name,
        path=path,
        options={**TrainOptions().to_dict(), **read_json(folder.options)},
        metrics=metrics,
        summary=summary,
        evaluation=_object(path / "evaluation.json", notes),
        grids=_grids(folder.sample_grid(0).parent, folder.samples, steps, grids, notes),
        data=str(data.get("name", "")) if isinstance(data, dict) else "",
        notes=notes,
    )


def _object(path: Path, notes: list[str]) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none, with a note where it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        notes.append(f"{path.name} cannot be read and is left out")
        return {}
    return value


def _grids(folder: Path, final: Path, steps: object, most: int, notes: list[str]) -> list[Grid]:
    """The first, the last, and what lies evenly between them."""
    found: dict[int, Path] = {}
    if isinstance(steps, int) and final.exists():
        found[steps] = final
    for path in folder.glob("step_*.png"):
        match = _GRID.fullmatch(path.name)
        if match:
            found[int(match[1])] = path
    order = sorted(found)
    if most <= 0:
        return []
    if len(order) > most:
        last = len(order) - 1
        places = {last if most == 1 else round(index * last / (most - 1)) for index in range(most)}
        order = [order[place] for place in sorted(places)]
    read = [(step, _picture(found[step])) for step in order]
    bad = [found[step].name for step, picture in read if picture is None]
    if bad:
        notes.append(f"{counted(len(bad), 'picture')} left out, not readable: {bad[0]}")
    return [Grid(step, *picture) for step, picture in read if picture is not None]


def _picture(path: Path) -> tuple[int, int, str] | None:
    """Width, height and data URI of a PNG; None where it is no whole one."""
    from PIL import Image

    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            width, height = image.size
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return width, height, "data:image/png;base64," + base64.b64encode(content).decode()
