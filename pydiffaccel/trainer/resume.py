"""From which checkpoint a run goes on."""

from __future__ import annotations

import sys
from pathlib import Path

from pydiffaccel._cli import CommandError
from pydiffaccel.trainer.checkpoint import check_checkpoint, list_checkpoints, newest_whole, set_aside
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.metrics import read_metrics, write_metrics
from pydiffaccel.trainer.parallel import Ranks
from pydiffaccel.trainer.run import RunDescription, RunFolder

__all__ = ["adopt_metrics", "choose_checkpoint"]


def choose_checkpoint(
    folder: RunFolder, options: TrainOptions, description: RunDescription, ranks: Ranks
) -> Path | None:
    """The checkpoint, with right checksums, that --resume_from_checkpoint names; None begins at step 0.

    Damaged ones are reported on stderr and kept aside. So are, where an older one is named, those of later steps.

    Args:
        folder: of the run that goes on.
        options: of that run; ``resume_from_checkpoint`` is "latest", "none", or the folder of a checkpoint of this run
            or of another one with the same options and data.
        description: of that run.
        ranks: of which the main one chooses; all are told the same.

    Raises:
        CommandError: the checkpoint is missing, damaged or of another run; none is whole; or there are some and the
            flag is "none".
    """
    with ranks.together():
        chosen = _choose(folder, options, description) if ranks.is_main else None
    if ranks.is_main or options.resume_from_checkpoint == "none":
        return chosen
    if options.resume_from_checkpoint != "latest":
        return Path(options.resume_from_checkpoint)
    found = list_checkpoints(folder.checkpoints)  # the damaged ones are gone now
    return found[-1][1] if found else None


def _choose(folder: RunFolder, options: TrainOptions, description: RunDescription) -> Path | None:
    found, source = list_checkpoints(folder.checkpoints), options.resume_from_checkpoint
    if source == "none":
        if found:
            raise CommandError(
                f"--resume_from_checkpoint none, but {folder.path} holds the checkpoint of step {found[-1][0]:,}; "
                f"give another --output_dir"
            )
        return None
    if source == "latest":
        return newest_whole(folder.checkpoints)
    path = Path(source)
    step = int(check_checkpoint(path)["step"])
    _check_origin(folder, path, options, description)
    for later, other in found:
        if later > step and other.resolve() != path.resolve():
            aside = set_aside(other, "superseded")
            print(f"{other} is later than {path} and kept as {aside.name}", file=sys.stderr)
    return path


def _origin(folder: RunFolder, path: Path) -> RunFolder | None:
    """The other run in whose folder a checkpoint lies, if that is so."""
    origin = RunFolder(path.resolve().parent.parent)
    described = origin.options.exists() and origin.process.exists()
    return origin if described and origin.path != folder.path.resolve() else None


def _check_origin(folder: RunFolder, path: Path, options: TrainOptions, description: RunDescription) -> None:
    """Refuses a checkpoint that lies in the folder of a run with other options or data."""
    origin = _origin(folder, path)
    if origin is None:
        return
    if different := options.differences(origin.read_options()):
        raise CommandError(f"checkpoint {path} is of a run with other options: {', '.join(different)}")
    if origin.read_description() != description:
        raise CommandError(f"checkpoint {path} is of a run on other data")


def adopt_metrics(folder: RunFolder, path: Path, step: int) -> None:
    """Begins the metrics of a new run with those that another run has up to the checkpoint that it begins with."""
    origin = _origin(folder, path)
    if origin is not None and origin.metrics.exists() and not folder.metrics.exists():
        write_metrics(folder.metrics, [row for row in read_metrics(origin.metrics) if row["step"] <= step])
