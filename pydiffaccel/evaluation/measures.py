"""The measures that ``python -m pydiffaccel.evaluate`` knows, each with its recipe and the least number of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydiffaccel._cli import CommandError, UsageError
from pydiffaccel.evaluation._arrays import Array
from pydiffaccel.evaluation.features import Features
from pydiffaccel.evaluation.frechet import frechet_between
from pydiffaccel.evaluation.kid import kernel_distance
from pydiffaccel.evaluation.precision_recall import density_coverage, precision_recall
from pydiffaccel.evaluation.sliced_wasserstein import sliced_wasserstein

__all__ = ["MEASURES", "MIN_IMAGES", "Measure", "Settings", "check_counts", "measure", "title"]

MIN_IMAGES = 100


@dataclass(frozen=True)
class Settings:
    """Numbers of the measures.

    Attributes:
        seed: of subsets and directions.
        subsets, subset_size: of the kernel distance; a subset has half of the images at most.
        k: neighbour of precision and recall.
        dense_k: neighbour of density and coverage.
        directions: of the sliced Wasserstein distance.
    """

    seed: int = 0
    subsets: int = 100
    subset_size: int = 1000
    k: int = 3
    dense_k: int = 5
    directions: int = 512


@dataclass(frozen=True)
class Measure:
    """One entry of the flag --metrics.

    Attributes:
        titles: of each figure, by its key in the JSON.
        compute: figures of features ``[N, F]`` of samples and ``[M, F]`` of data, by key.
        recipe: what the figures depend on besides the features, for N and M images.
        full_rank: whether N and M must exceed F.
        pixels: whether it is taken on pixels whatever the features are.
    """

    titles: dict[str, str]
    compute: Callable[[Array, Array, Settings], dict[str, float]]
    recipe: Callable[[Settings, int, int], dict[str, Any]]
    full_rank: bool = False
    pixels: bool = False


def _subset_size(settings: Settings, n: int, m: int) -> int:
    """At most half of the images, so that subsets differ."""
    return max(2, min(settings.subset_size, n // 2, m // 2))


def _kernel(samples: Array, reference: Array, settings: Settings) -> dict[str, float]:
    size = _subset_size(settings, len(samples), len(reference))
    found = kernel_distance(samples, reference, subsets=settings.subsets, subset_size=size, seed=settings.seed)
    return {"kernel_distance": found.mean, "kernel_distance_std": found.std}


def _overlap(samples: Array, reference: Array, settings: Settings) -> dict[str, float]:
    found = precision_recall(samples, reference, k=settings.k)
    return {"precision": found.precision, "recall": found.recall}


def _dense(samples: Array, reference: Array, settings: Settings) -> dict[str, float]:
    found = density_coverage(samples, reference, k=settings.dense_k)
    return {"density": found.density, "coverage": found.coverage}


def _sliced(key: str) -> Callable[[Array, Array, Settings], dict[str, float]]:
    return lambda samples, reference, settings: {
        key: sliced_wasserstein(samples, reference, directions=settings.directions, seed=settings.seed)
    }


def _sliced_recipe(settings: Settings, n: int, m: int) -> dict[str, Any]:
    return {"power": 2, "directions": settings.directions, "seed": settings.seed}


MEASURES = {
    "frechet": Measure(
        {"frechet_distance": "Frechet distance"},
        lambda samples, reference, settings: {"frechet_distance": frechet_between(samples, reference)},
        lambda settings, n, m: {},
        full_rank=True,
    ),
    "kid": Measure(
        {"kernel_distance": "kernel distance", "kernel_distance_std": "kernel distance, deviation over subsets"},
        _kernel,
        lambda settings, n, m: {
            "kernel": "(<x, y> / F + 1)^3",
            "subsets": settings.subsets,
            "subset_size": _subset_size(settings, n, m),
            "seed": settings.seed,
        },
    ),
    "precision_recall": Measure(
        {"precision": "precision", "recall": "recall"}, _overlap, lambda settings, n, m: {"k": settings.k}
    ),
    "density_coverage": Measure(
        {"density": "density", "coverage": "coverage"}, _dense, lambda settings, n, m: {"k": settings.dense_k}
    ),
    "sliced_wasserstein": Measure(
        {"sliced_wasserstein": "sliced Wasserstein distance"}, _sliced("sliced_wasserstein"), _sliced_recipe
    ),
    "sliced_wasserstein_pixels": Measure(
        {"sliced_wasserstein_pixels": "sliced Wasserstein distance"},
        _sliced("sliced_wasserstein_pixels"),
        _sliced_recipe,
        pixels=True,
    ),
}

# Only the Inception network's distances have these names.
_INCEPTION = {"frechet_distance": "FID", "kernel_distance": "KID"}


def title(name: str, key: str, features: Features) -> str:
    """What a figure is called, with its features: a Frechet distance is an FID on Inception's features alone."""
    plain = MEASURES[name].titles[key]
    if features.name == "inception":
        plain = _INCEPTION.get(key, plain)
    return f"{plain} ({'pixels' if features.name == 'pixels' else f'{features.name} features'})"


def check_counts(name: str, features: Features, n: int, m: int) -> None:
    """Refuses figures of too few images: fewer than 100, or no more than features where a covariance needs full rank.

    Args:
        name: of the measure.
        features: that it is taken on.
        n, m: samples, and images of the data.

    Raises:
        UsageError: too few of one of them.
    """
    low = max(MIN_IMAGES, features.dimension + 1) if MEASURES[name].full_rank else MIN_IMAGES
    why = f" for a covariance of {features.dimension:,} {features.name} features" if low > MIN_IMAGES else ""
    for what, count in (("samples", n), ("images of the data", m)):
        if count < low:
            raise UsageError(f"--metrics {name} needs at least {low:,} {what}{why}, got {count:,}; --force takes fewer")


def measure(name: str, samples: Array, reference: Array, settings: Settings) -> dict[str, float]:
    """Figures of features ``[N, F]`` and ``[M, F]``, by key.

    Raises:
        CommandError: there are too few rows for the measure to exist.
    """
    try:
        return MEASURES[name].compute(samples, reference, settings)
    except ValueError as error:
        raise CommandError(f"--metrics {name}: {error}") from error
