"""The schedule of straight paths from noise to data (2209.03003)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pydiffaccel._numbers import in_range
from pydiffaccel.schedule.base import Schedule

__all__ = ["FlowSchedule"]


@dataclass(frozen=True)
class FlowSchedule(Schedule):
    """Straight paths from noise to data: x_t = (1 - t) noise + t x_0 with velocity x_0 - noise (2209.03003).

    Time runs from 0 (noise) to 1 (data), so alpha = t and sigma = 1 - t.
    """

    name: ClassVar[str] = "flow"

    @property
    def noisy_end(self) -> float:
        """0."""
        return 0.0

    @property
    def clean_end(self) -> float:
        """1."""
        return 1.0

    def alpha(self, t: ArrayLike) -> NDArray[np.float64]:
        """t."""
        return self._checked_time(t)

    def sigma(self, t: ArrayLike) -> NDArray[np.float64]:
        """1 - t."""
        return np.asarray(1.0 - self._checked_time(t), dtype=np.float64)

    def log_snr(self, t: ArrayLike) -> NDArray[np.float64]:
        """log(t / (1 - t)); -inf at t = 0, +inf at t = 1."""
        times = self._checked_time(t)
        result = np.where(times > 0.5, np.inf, -np.inf)
        inside = (times > 0) & (times < 1)
        result[inside] = np.log(times[inside]) - np.log1p(-times[inside])
        return result

    def time_of_log_snr(self, log_snr: ArrayLike) -> NDArray[np.float64]:
        """The logistic function; -inf gives 0 and +inf gives 1."""
        values = in_range(log_snr, -np.inf, np.inf, "log_snr of a flow schedule")
        small = np.exp(-np.abs(values))  # never overflows
        return np.asarray(np.where(values >= 0, 1.0, small) / (1.0 + small), dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """``{"name": "flow"}``."""
        return {"name": self.name}
