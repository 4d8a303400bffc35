"""What every noise schedule offers to processes and solvers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pydiffaccel._numbers import in_range

__all__ = ["Schedule"]


class Schedule(ABC):
    """Noise levels ``x_t = alpha(t) x_0 + sigma(t) noise`` over a bounded time interval.

    Instances are immutable, compare and hash by content, and survive ``schedule_from_dict(s.to_dict())`` bit for bit.
    All functions take times of any array shape and return float64 arrays of that shape; a time that is not finite or
    outside the interval between ``clean_end`` and ``noisy_end`` raises ValueError.
    """

    name: ClassVar[str]

    @property
    def kind(self) -> str:
        """What decides which solvers and time grids apply: "vp", "flow" or "edm"."""
        return self.name

    @property
    def prior_std(self) -> float:
        """Standard deviation of the Gaussian state that sampling starts from at the noisy end."""
        return 1.0

    def prior_std_at(self, t: float) -> float:
        """``prior_std`` for a run that starts at time t; a grid of training indices may start below the noisy end."""
        return self.prior_std

    @property
    @abstractmethod
    def noisy_end(self) -> float:
        """The time of most noise, where sampling starts."""

    @property
    @abstractmethod
    def clean_end(self) -> float:
        """The time at which the state is the data, where sampling ends."""

    @property
    def cleanest_time(self) -> float:
        """The least noisy time that training sees, below which no solver evaluates a network."""
        return self.clean_end

    @property
    def num_train_timesteps(self) -> int | None:
        """Noise levels of a discrete chain, whose times 0 .. T - 1 are training indices; None on continuous time."""
        return None

    @abstractmethod
    def alpha(self, t: ArrayLike) -> NDArray[np.float64]:
        """Factor of the data at time t."""

    @abstractmethod
    def sigma(self, t: ArrayLike) -> NDArray[np.float64]:
        """Factor of the noise at time t."""

    @abstractmethod
    def log_snr(self, t: ArrayLike) -> NDArray[np.float64]:
        """Half log-SNR, log(alpha / sigma): +inf where sigma is 0 and -inf where alpha is 0."""

    @abstractmethod
    def time_of_log_snr(self, log_snr: ArrayLike) -> NDArray[np.float64]:
        """The time with the given half log-SNR, the inverse of ``log_snr``.

        Raises:
            ValueError: a value is NaN or outside the range that the schedule reaches.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; ``schedule_from_dict`` reads it."""

    def unit_time(self, t: ArrayLike) -> NDArray[np.float64]:
        """Time rescaled linearly to [0, 1], keeping its direction: (t + 1) / T for VP, t itself for flow matching."""
        first, last = sorted((self.noisy_end, self.clean_end))
        return np.asarray((self._checked_time(t) - first) / (last - first), dtype=np.float64)

    def _checked_time(self, t: ArrayLike) -> NDArray[np.float64]:
        first, last = sorted((self.noisy_end, self.clean_end))
        return in_range(t, first, last, f"time of a {self.name} schedule")
