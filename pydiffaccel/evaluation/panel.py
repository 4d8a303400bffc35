"""Several measures of the same samples: figures, the floor that real images reach, the recipe, and a table."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pydiffaccel
from pydiffaccel._cli import CommandError, UsageError
from pydiffaccel.evaluation._arrays import Array
from pydiffaccel.evaluation.classifier import classifier_features, rotation_features
from pydiffaccel.evaluation.features import Features, inception_features, module_features, pixel_features
from pydiffaccel.evaluation.measures import MEASURES, Settings, check_counts, measure, title
from pydiffaccel.evaluation.reference import MAX_REFERENCE, Reference, make_reference
from pydiffaccel.trainer.data import TrainData
from pydiffaccel.trainer.parallel import Ranks

__all__ = ["Panel", "make_features", "make_panel"]


@dataclass(frozen=True)
class Panel:
    """Measures of samples against one set of data.

    Attributes:
        metrics: names of the measures.
        references: the features to measure in, and, where a measure is taken on pixels, those.
        settings: numbers of the measures.
    """

    metrics: tuple[str, ...]
    references: tuple[Reference, ...]
    settings: Settings

    def _place(self, name: str) -> int:
        """Which reference a measure is taken on."""
        return len(self.references) - 1 if MEASURES[name].pixels else 0

    def figures(self, samples: Sequence[Array]) -> dict[str, float]:
        """Figures of features ``[N, F]`` of samples in each reference, by key."""
        return self._figures(samples, [reference.values for reference in self.references])

    def _figures(self, samples: Sequence[Array], data: Sequence[Array]) -> dict[str, float]:
        found = {}
        for name in self.metrics:
            place = self._place(name)
            found.update(measure(name, samples[place], data[place], self.settings))
        return found

    def floor(self, n: int) -> dict[str, Any]:
        """The same figures of n real images, or as many as half of the data, against others; and how many these are."""
        pairs = [reference.floor(n) for reference in self.references]
        counts = {"num_samples": len(pairs[0][0]), "num_reference": len(pairs[0][1])}
        return counts | self._figures([pair[0] for pair in pairs], [pair[1] for pair in pairs])

    def titles(self) -> dict[str, str]:
        """What each figure is called, with its features, by key."""
        return {
            key: title(name, key, self.references[self._place(name)].features)
            for name in self.metrics
            for key in MEASURES[name].titles
        }

    def recipe(self, n: int) -> dict[str, Any]:
        """Everything that the figures of n samples depend on, but the samples."""
        m = len(self.references[0].values)
        described = [
            {**reference.features.to_dict(), "scale": reference.scale, "data_variance": _variance(reference.values)}
            for reference in self.references
        ]
        return {
            "features": described[0],
            **({"pixels": described[1]} if len(described) > 1 else {}),
            "data": self.references[0].data_name,
            "num_samples": n,
            "num_reference": m,
            "seed": self.settings.seed,
            "measures": {name: MEASURES[name].recipe(self.settings, n, m) for name in self.metrics},
            "titles": self.titles(),
            "versions": {
                "pydiffaccel": pydiffaccel.__version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }

    def table(self, columns: Mapping[str, Mapping[str, Any]]) -> str:
        """A row per figure, a column per set of samples."""
        titles = self.titles()
        wide = max(map(len, titles.values()))
        lines = [" " * wide + "".join(f"{name:>12}" for name in columns)]
        for key, text in titles.items():
            lines.append(f"{text:<{wide}}" + "".join(f"{column[key]:>12.4g}" for column in columns.values()))
        return "\n".join(lines)


def _variance(values: Array) -> float:
    return float(values.var(0, ddof=1).sum()) if len(values) > 1 else 0.0


def make_features(
    name: str,
    data: TrainData,
    *,
    weights: Path | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    ranks: Ranks | None = None,
    report: Callable[[str], None] = lambda message: None,
) -> Features:
    """The features of a name: classifier, rotation, pixels, inception, or ``package.module:name``.

    Args:
        name: "auto" is classifier where the data has labels, else rotation where its images are square, else pixels.
        weights: file for "inception".
        seed: of what is trained.
        ranks: with several, the main rank trains.
        report: told what is being done.

    Raises:
        CommandError: there are no such features, or not for this data; or it is no images.
    """
    if data.kind != "images" or len(data.shape) != 3:
        raise CommandError(f"only images can be measured, and the data is {data.describe()}")
    if name == "auto":
        square = data.shape[1] == data.shape[2]
        name = "classifier" if data.labels is not None and len(data.classes) > 1 else "rotation" if square else "pixels"
    if name == "classifier":
        return classifier_features(data, seed=seed, device=device, ranks=ranks, report=report)
    if name == "rotation":
        return rotation_features(data, seed=seed, device=device, ranks=ranks, report=report)
    if name == "pixels":
        return pixel_features(data.shape, device)
    if name == "inception":
        return inception_features(weights, device)
    return module_features(name, data, device)


def make_panel(
    data: TrainData,
    metrics: Sequence[str],
    features: Features,
    *,
    num_samples: int,
    num_reference: int = MAX_REFERENCE,
    settings: Settings | None = None,
    force: bool = False,
    ranks: Ranks | None = None,
) -> Panel:
    """The panel of some measures on features of data.

    Args:
        metrics: names from ``MEASURES``; each once is enough.
        num_samples: how many samples will be measured: as many further images of the data are kept for the floor.
        num_reference: images of the data to compare with, at most.
        settings: numbers of the measures, and the seed of the order in which images are taken.
        force: accepts fewer images than ``check_counts`` asks for.
        ranks: with several, each takes a part of the images.

    Raises:
        UsageError: no measure, one that is not known, or too few images.
        CommandError: the data does not allow for the features.
    """
    settings = settings or Settings()
    unknown = [name for name in metrics if name not in MEASURES]
    if unknown or not metrics:
        raise UsageError(f"measures are {', '.join(MEASURES)}, got {unknown[0] if unknown else 'none'}")
    pixels = [name for name in metrics if MEASURES[name].pixels]
    makers = [features]
    if pixels and features.name != "pixels":
        makers.append(pixel_features(data.shape, features.device))
    for name in () if force else metrics:
        check_counts(name, makers[-1] if name in pixels else features, num_samples, min(len(data), num_reference))
    references = [
        make_reference(data, maker, seed=settings.seed, num_images=num_reference, num_spare=num_samples, ranks=ranks)
        for maker in makers
    ]
    return Panel(tuple(dict.fromkeys(metrics)), tuple(references), settings)
