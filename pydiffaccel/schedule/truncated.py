"""The noise levels that a truncated Karhunen-Loeve expansion really has (2503.17657)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pydiffaccel._numbers import in_range
from pydiffaccel.schedule.base import Schedule
from pydiffaccel.schedule.continuous_vp import ContinuousVPSchedule
from pydiffaccel.schedule.kl_terms import NUM_INTERVALS, KLTerms, kl_terms
from pydiffaccel.schedule.vp import VPSchedule

__all__ = ["TruncatedVPSchedule"]

# Grid points per half wave of the fastest sine, and at least this many in all, on which the log-SNR must fall.
_PER_TERM, _LEAST = 8, 4096


@dataclass(frozen=True)
class TruncatedVPSchedule(Schedule):
    """alpha of a VP schedule with the noise level sigma_M of the first M terms of its noise.

    sigma_M is below sigma, so alpha^2 + sigma_M^2 < 1 in general and sampling starts from N(0, sigma_M^2) at the noisy
    end (``prior_std``). Times are those of the base.

    Args:
        base: VPSchedule or ContinuousVPSchedule.
        num_terms: M.
        basis: "kl" or "haar".
        num_intervals: of the quadrature, where there is one (``kl_terms``).

    Raises:
        TypeError, ValueError: what ``kl_terms`` raises; or alpha / sigma_M does not fall strictly with time.
    """

    name: ClassVar[str] = "truncated_vp"

    base: VPSchedule | ContinuousVPSchedule
    num_terms: int
    basis: str = "kl"
    num_intervals: int = NUM_INTERVALS
    _terms: KLTerms = field(init=False, repr=False, compare=False)
    _grid: NDArray[np.float64] = field(init=False, repr=False, compare=False)
    _grid_log_snr: NDArray[np.float64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        terms = kl_terms(self.base, self.num_terms, self.basis, self.num_intervals)
        object.__setattr__(self, "_terms", terms)
        if not terms.uses_quadrature:
            object.__setattr__(self, "num_intervals", NUM_INTERVALS)  # without effect: equal schedules are equal
        # A multiple of the training indices, so that these lie on the grid. Few points do for Haar functions, whose
        # (sigma_M / alpha)^2 always rises: it is the variance of an interpolation of independent increments.
        least = _LEAST if self.basis == "haar" else max(_LEAST, _PER_TERM * self.num_terms)
        unit = self.base.num_train_timesteps or 1
        grid = np.linspace(self.base.clean_end, self.base.noisy_end, unit * math.ceil(least / unit) + 1)
        log_snr = self.log_snr(grid)
        # Where a chain starts without noise the log-SNR is infinite, and stays so up to the first noisy index.
        first = int(np.flatnonzero(np.isinf(log_snr))[-1])
        rising = np.flatnonzero(~(np.diff(log_snr[first:]) < 0))
        if first == grid.size - 1 or rising.size:
            at = grid[min(first + int(rising[0]) + 1, grid.size - 1)] if rising.size else grid[-1]
            raise ValueError(
                f"alpha / sigma_M must fall strictly with time to be a noise level, but for {self.num_terms} terms of"
                f" basis {self.basis!r} it does not at t = {at:g}; use another number of terms, or renormalise"
            )
        object.__setattr__(self, "_grid", grid)
        object.__setattr__(self, "_grid_log_snr", log_snr)

    @property
    def kind(self) -> str:
        """ "vp"."""
        return "vp"

    @property
    def prior_std(self) -> float:
        """sigma_M at the noisy end."""
        return self.prior_std_at(self.noisy_end)

    def prior_std_at(self, t: float) -> float:
        """sigma_M at time t: unlike sigma it may change much close to the noisy end."""
        return float(self.sigma(t))

    @property
    def noisy_end(self) -> float:
        """That of the base."""
        return self.base.noisy_end

    @property
    def clean_end(self) -> float:
        """That of the base."""
        return self.base.clean_end

    @property
    def cleanest_time(self) -> float:
        """That of the base."""
        return self.base.cleanest_time

    @property
    def num_train_timesteps(self) -> int | None:
        """That of the base."""
        return self.base.num_train_timesteps

    @property
    def terms(self) -> KLTerms:
        """The coefficient functions."""
        return self._terms

    def alpha(self, t: ArrayLike) -> NDArray[np.float64]:
        """That of the base."""
        return self.base.alpha(self._checked_time(t))

    def sigma(self, t: ArrayLike) -> NDArray[np.float64]:
        """sigma_M = sqrt(sum_k c_k^2)."""
        return self._terms.sigma(self._checked_time(t))

    def log_snr(self, t: ArrayLike) -> NDArray[np.float64]:
        """log(alpha / sigma_M); strictly decreasing in t, +inf at the clean end."""
        alpha, sigma = self.alpha(t), self.sigma(t)
        result = np.full_like(sigma, np.inf)
        noisy = sigma > 0
        result[noisy] = np.log(alpha[noisy]) - np.log(sigma[noisy])
        return result

    def time_of_log_snr(self, log_snr: ArrayLike) -> NDArray[np.float64]:
        """The time with the given half log-SNR, to float64, by bisection; +inf gives the clean end.

        Raises:
            ValueError: a value is NaN or below the log-SNR of the noisy end.
        """
        values = in_range(log_snr, float(self._grid_log_snr[-1]), np.inf, f"log_snr of this {self.name} schedule")
        flat = values.reshape(-1)
        right = np.searchsorted(-self._grid_log_snr, -flat, side="left")
        # From the clean end, because there times are resolved relative to their distance from it.
        span = self._grid - self.clean_end
        low, high = span[np.maximum(right - 1, 0)], span[right]
        searching = np.flatnonzero(low < high)
        while searching.size:
            middle = 0.5 * (low[searching] + high[searching])
            inside = (middle > low[searching]) & (middle < high[searching])
            searching, middle = searching[inside], middle[inside]
            cleaner = self.log_snr(self.clean_end + middle) > flat[searching]
            low[searching[cleaner]] = middle[cleaner]
            high[searching[~cleaner]] = middle[~cleaner]
        times = np.where(np.isinf(flat), self.clean_end, self.clean_end + high)
        return np.asarray(times.reshape(values.shape), dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """``{"name": "truncated_vp", "base": {...}, "num_terms", "basis", "num_intervals"}``."""
        return {
            "name": self.name,
            "base": self.base.to_dict(),
            "num_terms": self.num_terms,
            "basis": self.basis,
            "num_intervals": self.num_intervals,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return TruncatedVPSchedule, (self.base, self.num_terms, self.basis, self.num_intervals)
