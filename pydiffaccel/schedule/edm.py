"""The schedule of noise added to the data as it is (2206.00364)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pydiffaccel._numbers import in_range
from pydiffaccel.schedule.base import Schedule

__all__ = ["EDMSchedule"]


@dataclass(frozen=True)
class EDMSchedule(Schedule):
    """Noise added to the data as it is: x_t = x_0 + t noise (2206.00364). Time is sigma, from sigma_max down to 0.

    Raises:
        TypeError: sigma_max is no number.
        ValueError: sigma_max is not positive and finite.
    """

    name: ClassVar[str] = "edm"

    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if isinstance(self.sigma_max, bool) or not isinstance(self.sigma_max, (int, float)):
            raise TypeError(f"sigma_max must be a number, got {type(self.sigma_max).__name__}")
        if not (self.sigma_max > 0 and np.isfinite(self.sigma_max)):
            raise ValueError(f"sigma_max must be positive and finite, got {self.sigma_max}")
        object.__setattr__(self, "sigma_max", float(self.sigma_max))

    @property
    def noisy_end(self) -> float:
        """sigma_max."""
        return self.sigma_max

    @property
    def clean_end(self) -> float:
        """0."""
        return 0.0

    @property
    def prior_std(self) -> float:
        """sigma_max."""
        return self.sigma_max

    def prior_std_at(self, t: float) -> float:
        """t."""
        return float(self.sigma(t))

    def alpha(self, t: ArrayLike) -> NDArray[np.float64]:
        """1."""
        return np.ones_like(self._checked_time(t))

    def sigma(self, t: ArrayLike) -> NDArray[np.float64]:
        """t."""
        return self._checked_time(t)

    def log_snr(self, t: ArrayLike) -> NDArray[np.float64]:
        """-log t; +inf at t = 0."""
        times = self._checked_time(t)
        result = np.full_like(times, np.inf)
        np.log(times, out=result, where=times > 0)
        result[times > 0] *= -1
        return result

    def time_of_log_snr(self, log_snr: ArrayLike) -> NDArray[np.float64]:
        """exp(-lambda); +inf gives 0.

        Raises:
            ValueError: a value is NaN or below the log-SNR of sigma_max.
        """
        values = in_range(log_snr, -float(np.log(self.sigma_max)), np.inf, "log_snr of this edm schedule")
        return np.asarray(np.minimum(np.exp(-values), self.sigma_max), dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """``{"name": "edm", "sigma_max": ...}``."""
        return {"name": self.name, "sigma_max": self.sigma_max}
