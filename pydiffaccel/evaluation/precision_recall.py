"""Precision, recall, density and coverage: how two sets of features overlap, by balls to k-th nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pydiffaccel.evaluation._arrays import Array, check_int, check_pair, squared_distances

__all__ = ["DensityCoverage", "PrecisionRecall", "density_coverage", "precision_recall", "squared_radii"]


@dataclass(frozen=True)
class PrecisionRecall:
    """Attributes:
    precision: share of samples in a ball of the reference, in [0, 1].
    recall: share of the reference in a ball of the samples, in [0, 1].
    """

    precision: float
    recall: float


@dataclass(frozen=True)
class DensityCoverage:
    """Attributes:
    density: mean number of the reference's balls that hold a sample, over k; at least 0, about 1 for equal sets.
    coverage: share of the reference's balls that hold a sample, in [0, 1].
    """

    density: float
    coverage: float


def squared_radii(values: Array, k: int) -> Array:
    """Squared distance of each row of values ``[N, F]`` to its k-th nearest other row, ``[N]``.

    ``precision_recall`` computes them of both sets. Who compares many sets with one reference takes the reference's
    once: of 10,000 rows they are most of the work.

    Raises:
        TypeError, ValueError: an array that is no such features, or k that is not in [1, N).
    """
    values = _checked(values, values, k)[0]
    out = np.empty(len(values))
    for rows, distances in squared_distances(values, values):
        own = np.arange(rows.start, rows.stop)
        distances[own - rows.start, own] = np.inf  # a row is no neighbour of itself
        out[rows] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return out


def _checked(samples: Array, reference: Array, k: int) -> tuple[Array, Array]:
    check_int("k", k, 1)
    return check_pair(samples, reference, k + 1)


def precision_recall(
    samples: Array, reference: Array, *, k: int = 3, reference_radii: Array | None = None
) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al., 1904.06991, equations 1 and 2).

    The manifold of a set is the union of the closed balls around its rows that reach to the k-th nearest other row.
    Precision is the share of samples in the reference's manifold, recall the share of the reference in that of the
    samples. Both depend on N and M: they are comparable at equal numbers only.

    Args:
        samples: ``[N, F]``, N above k.
        reference: ``[M, F]``, M above k.
        k: the neighbour that a ball reaches to, at least 1.
        reference_radii: ``squared_radii(reference, k)``, ``[M]``, where it is known already.

    Raises:
        TypeError, ValueError: arrays that are no such features, k out of range, or radii that are not one finite
            number for each row of the reference.
    """
    x, y = _checked(samples, reference, k)
    radii_x = squared_radii(x, k)
    radii_y = squared_radii(y, k) if reference_radii is None else reference_radii
    if np.shape(radii_y) != (len(y),):
        raise ValueError(f"reference_radii must be [{len(y)}], got {list(np.shape(radii_y))}")
    if not np.isfinite(radii_y).all():
        raise ValueError(f"reference_radii must be finite; that of row {int(np.argmin(np.isfinite(radii_y)))} is not")
    inside = np.zeros(len(x), bool)
    reached = np.zeros(len(y), bool)
    for rows, distances in squared_distances(x, y):
        inside[rows] = (distances <= radii_y).any(1)
        reached |= (distances <= radii_x[rows, None]).any(0)
    return PrecisionRecall(float(inside.mean()), float(reached.mean()))


def density_coverage(samples: Array, reference: Array, *, k: int = 5) -> DensityCoverage:
    """Density and coverage (Naeem et al., 2002.09797, equations 3 and 4), with balls around the reference only.

    Density counts how many of the reference's balls hold a sample, over k, on average: an outlier's large ball weighs
    less than in precision. Coverage is the share of these balls that hold a sample at all; for equal distributions it
    is expected to be 1 - (M - 1) ... (M - k) / ((N + M - 1) ... (N + M - k)).

    Args:
        samples: ``[N, F]``, N above k.
        reference: ``[M, F]``, M above k.
        k: the neighbour that a ball reaches to, at least 1.

    Raises:
        TypeError, ValueError: arrays that are no such features, or k out of range.
    """
    x, y = _checked(samples, reference, k)
    radii = squared_radii(y, k)
    held = 0
    covered = np.zeros(len(y), bool)
    for _, distances in squared_distances(x, y):
        within = distances <= radii
        held += int(within.sum())
        covered |= within.any(0)
    return DensityCoverage(held / (k * len(x)), float(covered.mean()))
