"""Measures of samples against data: distances on arrays of features, and where features come from.

The measures take float arrays ``[N, F]`` and know nothing of images; ``pydiffaccel.evaluation.reference`` puts them
together with features of images, as ``python -m pydiffaccel.evaluate`` does.
"""

from pydiffaccel.evaluation.frechet import frechet_between, frechet_distance, statistics
from pydiffaccel.evaluation.kid import KernelDistance, kernel_distance, mmd2
from pydiffaccel.evaluation.precision_recall import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    precision_recall,
    squared_radii,
)
from pydiffaccel.evaluation.sliced_wasserstein import sliced_wasserstein

__all__ = [
    "DensityCoverage",
    "KernelDistance",
    "PrecisionRecall",
    "density_coverage",
    "frechet_between",
    "frechet_distance",
    "kernel_distance",
    "mmd2",
    "precision_recall",
    "sliced_wasserstein",
    "squared_radii",
    "statistics",
]
