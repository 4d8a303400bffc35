"""The variance-preserving schedule of a stochastic differential equation (2011.13456)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pydiffaccel._numbers import in_range
from pydiffaccel.schedule._rates import RATES, ConstantRate, CosineRate, LinearRate
from pydiffaccel.schedule.base import Schedule

__all__ = ["ContinuousVPSchedule"]

# Training starts at this part of T unless told otherwise: below it the noise is lost in the data.
_FIRST = 1e-3


@dataclass(frozen=True, repr=False)
class ContinuousVPSchedule(Schedule):
    """Variance-preserving noise of dx = -beta(t) / 2 x dt + sqrt(beta(t)) dW on [0, T] (2011.13456, equation 11).

    alpha = exp(-B / 2) and sigma^2 = 1 - exp(-B) with B(t) the integral of beta. Time 0 is the data, T the noisy end.
    Made by ``constant``, ``linear`` or ``cosine``.

    Attributes:
        rate: beta and its integral; they carry T.
        t_min: the least time that training draws and that a solver evaluates, in (0, T).

    Raises:
        TypeError: a number is none.
        ValueError: T, a rate or t_min is not positive and finite, or t_min is not below T.
    """

    name: ClassVar[str] = "continuous_vp"

    rate: ConstantRate | LinearRate | CosineRate
    t_min: float

    def __post_init__(self) -> None:
        if not isinstance(self.rate, tuple(RATES.values())):
            raise TypeError(f"rate must be a noise rate, got {type(self.rate).__name__}; use .linear(), for example")
        if isinstance(self.t_min, bool) or not isinstance(self.t_min, (int, float)):
            raise TypeError(f"t_min must be a number, got {type(self.t_min).__name__}")
        if not 0 < self.t_min < self.T:
            raise ValueError(f"t_min must lie between 0 and T = {self.T:g}, got {self.t_min}")
        object.__setattr__(self, "t_min", float(self.t_min))
        with np.errstate(over="ignore"):
            noise = float(self.integral(self.T))
        if not math.isfinite(noise):
            raise ValueError(f"beta must have a finite integral over [0, {self.T:g}]")

    @classmethod
    def constant(cls, beta: float, T: float = 1.0, *, t_min: float | None = None) -> ContinuousVPSchedule:
        """beta(t) = beta. t_min is T / 1000 by default."""
        return cls._of(ConstantRate(T, beta), t_min)

    @classmethod
    def linear(
        cls, beta_min: float = 0.1, beta_max: float = 20.0, T: float = 1.0, *, t_min: float | None = None
    ) -> ContinuousVPSchedule:
        """beta(t) = beta_min + (beta_max - beta_min) t / T (2011.13456, appendix C). t_min is T / 1000 by default."""
        return cls._of(LinearRate(T, beta_min, beta_max), t_min)

    @classmethod
    def cosine(
        cls, s: float = 0.008, end: float = 0.9946, T: float = 1.0, *, t_min: float | None = None
    ) -> ContinuousVPSchedule:
        """alphabar(t) falls as cos^2 of (s + end t / T) / (1 + s) pi / 2 (2102.09672, equation 17).

        It stops at `end` of the quarter wave, before the signal is gone and beta infinite; the default is the time at
        which the code of DPM-Solver (2206.00927) stops. t_min is T / 1000 by default.
        """
        return cls._of(CosineRate(T, s, end), t_min)

    @classmethod
    def _of(cls, rate: ConstantRate | LinearRate | CosineRate, t_min: float | None) -> ContinuousVPSchedule:
        return cls(rate, _FIRST * rate.T if t_min is None else t_min)

    @property
    def kind(self) -> str:
        """ "vp"."""
        return "vp"

    @property
    def T(self) -> float:
        """The noisy end of time."""
        return self.rate.T

    @property
    def noisy_end(self) -> float:
        """T."""
        return self.rate.T

    @property
    def clean_end(self) -> float:
        """0."""
        return 0.0

    @property
    def cleanest_time(self) -> float:
        """t_min."""
        return self.t_min

    def beta(self, t: ArrayLike) -> NDArray[np.float64]:
        """The noise rate at time t, per unit of time."""
        return np.asarray(self.rate.beta(self._checked_time(t), np), dtype=np.float64)

    def integral(self, t: ArrayLike) -> NDArray[np.float64]:
        """B(t), the integral of beta from 0 to t: -log alphabar."""
        return np.asarray(self.rate.integral(self._checked_time(t), np), dtype=np.float64)

    def alpha(self, t: ArrayLike) -> NDArray[np.float64]:
        """exp(-B / 2)."""
        return np.asarray(np.exp(-0.5 * self.integral(t)), dtype=np.float64)

    def sigma(self, t: ArrayLike) -> NDArray[np.float64]:
        """sqrt(1 - exp(-B))."""
        return np.asarray(np.sqrt(-np.expm1(-self.integral(t))), dtype=np.float64)

    def log_snr(self, t: ArrayLike) -> NDArray[np.float64]:
        """Half log-SNR; strictly decreasing in t, +inf at time 0."""
        integral = self.integral(t)
        result = np.full_like(integral, np.inf)
        noisy = integral > 0
        # log(exp(B) - 1) = B + log(1 - exp(-B)), which does not overflow.
        result[noisy] = -0.5 * (integral[noisy] + np.log(-np.expm1(-integral[noisy])))
        return result

    def time_of_log_snr(self, log_snr: ArrayLike) -> NDArray[np.float64]:
        """The time of B = log(1 + exp(-2 lambda)); +inf gives 0.

        Raises:
            ValueError: a value is NaN or below the log-SNR of the noisy end.
        """
        values = in_range(log_snr, float(self.log_snr(self.T)), np.inf, f"log_snr of this {self.name} schedule")
        return np.asarray(np.clip(self.rate.time(np.logaddexp(0.0, -2.0 * values)), 0.0, self.T), dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """``{"name": "continuous_vp", "shape", "t_min"}`` and the parameters of the shape, T among them."""
        return {"name": self.name, "shape": self.rate.shape, "t_min": self.t_min, **asdict(self.rate)}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> ContinuousVPSchedule:
        """The schedule that ``to_dict`` described.

        Raises:
            ValueError: an unknown shape, or a field is missing, unknown or invalid.
        """
        if d.get("shape") not in RATES:
            raise ValueError(f"unknown shape {d.get('shape')!r} of a {cls.name} schedule; known: {', '.join(RATES)}")
        rate = RATES[d["shape"]]
        names = {item.name for item in fields(rate)}
        expected = names | {"name", "shape", "t_min"}
        if set(d) != expected:
            raise ValueError(f"a {d['shape']} {cls.name} schedule has the fields {sorted(expected)}, got {sorted(d)}")
        return cls(rate(**{name: d[name] for name in names}), d["t_min"])

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value:g}" for name, value in asdict(self.rate).items())
        return f"ContinuousVPSchedule.{self.rate.shape}({settings}, t_min={self.t_min:g})"
