"""How samples are judged: against images that nothing was trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pydiffaccel.evaluation import (
    frechet_between,
    kernel_distance,
    precision_recall,
    sliced_wasserstein,
    squared_radii,
)
from pydiffaccel.evaluation._arrays import Array
from pydiffaccel.evaluation.classifier import classifier_features, recipe_for
from pydiffaccel.evaluation.reference import FIRST_SEED, Reference, make_reference
from pydiffaccel.trainer.data import TrainData

__all__ = ["FIRST_SEED", "Judge", "make_judge"]

SUBSETS, SUBSET_SIZE = 20, 500
NEIGHBOUR = 3


@dataclass(frozen=True)
class Judge:
    """Features of the held-out images, and what to measure in them."""

    reference: Reference
    device: torch.device
    shape: tuple[int, ...]

    @cached_property
    def radii(self) -> Array:
        """Of the held-out images' balls, the same for all samples."""
        return squared_radii(self.reference.values, NEIGHBOUR)

    def __call__(self, images: Tensor) -> dict[str, float]:
        """Figures of samples ``[N, C, H, W]``."""
        found, real = self.reference.embed(images), self.reference.values
        size = min(SUBSET_SIZE, len(found), len(real))
        kernel = kernel_distance(found, real, subsets=SUBSETS, subset_size=size)
        manifold = precision_recall(found, real, k=NEIGHBOUR, reference_radii=self.radii)
        return {
            "frechet": frechet_between(found, real),
            "kid": kernel.mean,
            "precision": manifold.precision,
            "recall": manifold.recall,
            "sliced_wasserstein": sliced_wasserstein(found, real),
        }

    def recipe(self) -> dict[str, Any]:
        """What the figures are."""
        return {
            "shape": list(self.shape),
            "features": self.reference.features.to_dict(),
            "reference": f"{len(self.reference.values):,} images of {self.reference.data_name}",
            "floor": self.reference.halves,
            "kid": {"subsets": SUBSETS, "subset_size": SUBSET_SIZE, "kernel": "(<x, y> / F + 1)^3"},
            "precision_recall": {"k": NEIGHBOUR},
            "sliced_wasserstein": {"directions": 512, "seed": 0},
            "first_sample_seed": FIRST_SEED,
        }


def make_judge(
    train: TrainData, test: TrainData, device: torch.device, *, keep: Path | None = None, quick: bool = False
) -> Judge:
    """The classifier is trained on the training split; its accuracy on a part of that split that it has not seen and
    the floor (one half of the held-out images against the other) are in the recipe. It is kept in a file, so that all
    processes judge alike on a GPU, too. quick hardly trains it."""
    recipe = recipe_for(train.shape)
    recipe = replace(recipe, steps=5) if quick else recipe
    features = classifier_features(train, recipe=recipe, device=device, keep=keep)
    return Judge(make_reference(test, features), device, train.shape)
