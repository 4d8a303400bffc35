"""How fast the noise level of a schedule changes with time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pydiffaccel.schedule.base import Schedule

__all__ = ["noise_slope"]

# Points on continuous time.
_POINTS = 4097


def noise_slope(schedule: Schedule) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Times from the cleanest to the noisiest of training, and the change of sigma there towards more noise.

    Per unit of time that is 1 for the whole of it, on a chain per T indices: so a chain of other length on the same
    levels has the same slopes. Differences of neighbours, as NumPy's ``gradient``.

    Returns:
        Two float64 arrays: of every index 0 .. T-1 on a chain, of 4097 times on continuous time.
    """
    count = schedule.num_train_timesteps
    if count is None:
        times = np.linspace(schedule.cleanest_time, schedule.noisy_end, _POINTS)
        whole = abs(schedule.noisy_end - schedule.clean_end)
        position = np.abs(times - schedule.clean_end) / whole
    else:
        times = np.arange(count, dtype=np.float64)
        position = times / count
    if times.size == 1:
        return times, np.zeros(1)
    return times, np.asarray(np.gradient(schedule.sigma(times), position), dtype=np.float64)
