"""Grids of samples: what a run's weights for sampling make of the same noises, while it trains and at its end."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pydiffaccel.trainer.pictures import save_grid, to_uint8

if TYPE_CHECKING:
    from pydiffaccel.solvers import Plan
    from pydiffaccel.trainer.loop import Trainer
    from pydiffaccel.trainer.run import RunFolder

__all__ = ["columns_of", "draw_samples", "seeds_of", "write_samples"]

SAMPLE_COUNT, SAMPLE_STEPS = 64, 20
# In the picture of a class-conditional run: rows, one per class, and columns.
SHOWN_CLASSES, SHOWN_OF_CLASS = 16, 8


def _shown_labels(trainer: Trainer) -> list[int]:
    """The class of each sample in the picture of a class-conditional run, row by row; empty for an unconditional one.

    Where there are more classes than rows, they are taken at equal distances.
    """
    if not trainer.options.class_conditional:
        return []
    classes = len(trainer.data.classes)
    rows = min(classes, SHOWN_CLASSES)
    return [row * classes // rows for row in range(rows) for _ in range(SHOWN_OF_CLASS)]


def seeds_of(trainer: Trainer) -> range:
    """The seeds of the samples, one each."""
    return range(len(_shown_labels(trainer)) or SAMPLE_COUNT)


def columns_of(trainer: Trainer) -> int | None:
    """Columns of the picture; None for a square."""
    return SHOWN_OF_CLASS if trainer.options.class_conditional else None


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Inside, the network is in eval mode; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _sampling_network(trainer: Trainer, weights: Mapping[str, Mapping[str, Tensor]]) -> nn.Module:
    """The trainer's network for sampling; one that is in shards is built of its whole weights."""
    from pydiffaccel.networks import build_network
    from pydiffaccel.trainer.build import make_network_config

    if not trainer.is_sharded:
        return trainer.sampling_network
    network = build_network(make_network_config(trainer.options, trainer.data), seed=trainer.options.seed)
    network.load_state_dict(dict(weights[next(iter(trainer.emas), "model")]))
    return network.to(trainer.device)


def draw_samples(trainer: Trainer, weights: Mapping[str, Mapping[str, Tensor]]) -> tuple[Tensor, Plan]:
    """Samples ``[seeds, *]`` of the first average of the weights (the weights, where there is none) and their plan.

    Every sample is a function of its own seed. No generator of the training is used and no state changes.

    Args:
        trainer: the run.
        weights: what ``trainer.weights`` returned; only needed where they are in shards.
    """
    from pydiffaccel.sampler import sample

    network, labels = _sampling_network(trainer, weights), _shown_labels(trainer)
    with _evaluating(network), torch.no_grad():
        return sample(
            network,
            trainer.data.shape,
            seeds_of(trainer),
            process=trainer.process,
            coupling=trainer.coupling,
            condition={"class_labels": torch.tensor(labels, device=trainer.device)} if labels else None,
            num_steps=SAMPLE_STEPS,
            device=trainer.device,
        )


def write_samples(
    trainer: Trainer, folder: RunFolder, weights: Mapping[str, Mapping[str, Tensor]]
) -> NDArray[np.uint8] | None:
    """Writes the grid of the steps done to samples/step_XXXXXXXX.png and returns its images.

    Takes what ``draw_samples`` takes. A picture is not worth a run: where it cannot be made, a note says so, and the
    answer is None.
    """
    path = folder.sample_grid(trainer.step)
    try:
        images = to_uint8(draw_samples(trainer, weights)[0])
        path.parent.mkdir(exist_ok=True)
        save_grid(path, images, columns_of(trainer))
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"note: no samples of step {trainer.step:,}: {reason}", file=sys.stderr)
        return None
    return images
