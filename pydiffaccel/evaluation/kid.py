"""Kernel distance of features: the maximum mean discrepancy of a cubic kernel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pydiffaccel.evaluation._arrays import Array, check_int, check_pair
from pydiffaccel.noise import derive_seed, permutation

__all__ = ["KernelDistance", "kernel_distance", "mmd2"]


@dataclass(frozen=True)
class KernelDistance:
    """A kernel distance over subsets.

    Attributes:
        mean: of the subsets' estimates; unbiased, so it may be a little below 0 for equal distributions.
        std: population standard deviation of the subsets' estimates; 0 for a single subset.
    """

    mean: float
    std: float


def mmd2(samples: Array, reference: Array) -> float:
    """Unbiased squared maximum mean discrepancy with the cubic kernel k(x, y) = (<x, y> / F + 1)^3:

        mean over i != j of k(x_i, x_j) + mean over i != j of k(y_i, y_j) - 2 mean over i, j of k(x_i, y_j)

    (Gretton et al. 2012, lemma 6; Binkowski et al., 1801.01401, sections 2 and 4).

    Args:
        samples: ``[n, F]``, n at least 2.
        reference: ``[m, F]``, m at least 2.

    Raises:
        TypeError, ValueError: arrays that are no such features.
    """
    x, y = check_pair(samples, reference, 2)
    return _mmd2(x, y)


def _kernel(x: Array, y: Array) -> Array:
    """k(x_i, y_j), ``[n, m]``. In place, and without ``**``, whose ``pow`` costs more than the matrix product."""
    found: Array = x @ y.T
    found /= x.shape[1]
    found += 1
    square = found * found
    square *= found
    return square


def _mmd2(x: Array, y: Array) -> float:
    n, m = len(x), len(y)
    own = 0.0
    for values, count in ((x, n), (y, m)):
        kernel = _kernel(values, values)
        own += float(kernel.sum() - np.trace(kernel)) / (count * (count - 1))
    return own - 2 * float(_kernel(x, y).mean())


def kernel_distance(
    samples: Array, reference: Array, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """``mmd2`` over random subsets; on the features of the Inception network it is the KID (1801.01401, section 4).

    Each subset draws subset_size rows of both sets without replacement, as a function of (seed, subset) alone.

    Args:
        samples: ``[N, F]``, N at least subset_size.
        reference: ``[M, F]``, M at least subset_size.
        subsets: how many, at least 1.
        subset_size: rows of each, at least 2.
        seed: of the subsets.

    Raises:
        TypeError, ValueError: arrays that are no such features, or numbers out of range.
    """
    check_int("subsets", subsets, 1)
    check_int("subset_size", subset_size, 2)
    x, y = check_pair(samples, reference, 2)
    if subset_size > min(len(x), len(y)):
        raise ValueError(f"subset_size must be at most {min(len(x), len(y))}, the rows there are, got {subset_size}")
    found = []
    for subset in range(subsets):
        rows_x = permutation(len(x), derive_seed(seed, f"kernel distance, samples {subset}"))[:subset_size]
        rows_y = permutation(len(y), derive_seed(seed, f"kernel distance, reference {subset}"))[:subset_size]
        found.append(_mmd2(x[rows_x], y[rows_y]))
    return KernelDistance(float(np.mean(found)), float(np.std(found)))
