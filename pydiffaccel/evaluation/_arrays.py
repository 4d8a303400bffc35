"""Checks of feature arrays, and their distances in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "check_int", "check_pair", "squared_distances"]

Array = NDArray[np.float64]

# Rows whose distances to all others are held at once: 80 MB against 10,000 others.
_BLOCK = 1024


def check_int(name: str, value: Any, low: int) -> None:
    """A whole number of at least low.

    Raises:
        TypeError: value is no int.
        ValueError: it is below low.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")


def check_pair(samples: Any, reference: Any, low: int = 1) -> tuple[Array, Array]:
    """Two feature arrays ``[N, F]`` and ``[M, F]`` as float64.

    Raises:
        TypeError: one is no array of real numbers.
        ValueError: shapes that do not fit, fewer than low rows, or values that are not finite.
    """
    pair = []
    for name, values in (("samples", samples), ("reference", reference)):
        array = np.asarray(values)
        if array.dtype.kind not in "fiu":
            raise TypeError(f"the features of {name} must be real numbers, got dtype {array.dtype}")
        if array.ndim != 2 or array.shape[1] < 1:
            raise ValueError(f"the features of {name} must be [N, F], got {list(array.shape)}")
        if len(array) < low:
            raise ValueError(f"the features of {name} must have at least {low} rows, got {len(array)}")
        array = array.astype(np.float64)
        if not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(array).all(1))[0])
            raise ValueError(f"the features of {name} must be finite; row {row} is not")
        pair.append(array)
    if pair[0].shape[1] != pair[1].shape[1]:
        raise ValueError(
            "samples and reference must have the same number of features, "
            f"got {pair[0].shape[1]} and {pair[1].shape[1]}"
        )
    return pair[0], pair[1]


def squared_distances(a: Array, b: Array) -> Iterator[tuple[slice, Array]]:
    """Squared distances of rows of a ``[N, F]`` to all of b ``[M, F]``: (rows, ``[len(rows), M]``), block by block.

    They come from one matrix product, so what is below its rounding is set to 0: equal rows have distance 0.
    """
    centre = b.mean(0)  # the product loses least around the middle of the values
    a, b = a - centre, b - centre
    squares_a, squares_b = np.square(a).sum(1), np.square(b).sum(1)
    rounding = 2 * a.shape[1] * np.finfo(np.float64).eps
    for first in range(0, len(a), _BLOCK):
        rows = slice(first, min(first + _BLOCK, len(a)))
        sums = squares_a[rows, None] + squares_b
        found = sums - 2 * (a[rows] @ b.T)
        found[found <= rounding * sums] = 0
        yield rows, found
