"""Metrics and pictures of a run for TensorBoard and Weights & Biases. What goes wrong there never ends a training."""

from __future__ import annotations

import math
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pydiffaccel._cli import CommandError
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.run import RunFolder

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Tracker", "Trackers", "check_trackers", "make_trackers"]


class Tracker(Protocol):
    """Where figures go."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures of one step, by the names of metrics.jsonl."""

    def picture(self, step: int, picture: Image) -> None:
        """A grid of samples."""

    def close(self) -> None:
        """Everything is written."""


class Trackers:
    """All trackers of a run. The first error of each becomes a note on stderr, further ones are silent."""

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._trackers = dict(trackers)
        self._failed: set[str] = set()

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Lines of metrics.jsonl; what is missing or no finite number is left out."""
        for row in rows if self._trackers else ():
            figures = {
                name: float(value)
                for name, value in row.items()
                if name != "step" and isinstance(value, (int, float)) and math.isfinite(value)
            }
            self._each(partial(_log, int(row["step"]), figures))

    def images(self, step: int, images: NDArray[np.uint8] | None, columns: int | None = None) -> None:
        """Samples uint8 ``[N, C, H, W]`` in so many columns, by default a square; None where there are none."""
        if images is None or not self._trackers:
            return
        from pydiffaccel.trainer.pictures import image_grid

        picture = image_grid(images, columns)
        self._each(lambda tracker: tracker.picture(step, picture))

    def close(self) -> None:
        """Everything is written."""
        self._each(lambda tracker: tracker.close())

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for name, tracker in self._trackers.items():
            try:
                action(tracker)
            except Exception as error:
                if name not in self._failed:
                    _note(name, error)
                self._failed.add(name)


def _log(step: int, figures: Mapping[str, float], tracker: Tracker) -> None:
    tracker.log(step, figures)


class _TensorBoard:
    """Event files in the run's folder; steps after the last one that is kept are hidden, as they are done again."""

    def __init__(self, options: TrainOptions, folder: RunFolder, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder.tensorboard), purge_step=done + 1)
        if not done:
            lines = [f"    {name}: {value}" for name, value in options.to_dict().items()]
            self._writer.add_text("options", "\n".join(lines))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def picture(self, step: int, picture: Image) -> None:
        self._writer.add_image("samples", np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """One run at Weights & Biases, continued by its id. Steps that are done again are already there."""

    def __init__(self, options: TrainOptions, folder: RunFolder, done: int) -> None:
        import wandb

        self._image = wandb.Image
        self._run = wandb.init(
            project=options.tracker_project_name,
            name=folder.path.name,
            id=_wandb_id(folder),
            resume="allow",
            dir=str(folder.path),
            config=options.to_dict(),
        )
        self._first = int(self._run.starting_step)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        if step >= self._first:
            self._run.log({f"train/{name}": value for name, value in figures.items()}, step=step)

    def picture(self, step: int, picture: Image) -> None:
        if step >= self._first:
            self._run.log({"samples": self._image(picture)}, step=step)

    def close(self) -> None:
        self._run.finish()


def _wandb_id(folder: RunFolder) -> str:
    """The run's id at Weights & Biases, kept in its folder."""
    from pydiffaccel.trainer.checkpoint import write_file

    path = folder.path / "wandb" / "id.txt"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_file(path, f"{uuid.uuid4().hex[:12]}\n".encode())
    return path.read_text(encoding="utf-8").strip()


_MAKERS: Mapping[str, Callable[[TrainOptions, RunFolder, int], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
}


def _wanted(options: TrainOptions) -> list[str]:
    return list(_MAKERS) if options.report_to == "all" else [name for name in _MAKERS if name == options.report_to]


def _note(name: str, error: Exception) -> None:
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    print(f"note: {name} gets nothing or not everything, the training goes on: {reason}", file=sys.stderr)


def _installed(name: str) -> bool:
    """Whether the package is there. A mere folder of that name, as wandb leaves behind, is none."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


def check_trackers(options: TrainOptions) -> None:
    """Raises CommandError where a package that --report_to names is not installed."""
    missing = [name for name in _wanted(options) if not _installed(name)]
    if missing:
        raise CommandError(
            f"--report_to {options.report_to} needs the package {' and '.join(missing)}: "
            f"pip install 'pydiffaccel[track]'"
        )


def make_trackers(options: TrainOptions, folder: RunFolder, done: int) -> Trackers:
    """The trackers that --report_to names, of a run that continues after `done` steps."""
    trackers: dict[str, Tracker] = {}
    for name in _wanted(options):
        try:
            trackers[name] = _MAKERS[name](options, folder, done)
        except Exception as error:
            _note(name, error)
    return Trackers(trackers)
