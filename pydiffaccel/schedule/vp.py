"""The variance-preserving schedule of a discrete chain (DDPM, 2006.11239)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pydiffaccel._numbers import count, in_range, vector
from pydiffaccel.schedule.base import Schedule

__all__ = ["VPSchedule"]


@dataclass(frozen=True, eq=False, repr=False)
class VPSchedule(Schedule):
    """Variance-preserving noise of a discrete chain: alpha^2 = alphabar, sigma^2 = 1 - alphabar (DDPM, 2006.11239).

    Time is the training index 0 .. T-1 and real-valued: log alphabar is linear between indices (the convention of
    DPM-Solver, 2206.00927, for discrete models). Time -1 is the clean end, where alphabar is 1, so alpha = 1 and
    sigma = 0 exactly: the data itself, one index before the first noisy step. Between -1 and 0 log alphabar is linear
    as well. The noisy end is T - 1.

    Where the last alphabar is 0 (zero terminal SNR, 2305.08891) the log-SNR there is -inf, and alpha = sqrt(alphabar)
    is linear over the last interval. At that index the state is the noise: a network that predicts epsilon says nothing
    about the data there, so sample such schedules with v or sample prediction.

    Args:
        alphas_cumprod: alphabar, ``[T]``, strictly decreasing, in [0, 1] (1 only at index 0; then index 0 has no noise
            and the inverse of an infinite log-SNR is still the clean end, -1). Copied to float64.

    Raises:
        TypeError: the values are not numbers.
        ValueError: empty, not one-dimensional, not finite, outside [0, 1] or not strictly decreasing.
    """

    name: ClassVar[str] = "vp"

    alphas_cumprod: NDArray[np.float64]
    _times: NDArray[np.float64] = field(init=False)
    _log_bar: NDArray[np.float64] = field(init=False)
    _alpha: NDArray[np.float64] = field(init=False)
    _sigma: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        bar = vector(self.alphas_cumprod, "alphas_cumprod")
        outside = np.flatnonzero((bar < 0) | (bar > 1))
        if outside.size:
            raise ValueError(f"alphas_cumprod must lie in [0, 1], got {bar[outside[0]]} at index {outside[0]}")
        rising = np.flatnonzero(np.diff(bar) >= 0)
        if rising.size:
            i = int(rising[0])
            raise ValueError(
                f"alphas_cumprod must be strictly decreasing, got {bar[i]} at index {i} and then {bar[i + 1]}"
            )
        object.__setattr__(self, "alphas_cumprod", bar)
        # Knots at -1, 0, .., T-1. alpha and sigma are tabulated so that indices get them without a detour over logs.
        with_clean = np.concatenate(([1.0], bar))
        with np.errstate(divide="ignore"):
            log_bar = np.log(with_clean)
        tables = {
            "_times": np.arange(-1.0, bar.size),
            "_log_bar": log_bar,
            "_alpha": np.sqrt(with_clean),
            "_sigma": np.sqrt(1.0 - with_clean),
        }
        for key, table in tables.items():
            table.setflags(write=False)
            object.__setattr__(self, key, table)

    @classmethod
    def from_betas(cls, betas: ArrayLike) -> VPSchedule:
        """From the per-step variances beta ``[T]``: alphabar is the running product of 1 - beta.

        Each lies in (0, 1); the last may be 1, for zero terminal SNR.

        Raises:
            ValueError: empty, not finite or outside (0, 1).
        """
        values = vector(betas, "betas")
        outside = np.flatnonzero((values <= 0) | (values >= 1))
        if outside.size and not (outside[0] == values.size - 1 and values[-1] == 1):
            raise ValueError(f"betas must lie in (0, 1), got {values[outside[0]]} at index {outside[0]}")
        return cls(np.asarray(np.cumprod(1.0 - values), dtype=np.float64))

    @classmethod
    def linear(cls, num_train_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> VPSchedule:
        """Betas equally spaced from beta_start to beta_end (DDPM, 2006.11239, section 4)."""
        return cls.from_betas(np.linspace(beta_start, beta_end, count(num_train_timesteps)))

    @classmethod
    def scaled_linear(
        cls, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> VPSchedule:
        """Square roots of the betas equally spaced (latent diffusion, 2112.10752)."""
        for name, value in (("beta_start", beta_start), ("beta_end", beta_end)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        return cls.from_betas(np.linspace(beta_start**0.5, beta_end**0.5, count(num_train_timesteps)) ** 2)

    @classmethod
    def cosine(cls, num_train_timesteps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> VPSchedule:
        """alphabar falls as cos^2, betas cut at max_beta (improved DDPM, 2102.09672, equation 17)."""
        steps = np.arange(count(num_train_timesteps) + 1) / num_train_timesteps
        bar = np.cos((steps + s) / (1 + s) * np.pi / 2) ** 2
        return cls.from_betas(np.minimum(1.0 - bar[1:] / bar[:-1], max_beta))

    def rescaled_to_zero_terminal_snr(self) -> VPSchedule:
        """The schedule with sqrt(alphabar) shifted to 0 at the last index and stretched back to its first value.

        Algorithm 1 of 2305.08891. For models trained with it; they predict v or the sample.

        Raises:
            ValueError: there is one index only.
        """
        if self.num_train_timesteps < 2:
            raise ValueError("zero terminal SNR needs at least 2 training steps, got 1")
        root = np.sqrt(self.alphas_cumprod)
        rescaled = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        bar = rescaled**2
        bar[0] = self.alphas_cumprod[0]  # exactly, not to rounding
        return VPSchedule(bar)

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of noise levels of training."""
        return int(self.alphas_cumprod.size)

    @property
    def betas(self) -> NDArray[np.float64]:
        """Per-step variances ``[T]``: 1 - alphabar_i / alphabar_(i-1), with alphabar_(-1) = 1. Read-only."""
        betas: NDArray[np.float64] = -np.expm1(np.diff(self._log_bar))
        betas.setflags(write=False)
        return betas

    @property
    def noisy_end(self) -> float:
        """T - 1."""
        return float(self.num_train_timesteps - 1)

    @property
    def clean_end(self) -> float:
        """-1: alphabar = 1."""
        return -1.0

    @property
    def cleanest_time(self) -> float:
        """0, the first training index."""
        return 0.0

    def log_alphas_cumprod(self, t: ArrayLike) -> NDArray[np.float64]:
        """log alphabar at real-valued times, piecewise linear (-inf where there is no signal)."""
        return self._interpolated(self._checked_time(t))

    def alpha(self, t: ArrayLike) -> NDArray[np.float64]:
        """sqrt(alphabar); at an index the square root of the given value itself."""
        times = self._checked_time(t)
        return self._at_index_or(times, self._alpha, np.exp(0.5 * self._interpolated(times)))

    def sigma(self, t: ArrayLike) -> NDArray[np.float64]:
        """sqrt(1 - alphabar); at an index from the given value itself."""
        times = self._checked_time(t)
        return self._at_index_or(times, self._sigma, np.sqrt(-np.expm1(self._interpolated(times))))

    def log_snr(self, t: ArrayLike) -> NDArray[np.float64]:
        """Half log-SNR; strictly decreasing in t, +inf at the clean end, -inf where alphabar is 0."""
        log_bar = self._interpolated(self._checked_time(t))
        variance = -np.expm1(log_bar)
        result = np.full_like(log_bar, np.inf)
        noisy = variance > 0
        result[noisy] = 0.5 * (log_bar[noisy] - np.log(variance[noisy]))
        return result

    def time_of_log_snr(self, log_snr: ArrayLike) -> NDArray[np.float64]:
        """Real-valued index with the given half log-SNR; +inf gives the clean end, -1.

        Raises:
            ValueError: a value is NaN or below the log-SNR of the noisy end.
        """
        lowest = float(self.log_snr(self.noisy_end))
        values = in_range(log_snr, lowest, np.inf, "log_snr of this vp schedule")
        log_bar = -np.logaddexp(0.0, -2.0 * values)  # alphabar = sigmoid(2 lambda)
        knots, last = self._log_knots, self._log_bar[-2]
        times = np.interp(-log_bar, -self._log_bar[:knots], self._times[:knots])
        if knots < self._log_bar.size:
            times = np.where(log_bar < last, self.noisy_end - np.exp(0.5 * np.minimum(log_bar - last, 0.0)), times)
        return np.asarray(times, dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """``{"name": "vp", "alphas_cumprod": [...]}``."""
        return {"name": self.name, "alphas_cumprod": self.alphas_cumprod.tolist()}

    def _interpolated(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        knots = self._log_knots
        log_bar = np.asarray(np.interp(times, self._times[:knots], self._log_bar[:knots]), dtype=np.float64)
        if knots < self._log_bar.size:
            with np.errstate(divide="ignore"):
                log_bar += 2.0 * np.log(np.minimum(self.noisy_end - times, 1.0))  # alpha linear down to 0
        return log_bar

    @property
    def _log_knots(self) -> int:
        """How many knots have a finite log alphabar: all, or all but the last."""
        return self._log_bar.size - int(self.alphas_cumprod[-1] == 0)

    @staticmethod
    def _at_index_or(
        times: NDArray[np.float64], table: NDArray[np.float64], between: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        index = np.rint(times)
        return np.asarray(np.where(index == times, table[index.astype(np.int64) + 1], between), dtype=np.float64)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VPSchedule) and np.array_equal(self.alphas_cumprod, other.alphas_cumprod)

    def __hash__(self) -> int:
        return hash((self.name, self.alphas_cumprod.tobytes()))

    def __repr__(self) -> str:
        bar = self.alphas_cumprod
        return f"VPSchedule(num_train_timesteps={bar.size}, alphas_cumprod={bar[0]:.6g} .. {bar[-1]:.6g})"

    def __reduce__(self) -> tuple[type[VPSchedule], tuple[NDArray[np.float64]]]:
        return VPSchedule, (self.alphas_cumprod,)  # through the constructor, so that the tables stay read-only
