"""Numbers that a user gives, as float64 NumPy arrays: checked, with one sentence where they are wrong."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Times and log-SNRs may miss the ends of their range by this relative amount (rounding) and are moved onto them.
_ROUNDING = 1e-9


def vector(values: ArrayLike, what: str) -> NDArray[np.float64]:
    """A read-only float64 copy, one-dimensional, non-empty and finite."""
    try:
        vector = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what} must be a one-dimensional array of numbers: {error}") from None
    if vector.ndim != 1:
        raise ValueError(f"{what} must be one-dimensional, got shape {vector.shape}")
    if vector.size == 0:
        raise ValueError(f"{what} must not be empty")
    bad = np.flatnonzero(~np.isfinite(vector))
    if bad.size:
        raise ValueError(f"{what} must be finite, got {vector[bad[0]]} at index {bad[0]}")
    vector.setflags(write=False)
    return vector


def in_range(values: ArrayLike, first: float, last: float, what: str) -> NDArray[np.float64]:
    """A float64 copy inside [first, last]; rounding misses of the ends are moved onto them."""
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what} must be numbers: {error}") from None
    finite_ends = [abs(end) for end in (first, last) if np.isfinite(end)]
    slack = _ROUNDING * max([1.0, *finite_ends])
    # Written so that NaN counts as outside.
    outside = ~((array >= first - slack) & (array <= last + slack))
    if outside.any():
        raise ValueError(f"{what} must lie in [{first:g}, {last:g}], got {array[outside].flat[0]}")
    return np.asarray(np.clip(array, first, last), dtype=np.float64)


def count(num_train_timesteps: int) -> int:
    """A number of training steps, at least 1."""
    if isinstance(num_train_timesteps, bool) or not isinstance(num_train_timesteps, int):
        raise TypeError(f"num_train_timesteps must be an int, got {type(num_train_timesteps).__name__}")
    if num_train_timesteps < 1:
        raise ValueError(f"num_train_timesteps must be at least 1, got {num_train_timesteps}")
    return num_train_timesteps
