"""Time grids: where a solver with N steps evaluates its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydiffaccel.schedule import Schedule

__all__ = ["SPACINGS", "Spacing", "custom_sigmas", "custom_times", "default_spacing", "spaced_times"]

Times = NDArray[np.float64]

# Where neither the schedule nor the user says how noisy or clean the outer evaluations are: EDM's ends (2206.00364).
_SIGMA_MIN, _SIGMA_MAX = 0.002, 80.0

# Times of user-given sigmas this close to the cleanest trained time are that time, in the schedule's own unit.
_SNAP = 1e-5


@dataclass(frozen=True)
class Spacing:
    """A named time grid.

    Attributes:
        build: (schedule, number of steps, end, options) -> times ``[N + 1]``.
        options: keyword arguments and their defaults.
        discrete: whether it picks training indices, so that the schedule must be a discrete chain.
    """

    build: Callable[[Schedule, int, float, Mapping[str, Any]], Times]
    options: Mapping[str, Any] = field(default_factory=dict)
    discrete: bool = False


def _total(schedule: Schedule) -> int:
    total = schedule.num_train_timesteps
    assert total is not None
    return total


def _trailing(schedule: Schedule, num_steps: int, end: float, options: Mapping[str, Any]) -> Times:
    total = _total(schedule)
    return np.append(np.round(total - np.arange(num_steps) * (total / num_steps)) - 1, end)


def _leading(schedule: Schedule, num_steps: int, end: float, options: Mapping[str, Any]) -> Times:
    offset, drop = options["steps_offset"], _drop_last(options)
    if isinstance(offset, bool) or not isinstance(offset, int):
        raise TypeError(f"steps_offset must be an int, got {type(offset).__name__}")
    if offset < 0:
        raise ValueError(f"steps_offset must not be negative, got {offset}")
    stride = _total(schedule) // (num_steps + drop)
    return np.append(np.arange(drop, num_steps + drop)[::-1] * stride + float(offset), end)


def _linspace(schedule: Schedule, num_steps: int, end: float, options: Mapping[str, Any]) -> Times:
    last, drop = _total(schedule) - 1, _drop_last(options)
    if num_steps + drop == 1:
        return np.array([last, end], dtype=np.float64)
    return np.append(np.round(np.linspace(0, last, num_steps + drop))[drop:][::-1], end)


def _uniform(schedule: Schedule, num_steps: int, end: float, options: Mapping[str, Any]) -> Times:
    return np.linspace(schedule.noisy_end, end, num_steps + 1)


def _quadratic(schedule: Schedule, num_steps: int, end: float, options: Mapping[str, Any]) -> Times:
    last = schedule.cleanest_time if end == schedule.clean_end else end
    intervals = num_steps - (last != end)
    left = np.linspace(1.0, 0.0, intervals + 1) ** 2 if intervals else np.ones(1)
    times = last + (schedule.noisy_end - last) * left
    times[0] = schedule.noisy_end
    return times if last == end else np.append(times, end)


def _karras(schedule: Schedule, num_steps: int, end: float, options: Mapping[str, Any]) -> Times:
    rho = _positive(options, "rho")

    def curve(first: float, last: float, count: int) -> Times:
        root = np.linspace(first ** (1.0 / rho), last ** (1.0 / rho), count)
        return np.asarray(root**rho, dtype=np.float64)

    return _by_sigma(schedule, num_steps, end, options, curve)


def _log_snr(schedule: Schedule, num_steps: int, end: float, options: Mapping[str, Any]) -> Times:
    return _by_sigma(
        schedule, num_steps, end, options, lambda first, last, n: np.exp(np.linspace(np.log(first), np.log(last), n))
    )


def _by_sigma(
    schedule: Schedule,
    num_steps: int,
    end: float,
    options: Mapping[str, Any],
    curve: Callable[[float, float, int], Times],
) -> Times:
    """A curve of sigma / alpha from the noisy end to the cleanest evaluation (then the clean end), or to `end`."""
    to_clean = end == schedule.clean_end
    last_time = schedule.cleanest_time if to_clean else end
    if options["sigma_min"] is not None:
        if not to_clean:
            raise ValueError(f"give end or sigma_min, not both, got end {end:g}")
        last = _positive(options, "sigma_min")
    else:
        last = _ratio(schedule, last_time) if last_time != schedule.clean_end else _SIGMA_MIN
    noisiest = _ratio(schedule, schedule.noisy_end)
    first = min(noisiest, _SIGMA_MAX) if options["sigma_max"] is None else _positive(options, "sigma_max")
    if options["sigma_max"] is None and np.isfinite(noisiest):
        first = noisiest
    if first > noisiest * (1 + 1e-9):
        raise ValueError(f"sigma_max must be at most {noisiest:g}, the schedule's noisy end, got {first:g}")
    if last <= 0:
        raise ValueError(f"the model would be evaluated at t = {last_time:g}, where there is no noise left to remove")
    count = num_steps if to_clean else num_steps + 1
    if count > 1 and not last < first:
        raise ValueError(f"the grid must run from more to less noise, got sigma / alpha from {first:g} to {last:g}")
    times = schedule.time_of_log_snr(-np.log(np.minimum(curve(first, last, count), noisiest)))
    # The ends exactly, not to rounding.
    if options["sigma_min"] is None and last_time != schedule.clean_end:
        times[-1] = last_time
    if options["sigma_max"] is None or np.isinf(noisiest):  # sampling starts from pure noise where there is one
        times[0] = schedule.noisy_end
    return np.append(times, end) if to_clean else times


_BY_SIGMA: dict[str, Any] = {"sigma_min": None, "sigma_max": None}
SPACINGS: dict[str, Spacing] = {
    "trailing": Spacing(_trailing, discrete=True),
    "leading": Spacing(_leading, {"steps_offset": 0, "drop_last": False}, discrete=True),
    "linspace": Spacing(_linspace, {"drop_last": False}, discrete=True),
    "log_snr": Spacing(_log_snr, _BY_SIGMA),
    "exponential": Spacing(_log_snr, _BY_SIGMA),
    "karras": Spacing(_karras, {"rho": 7.0, **_BY_SIGMA}),
    "quadratic": Spacing(_quadratic),
    "uniform": Spacing(_uniform),
}


def default_spacing(schedule: Schedule, preferred: str) -> str:
    """The preferred spacing, or "uniform" in place of training indices that the schedule does not have."""
    return "uniform" if SPACINGS[preferred].discrete and schedule.num_train_timesteps is None else preferred


def spaced_times(
    schedule: Schedule,
    num_steps: int,
    spacing: str,
    end: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> Times:
    """Times ``[num_steps + 1]`` from the noisy end to `end` (default: the clean end); the last is no evaluation.

    Spacings:
        trailing, leading, linspace: whole training indices of a discrete VP schedule, the three of 2305.08891, table 2.
            trailing: round(T - i T / N) - 1, starts at T - 1. leading: multiples of T // N plus steps_offset, ends at
            steps_offset. linspace: from T - 1 to 0. After the last index comes the clean end. With drop_last, leading
            and linspace lay out N + 1 indices and leave out the last, as the multistep schedulers of diffusers do.
        log_snr, exponential: uniform in half log-SNR, so geometric in sigma / alpha; two names of one grid.
        karras: uniform in (sigma / alpha)^(1 / rho), 2206.00364, equation 5; rho = 7.
            These run from sigma_max to sigma_min (ratios sigma / alpha), then to the clean end. Defaults: the noisy end
            and the cleanest time of training (index 0, or t_min), or 80 and 0.002 where the schedule does not say.
            Where the noisy end is pure noise (flow matching, zero terminal SNR) the first time is that end, whatever
            sigma_max.
        quadratic: the distance from the last evaluation (VP) or from the clean end falls as (1 - i / n)^2 (2010.02502,
            appendix D.2, real-valued).
        uniform: uniform in time over the whole interval; for a discrete VP schedule this is trailing without rounding.
            With `end`, all but the index grids are laid out up to it.

    Raises:
        TypeError: an option of the wrong type.
        ValueError: unknown spacing or option, one that the schedule does not have, or more steps than training indices.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"unknown spacing {spacing!r}; known: {', '.join(SPACINGS)}")
    chosen = SPACINGS[spacing]
    unknown = sorted(set(options or {}) - set(chosen.options))
    if unknown:
        raise ValueError(f"spacing {spacing!r} has no option {unknown[0]!r}")
    last = schedule.clean_end if end is None else float(end)
    total = schedule.num_train_timesteps
    if chosen.discrete and total is None:
        raise ValueError(f"spacing {spacing!r} needs a discrete vp schedule, got {schedule.name}")
    if chosen.discrete and total is not None and num_steps > total:
        raise ValueError(
            f"spacing {spacing!r} gives at most one step per training index, got {num_steps} steps for {total} indices"
        )
    return _checked_grid(schedule, chosen.build(schedule, num_steps, last, {**chosen.options, **(options or {})}))


def custom_times(schedule: Schedule, times: Sequence[float], end: float | None = None) -> Times:
    """The given evaluation times ``[N]``, from noisy to clean, followed by `end` (default: the clean end).

    Raises:
        TypeError: the times are no numbers.
        ValueError: empty, not strictly running towards the clean end, or outside the schedule.
    """
    grid = _vector(times, "timesteps")
    return _checked_grid(schedule, np.append(grid, schedule.clean_end if end is None else float(end)))


def custom_sigmas(schedule: Schedule, sigmas: Sequence[float], end: float | None = None) -> Times:
    """Times of the given evaluation levels sigma / alpha ``[N]``, falling, followed by `end` (default: the clean end).

    A last value of 0 stands for the clean end and is no evaluation; the first may be infinite, for pure noise.

    Raises:
        TypeError: the values are no numbers.
        ValueError: empty, negative, not strictly falling, or above the schedule's noisy end.
    """
    values = _vector(sigmas, "sigmas")
    bad = np.flatnonzero(~(values >= 0))  # NaN as well
    if bad.size:
        raise ValueError(f"sigmas must be 0 or positive, got {values[bad[0]]} at index {bad[0]}")
    rising = np.flatnonzero(~(np.diff(values) < 0))
    if rising.size:
        i = int(rising[0])
        raise ValueError(f"sigmas must fall strictly, got {values[i]:g} at index {i} and then {values[i + 1]:g}")
    if values[-1] == 0:
        if end is not None:
            raise ValueError(f"sigmas end with 0, the clean end, so end must be left out, got {end:g}")
        values = values[:-1]
        if values.size == 0:
            raise ValueError("sigmas must hold a level above 0, got only 0")
    noisiest = _ratio(schedule, schedule.noisy_end)
    if values[0] > noisiest * (1 + 1e-6):
        raise ValueError(f"sigmas must be at most {noisiest:g}, the schedule's noisy end, got {values[0]:g}")
    times = schedule.time_of_log_snr(-np.log(np.minimum(values, noisiest)))
    times[np.abs(times - schedule.cleanest_time) < _SNAP] = schedule.cleanest_time
    if np.isinf(values[0]) or abs(values[0] / noisiest - 1) < 1e-6:
        times[0] = schedule.noisy_end
    return _checked_grid(schedule, np.append(times, schedule.clean_end if end is None else float(end)))


def _checked_grid(schedule: Schedule, times: Times) -> Times:
    direction = 1.0 if schedule.clean_end > schedule.noisy_end else -1.0
    schedule.alpha(times)  # refuses times outside the schedule
    wrong = np.flatnonzero(np.diff(times) * direction <= 0)
    untrained = np.flatnonzero((times[:-1] - schedule.cleanest_time) * direction > 0)
    if untrained.size and schedule.cleanest_time != schedule.clean_end:
        lowest = "training index 0" if schedule.num_train_timesteps else f"the trained {schedule.cleanest_time:g}"
        raise ValueError(f"the model would be evaluated at t = {times[untrained[0]]:g}, below {lowest}")
    if wrong.size:
        i = int(wrong[0])
        raise ValueError(
            f"times must run strictly from the noisy end ({schedule.noisy_end:g}) towards the clean end"
            f" ({schedule.clean_end:g}), got {times[i]:g} and then {times[i + 1]:g}"
        )
    return times


def _ratio(schedule: Schedule, t: float) -> float:
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    return np.inf if alpha == 0 else sigma / alpha


def _vector(values: Sequence[float], what: str) -> Times:
    try:
        grid = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what} must be a sequence of numbers: {error}") from None
    if grid.ndim != 1 or grid.size == 0:
        raise ValueError(f"{what} must be a non-empty one-dimensional sequence, got shape {grid.shape}")
    return grid


def _positive(options: Mapping[str, Any], name: str) -> float:
    value = options[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (value > 0 and np.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return float(value)


def _drop_last(options: Mapping[str, Any]) -> int:
    drop = options["drop_last"]
    if not isinstance(drop, bool):
        raise TypeError(f"drop_last must be True or False, got {drop!r}")
    return int(drop)
