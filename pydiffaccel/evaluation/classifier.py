"""A small network, trained on the data, whose last layer but one gives features."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from pydiffaccel._cli import CommandError
from pydiffaccel.evaluation.features import Features, reduced, resize_of
from pydiffaccel.evaluation.ranks import once
from pydiffaccel.models import state_hash
from pydiffaccel.noise import derive_seed
from pydiffaccel.trainer.data import BatchOrder, TrainData
from pydiffaccel.trainer.parallel import Ranks

__all__ = ["Recipe", "classifier_features", "recipe_for", "rotation_features"]

MIN_IMAGES = 100
MAX_IMAGES = 20_000
_BATCH = 128


@dataclass(frozen=True)
class Recipe:
    """How the network looks and is trained.

    Attributes:
        channels: of the convolutions; the first keeps the image's sides, each further one halves them.
        dimension: features.
        steps: of 128 images each, by Adam.
        learning_rate: its rate.
        decay: whether the rate falls to 0 linearly over the steps.
        normalise: whether groups of channels are normalised.
    """

    channels: tuple[int, ...]
    dimension: int
    steps: int
    learning_rate: float = 3e-3
    decay: bool = False
    normalise: bool = False


SMALL = Recipe((16, 32, 32), 16, 600)
LARGE = Recipe((16, 32, 64, 128), 64, 1000, decay=True, normalise=True)


def recipe_for(shape: tuple[int, ...]) -> Recipe:
    """The recipe for images of a shape (C, H, W): SMALL up to 16 pixels, else LARGE."""
    return SMALL if min(shape[1:]) <= 16 else LARGE


def classifier_features(
    data: TrainData,
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
    device: torch.device | str = "cpu",
    ranks: Ranks | None = None,
    keep: Path | None = None,
    report: Callable[[str], None] = lambda message: None,
) -> Features:
    """Features of a classifier of the data's labels, trained on nine tenths of it (20,000 images at most in all).

    On the CPU with a given number of threads, everything is a function of (data, seed, recipe).

    Args:
        recipe: by default ``recipe_for`` the data.
        ranks: with several, the main rank trains and the others are given its weights.
        keep: a safetensors file that the weights are written to, and read from where it holds those of this seed,
            recipe and data (told by name, number and shape): on a GPU no two trainings give the same network.
        report: told what is being done.

    Raises:
        CommandError: the data has no labels, one class only, or fewer than 100 images.
    """
    if data.labels is None or len(data.classes) < 2:
        raise CommandError(f"{data.name} has no classes; the features are those of a classifier, which needs them")
    report("training the classifier whose features are compared")
    return _trained("classifier", "a small classifier", data, len(data.classes), seed, recipe, device, ranks, keep)


def rotation_features(
    data: TrainData,
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
    device: torch.device | str = "cpu",
    ranks: Ranks | None = None,
    report: Callable[[str], None] = lambda message: None,
) -> Features:
    """Features of a network that tells by which of four quarter turns an image was rotated (1803.07728).

    It needs no labels; otherwise as ``classifier_features``.

    Raises:
        CommandError: fewer than 100 images, or images that are not square.
    """
    if data.shape[1] != data.shape[2]:
        raise CommandError(
            f"{data.name} has images of {data.shape[1]} x {data.shape[2]}; quarter turns need square ones, "
            f"take --features pixels"
        )
    report("training the network whose features are compared to tell quarter turns")
    return _trained("rotation", "a small network that tells quarter turns", data, 4, seed, recipe, device, ranks)


def _trained(
    name: str,
    about: str,
    data: TrainData,
    classes: int,
    seed: int,
    recipe: Recipe | None,
    device: torch.device | str,
    ranks: Ranks | None,
    keep: Path | None = None,
) -> Features:
    if len(data) < MIN_IMAGES:
        raise CommandError(f"{data.name} has {len(data)} images; {about} needs at least {MIN_IMAGES} to be trained on")
    recipe = recipe or recipe_for(data.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "classifier"))
        body, head = _network(data.shape[0], recipe, classes)
    network = nn.Sequential(body, head).to(device)

    told = {"network": name, "seed": str(seed), "recipe": repr(recipe), "data": f"{data.name}, {len(data)}"}
    told["shape"] = str(list(data.shape))

    def train() -> tuple[dict[str, Tensor], float]:
        found = _kept(keep, told)
        if found is not None:
            return found
        examples = _Examples(data, seed, turned=name == "rotation")
        _train(network, examples, recipe, seed, device)
        weights = {key: value.cpu() for key, value in network.state_dict().items()}
        accuracy = _accuracy(network, examples, device)
        if keep is not None:
            _write(keep, weights, {**told, "accuracy": repr(accuracy)})
        return weights, accuracy

    weights, accuracy = once(ranks or Ranks(), train)
    network.load_state_dict(weights)
    return Features(
        name,
        f"{about}, right on {accuracy:.1%} of unseen images of {data.name}",
        lambda images: body(reduced(images)),
        recipe.dimension,
        resize_of(data.shape),
        state_hash(body),
        accuracy,
        in_units_of_data=True,
        device=device,
    )


def _kept(path: Path | None, told: dict[str, str]) -> tuple[dict[str, Tensor], float] | None:
    """Weights and accuracy from a file, if it holds those of what is told."""
    if path is None or not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            known = file.metadata() or {}
            if any(known.get(key) != value for key, value in told.items()):
                return None
            return {key: file.get_tensor(key) for key in file.keys()}, float(known["accuracy"])  # noqa: SIM118
    except (OSError, KeyError, ValueError, SafetensorError):
        return None  # damaged: trained again


def _write(path: Path, weights: dict[str, Tensor], told: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}")
    save_file(weights, new, metadata=told)
    new.replace(path)


def _network(channels: int, recipe: Recipe, classes: int) -> tuple[nn.Sequential, nn.Linear]:
    """Images ``[N, channels, H, W]`` to features ``[N, F]``, and features to ``[N, classes]``."""
    layers: list[nn.Module] = []
    for level, width in enumerate(recipe.channels):
        layers.append(nn.Conv2d(channels, width, 3, stride=2 if level else 1, padding=1))
        if recipe.normalise:
            layers.append(nn.GroupNorm(8, width))
        layers.append(nn.SiLU())
        channels = width
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, recipe.dimension), nn.SiLU()]
    return nn.Sequential(*layers), nn.Linear(recipe.dimension, classes)


class _Examples:
    """Images with the answers that a network is to give: their labels, or by how many quarter turns they are rotated.

    The last tenth is not trained on. Images are in the order in which references take them.
    """

    def __init__(self, data: TrainData, seed: int, *, turned: bool) -> None:
        chosen = BatchOrder(len(data), derive_seed(seed, "reference")).indices(0, min(len(data), MAX_IMAGES))
        parts = np.array_split(chosen, -(-len(chosen) // 512))
        self._images = torch.cat([reduced(data.batch(part)) for part in parts])
        self._labels = None if turned or data.labels is None else torch.from_numpy(data.labels[chosen])
        self._views = 4 if self._labels is None else 1
        self.count = len(chosen) * self._views
        self.trained_on = len(chosen) * 9 // 10 * self._views

    def at(self, rows: Tensor, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Images ``[N, C, H, W]`` and answers ``[N]`` of examples ``[N]``."""
        if self._labels is not None:
            return self._images[rows].to(device), self._labels[rows].to(device)
        images, turns = self._images[rows // self._views], rows % self._views
        for turn in range(1, self._views):
            images[turns == turn] = torch.rot90(images[turns == turn], turn, (2, 3))
        return images.to(device), turns.to(device)


def _train(network: nn.Module, examples: _Examples, recipe: Recipe, seed: int, device: torch.device | str) -> None:
    """Trains a network ``[N, C, H, W]`` to ``[N, classes]`` in place."""
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
    order = BatchOrder(examples.trained_on, derive_seed(seed, "classifier batches"))
    for step in range(recipe.steps):
        if recipe.decay:
            optimizer.param_groups[0]["lr"] = recipe.learning_rate * (1 - step / recipe.steps)
        images, answers = examples.at(torch.from_numpy(order.indices(step * _BATCH, _BATCH)), device)
        loss = functional.cross_entropy(network(images), answers)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()


def _accuracy(network: nn.Module, examples: _Examples, device: torch.device | str) -> float:
    """Share of right answers among the examples that were not trained on."""
    right = 0
    with torch.inference_mode():
        for rows in torch.arange(examples.trained_on, examples.count).split(512):
            images, answers = examples.at(rows, device)
            right += int((network(images).argmax(1) == answers).sum())
    return right / (examples.count - examples.trained_on)
