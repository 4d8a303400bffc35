"""Sliced Wasserstein distance: one-dimensional distances along random directions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pydiffaccel.evaluation._arrays import Array, check_int, check_pair
from pydiffaccel.noise import derive_seed, noise_for_seeds

__all__ = ["sliced_wasserstein"]

_BLOCK = 64  # directions that are projected on at once


def sliced_wasserstein(samples: Array, reference: Array, *, directions: int = 512, seed: int = 0) -> float:
    """Sliced Wasserstein-2 distance (Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures"):

        ( mean over directions u of the integral over q in [0, 1] of (Q_x(q) - Q_y(q))^2 )^(1/2)

    with Q_x, Q_y the quantile functions of the projections <x, u>, <y, u> and u uniform on the unit sphere. Needs no
    covariance and no neighbours, so it is defined for any N and F; a shift by m of any distribution has |m| / F^(1/2)
    over all directions.

    Args:
        samples: ``[N, F]``.
        reference: ``[M, F]``; N and M may differ.
        directions: how many, at least 1; each is a function of (seed, its number, F).
        seed: of the directions.

    Returns:
        The distance, in the units of the features.

    Raises:
        TypeError, ValueError: arrays that are no such features, or directions out of range.
    """
    check_int("directions", directions, 1)
    x, y = check_pair(samples, reference)
    first = derive_seed(seed, "sliced wasserstein")
    widths, rows_x, rows_y = _quantiles(len(x), len(y))
    total = 0.0
    for start in range(0, directions, _BLOCK):
        seeds = [_wrapped(first + number) for number in range(start, min(start + _BLOCK, directions))]
        units = noise_for_seeds((x.shape[1],), seeds).double().numpy()
        units /= np.linalg.norm(units, axis=1, keepdims=True)
        # Quantile functions are steps: between two of all their edges both are constant.
        differences = np.sort(x @ units.T, axis=0)[rows_x] - np.sort(y @ units.T, axis=0)[rows_y]
        total += float(widths @ np.square(differences).sum(1))
    return math.sqrt(total / directions)


def _wrapped(seed: int) -> int:
    """The seed as an int64."""
    return (seed + 2**63) % 2**64 - 2**63


def _quantiles(n: int, m: int) -> tuple[Array, NDArray[np.int64], NDArray[np.int64]]:
    """Widths of the steps of two quantile functions together, and the order statistics that hold on each."""
    edges = np.unique(np.concatenate([np.arange(n + 1) * m, np.arange(m + 1) * n]))
    left = edges[:-1]
    return np.diff(edges) / (n * m), left // m, left // n
