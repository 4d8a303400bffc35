"""The networks that cells have trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.evidence.cells import Cell, cells_of
from benchmarks.evidence.train import coupling_of, options_of, process_of
from pydiffaccel.coupling import Coupling
from pydiffaccel.forward import Process
from pydiffaccel.networks import build_network, default_network
from pydiffaccel.sampler import denoiser_of
from pydiffaccel.solvers import Denoiser
from pydiffaccel.trainer.checkpoint import list_checkpoints, load_checkpoint
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.data import TrainData

__all__ = ["Trained", "trained_cells"]


@dataclass(frozen=True)
class Trained:
    """The averaged network of a cell with a seed, and how it was trained."""

    cell: Cell
    seed: int
    options: TrainOptions
    process: Process
    coupling: Coupling
    denoiser: Denoiser
    shape: tuple[int, int, int]


def trained_cells(names: Sequence[str], options: Any, train: TrainData) -> Iterator[Trained]:
    """Those of the named cells whose training is over, seed by seed; says which are not.

    Args:
        names: of the cells.
        options: of the command line that trained them: data_set, work, seeds, device, threads.
        train: the data that they were trained on.
    """
    cells = {cell.name: cell for cell in cells_of(options.data_set.name)}
    for name in names:
        for seed in range(options.seeds):
            folder = options.work / options.data_set.name / name / str(seed)
            found = list_checkpoints(folder / "checkpoints")
            settings = options_of(cells[name], options.data_set, seed, folder, options.device, options.threads)
            if not found or found[-1][0] < settings.max_train_steps:
                print(f"{name} seed {seed} is not trained: left out")
                continue
            network = build_network(default_network(train.shape, settings.channels, settings.layers_per_block))
            average = load_checkpoint(found[-1][1]).tensors["ema"]
            network.load_state_dict(
                {key.removeprefix("module."): value for key, value in average.items() if key.startswith("module.")}
            )
            process = process_of(cells[name], settings)
            yield Trained(
                cells[name],
                seed,
                settings,
                process,
                coupling_of(cells[name], settings, train),
                denoiser_of(network.to(options.device).eval(), process),
                train.shape,
            )
