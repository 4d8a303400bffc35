"""Time grids: where a solver with N steps evaluates its model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pydiffaccel.schedule import Schedule

__all__ = ["SPACINGS", "custom_times", "default_spacing", "spaced_times"]

Times = NDArray[np.float64]


def _trailing(total: int, num_steps: int) -> Times:
    return np.asarray(np.round(total - np.arange(num_steps) * (total / num_steps)) - 1, dtype=np.float64)


def _leading(total: int, num_steps: int) -> Times:
    return np.asarray(np.arange(num_steps)[::-1] * (total // num_steps), dtype=np.float64)


def _linspace(total: int, num_steps: int) -> Times:
    if num_steps == 1:
        return np.array([total - 1], dtype=np.float64)
    return np.asarray(np.round(np.linspace(0, total - 1, num_steps))[::-1], dtype=np.float64)


def _log_snr(schedule: Schedule, num_steps: int, end: float) -> Times:
    # The clean end is at infinity: a grid that ends there is uniform up to the cleanest time that training saw.
    to_clean = end == schedule.clean_end
    last = schedule.cleanest_time if to_clean else end
    num_points = num_steps if to_clean else num_steps + 1
    first_log_snr, last_log_snr = schedule.log_snr([schedule.noisy_end, last]).tolist()
    times = schedule.time_of_log_snr(np.linspace(first_log_snr, last_log_snr, num_points))
    # The ends exactly, not to rounding.
    times[-1], times[0] = last, schedule.noisy_end
    return np.append(times, end) if to_clean else times


_INDEX_SPACINGS: dict[str, Callable[[int, int], Times]] = {
    "trailing": _trailing,
    "leading": _leading,
    "linspace": _linspace,
}
SPACINGS = (*_INDEX_SPACINGS, "log_snr", "uniform")


def default_spacing(schedule: Schedule, preferred: str) -> str:
    """The preferred spacing, or "uniform" in place of training indices that the schedule does not have."""
    return "uniform" if preferred in _INDEX_SPACINGS and schedule.num_train_timesteps is None else preferred


def spaced_times(schedule: Schedule, num_steps: int, spacing: str, end: float | None = None) -> Times:
    """Times ``[num_steps + 1]`` from the noisy end to `end` (default: the clean end); the last is no evaluation.

    Spacings:
        trailing, leading, linspace: whole training indices of a discrete VP schedule, the three of 2305.08891, table 2.
            trailing: round(T - i T / N) - 1, starts at T - 1. leading: multiples of T // N, ends at 0. linspace: from
            T - 1 to 0. After the last index comes the clean end.
        log_snr: uniform in half log-SNR from the noisy end to index 0, or t_min on continuous time (or `end`, where
            given), then the clean end. VP only, because a flow schedule starts at minus infinity. Real-valued times.
        uniform: uniform in time over the whole interval; for VP this is trailing without rounding.

    Raises:
        ValueError: unknown spacing, one that the schedule does not have, or more steps than training indices.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"unknown spacing {spacing!r}; known: {', '.join(SPACINGS)}")
    last = schedule.clean_end if end is None else float(end)
    if spacing == "uniform":
        return _checked_grid(schedule, np.linspace(schedule.noisy_end, last, num_steps + 1))
    if schedule.kind != "vp":
        raise ValueError(f"spacing {spacing!r} needs a vp schedule, got {schedule.name}")
    if spacing == "log_snr":
        return _checked_grid(schedule, _log_snr(schedule, num_steps, last))
    total = schedule.num_train_timesteps
    if total is None:
        raise ValueError(f"spacing {spacing!r} needs a discrete vp schedule, got {schedule.name}")
    if num_steps > total:
        raise ValueError(
            f"spacing {spacing!r} gives at most one step per training index, got {num_steps} steps for {total} indices"
        )
    return _checked_grid(schedule, np.append(_INDEX_SPACINGS[spacing](total, num_steps), last))


def custom_times(schedule: Schedule, times: Sequence[float], end: float | None = None) -> Times:
    """The given evaluation times ``[N]``, from noisy to clean, followed by `end` (default: the clean end).

    Raises:
        ValueError: empty, not strictly running towards the clean end, or outside the schedule.
    """
    grid = np.array(times, dtype=np.float64)
    if grid.ndim != 1 or grid.size == 0:
        raise ValueError(f"timesteps must be a non-empty one-dimensional sequence, got shape {grid.shape}")
    return _checked_grid(schedule, np.append(grid, schedule.clean_end if end is None else float(end)))


def _checked_grid(schedule: Schedule, times: Times) -> Times:
    direction = 1.0 if schedule.clean_end > schedule.noisy_end else -1.0
    schedule.alpha(times)  # refuses times outside the schedule
    if schedule.kind == "vp" and (times[:-1] < schedule.cleanest_time).any():
        untrained = times[:-1][times[:-1] < schedule.cleanest_time][0]
        lowest = "training index 0" if schedule.num_train_timesteps else f"the trained {schedule.cleanest_time:g}"
        raise ValueError(f"the model would be evaluated at t = {untrained:g}, below {lowest}")
    wrong = np.flatnonzero(np.diff(times) * direction <= 0)
    if wrong.size:
        i = int(wrong[0])
        raise ValueError(
            f"times must run strictly from the noisy end ({schedule.noisy_end:g}) towards the clean end"
            f" ({schedule.clean_end:g}), got {times[i]:g} and then {times[i + 1]:g}"
        )
    return times
