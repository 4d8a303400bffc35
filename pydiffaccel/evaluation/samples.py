"""Features of samples: of a model's, which are made here, or of images in files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pydiffaccel._cli import CommandError
from pydiffaccel.conditioning import ClassCondition
from pydiffaccel.evaluation._arrays import Array
from pydiffaccel.evaluation.ranks import gather_rows
from pydiffaccel.evaluation.reference import Reference, embed_data
from pydiffaccel.models import Model
from pydiffaccel.noise import derive_seed
from pydiffaccel.sampler import draw
from pydiffaccel.solvers import Plan
from pydiffaccel.trainer.data import BatchOrder, DataError, TrainData, load_data
from pydiffaccel.trainer.parallel import Ranks

__all__ = ["embed_images", "embed_samples", "load_samples", "with_classes_of"]


def embed_all(references: Sequence[Reference]) -> Callable[[Tensor], Array]:
    """Features of images in all references side by side, ``[N, sum of F]``; ``split`` takes them apart."""
    return lambda images: np.concatenate([reference.embed(images) for reference in references], axis=1)


def split(values: Array, references: Sequence[Reference]) -> list[Array]:
    """The columns of ``embed_all``, one array per reference."""
    edges = np.cumsum([reference.features.dimension for reference in references])
    return [np.ascontiguousarray(part) for part in np.split(values, edges[:-1], axis=1)]


def with_classes_of(model: Model, data: TrainData, n: int, device: torch.device | str) -> Model:
    """The model for n samples, each with its class, as frequent as in the data; an unconditional one stays as it is.

    Raises:
        CommandError: the data has other classes than the model, or the model takes texts.
    """
    if model.condition is None:
        return model
    if not isinstance(model.condition, ClassCondition):
        raise CommandError(
            f"{model.name} takes {model.condition.kind}, and the data has none; measure images of it with --samples"
        )
    if data.labels is None or data.classes != model.condition.names:
        raise CommandError(f"{data.name} has other classes than the run was trained on; give its own data")
    chosen = BatchOrder(len(data), derive_seed(0, "evaluation classes")).indices(0, n)
    labels = torch.from_numpy(data.labels[chosen]).to(device)
    return replace(model, denoiser=model.denoiser.conditioned({"class_labels": labels}, None, 1.0))


def embed_samples(
    model: Model,
    plan: Plan,
    seeds: range,
    references: Sequence[Reference],
    *,
    ranks: Ranks,
    batch_size: int,
    device: torch.device | str,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Array]:
    """Features ``[len(seeds), F]`` in each reference of what the plan makes of each seed's noise.

    Every rank makes its part of the samples; sample i is a function of seeds[i], so the set does not depend on the
    number of ranks. No more than batch_size images are there at once. progress is told how many samples this rank has.

    Raises:
        CommandError: the model or the features answer with values that are not finite.
    """
    begin, count = ranks.split(len(seeds))
    mine = seeds[begin : begin + count]
    embed = embed_all(references)

    def make() -> list[Array]:
        parts = []
        for first in range(0, len(mine), batch_size):
            part = mine[first : first + batch_size]
            try:
                told = model.denoiser.rows(begin + first, begin + first + len(part))
                images = draw(plan, told, model.shape, part, batch_size=batch_size, device=device)
            except ValueError as error:
                raise CommandError(f"{model.name} cannot be sampled: {error}") from error
            parts.append(embed(model.unscale(images)))
            progress(first + len(part))
        return parts

    return split(gather_rows(ranks, make), references)


def embed_images(
    data: TrainData, n: int | None, references: Sequence[Reference], *, ranks: Ranks, seed: int
) -> list[Array]:
    """Features ``[n, F]`` in each reference of n of the images, chosen by the seed; None is all of them."""
    count = len(data) if n is None else min(n, len(data))
    chosen = np.sort(BatchOrder(len(data), derive_seed(seed, "samples")).indices(0, count))
    return split(embed_data(embed_all(references), data, chosen, ranks), references)


def load_samples(
    path: Path, key: str | None, data: TrainData, *, resolution: int | None, skip_bad_images: bool
) -> TrainData:
    """Images of a folder, zip, npz or npy that are to be compared with the data; gray ones become colour where it is.

    Raises:
        CommandError: they cannot be read, or have another size or more channels than the data.
    """
    try:
        found = load_data(path, key=key, resolution=resolution, skip_bad_images=skip_bad_images)
    except DataError as error:
        raise CommandError(str(error).replace("--data_key", "--samples_key")) from error
    if found.shape[1:] != data.shape[1:]:
        sizes = [f"{images.name} has images of {images.shape[1]} x {images.shape[2]}" for images in (found, data)]
        raise CommandError(f"{sizes[0]}, {sizes[1]}; --resolution makes both the same")
    if found.shape[0] == data.shape[0]:
        return found
    if found.shape[0] != 1 or data.shape[0] != 3 or not isinstance(found.values, np.ndarray):
        raise CommandError(
            f"{found.name} has {found.shape[0]} channels, {data.name} has {data.shape[0]}; both must have the same"
        )
    return TrainData(found.name, np.repeat(found.values, 3, axis=1), max_value=found.max_value, notes=found.notes)
