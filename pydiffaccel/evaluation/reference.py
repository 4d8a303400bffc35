"""What samples are compared with: features of the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pydiffaccel._cli import CommandError
from pydiffaccel.evaluation._arrays import Array
from pydiffaccel.evaluation.classifier import Recipe, classifier_features
from pydiffaccel.evaluation.features import Features
from pydiffaccel.evaluation.frechet import frechet_between
from pydiffaccel.evaluation.ranks import gather_rows
from pydiffaccel.noise import derive_seed
from pydiffaccel.trainer.data import BatchOrder, TrainData
from pydiffaccel.trainer.parallel import Ranks

__all__ = ["FIRST_SEED", "MAX_REFERENCE", "Reference", "embed_data", "make_reference"]

FIRST_SEED = 10_000_000  # of samples: far from the seeds that one looks at, or fits plans on
MAX_REFERENCE = 10_000
_AT_ONCE = 512

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Reference:
    """Features of a set of images, in which others are compared with it.

    Attributes:
        features: what makes them of images.
        scale: factor on the features; it makes the data's variance (trace of the covariance) 100 where they are
            ``in_units_of_data``, else 1.
        values: scaled features of the data, float64 ``[M, F]``, in random order.
        spare: those of further images of it, ``[K, F]``, for ``floor``.
        data_name: what the data is called.
    """

    features: Features
    scale: float
    values: Array
    spare: Array
    data_name: str

    def embed(self, images: Tensor) -> Array:
        """Scaled features float64 ``[N, F]`` of images ``[N, C, H, W]``; values are clipped to [-1, 1]."""
        return self.features(images) * self.scale

    def distance(self, images: Tensor) -> float:
        """Squared Frechet distance of images ``[N, C, H, W]`` to the data; values are clipped to [-1, 1]."""
        return frechet_between(self.embed(images), self.values)

    def floor(self, n: int) -> tuple[Array, Array]:
        """Features of real images to take for n samples, and of others to compare them with.

        No image is in both. Where the data has too few, there are as many of the first as half of it, and fewer of
        the second than M.
        """
        every = np.concatenate([self.values, self.spare])
        taken = min(n, len(every) // 2)
        return every[len(every) - taken :], every[: min(len(self.values), len(every) - taken)]

    @property
    def accuracy(self) -> float:
        """Of the network that was trained for the features, on images that it was not trained on; NaN without one."""
        return float("nan") if self.features.accuracy is None else self.features.accuracy

    @property
    def halves(self) -> float:
        """The distance between two random halves of the data, what one can hope for at best."""
        half = len(self.values) // 2
        return frechet_between(self.values[:half], self.values[half:])


def make_reference(
    data: TrainData,
    features: Features | None = None,
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
    num_images: int = MAX_REFERENCE,
    num_spare: int = 0,
    ranks: Ranks | None = None,
    report: Callable[[str], None] = lambda message: None,
) -> Reference:
    """Features of the data's images, in an order that depends on the seed alone.

    Args:
        features: by default those of a classifier that is trained here, ``classifier_features(data, seed, recipe)``.
        num_images: at most.
        num_spare: further images, at most.
        ranks: with several, each takes a part of the images and all get the same reference.
        report: told what is being done.

    Raises:
        CommandError: the data does not allow for the features, or has the same features everywhere.
    """
    features = features or classifier_features(data, seed=seed, recipe=recipe, ranks=ranks, report=report)
    count = min(len(data), num_images + num_spare)
    chosen = BatchOrder(len(data), derive_seed(seed, "reference")).indices(0, count)
    found = embed_data(features, data, chosen, ranks or Ranks())
    values, spare = found[:num_images], found[num_images:]
    scale = 1.0
    if features.in_units_of_data:
        variance = float(values.var(0, ddof=1).sum()) if len(values) > 1 else 0.0
        if not variance > 0:
            raise CommandError(
                f"the {len(values)} images of {data.name} do not differ in their {features.name} features"
            )
        scale = (100 / variance) ** 0.5
    return Reference(features, scale, values * scale, spare * scale, data.name)


def embed_data(features: Callable[[Tensor], Array], data: TrainData, indices: Indices, ranks: Ranks) -> Array:
    """Features ``[len(indices), F]`` of the data's images at `indices`; ranks share the images."""
    first, count = ranks.split(len(indices))
    mine = indices[first : first + count]
    parts = [mine[start : start + _AT_ONCE] for start in range(0, count, _AT_ONCE)]
    return gather_rows(ranks, lambda: [features(data.batch(part)) for part in parts])
