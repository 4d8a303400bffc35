"""Noise rates beta(t) on [0, T] and their integrals B(t), over NumPy arrays and torch tensors alike.

The functions take the namespace that they compute in (``numpy`` or ``torch``), so that a formula is written once: NumPy
for plans and tables on the host, torch for training times on their device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["RATES", "ChainRate", "ConstantRate", "CosineRate", "LinearRate", "Rate"]

# numpy.ndarray or torch.Tensor, float64; the modules have no common type.
Array: TypeAlias = Any
Namespace: TypeAlias = Any


class Rate(Protocol):
    """beta(t) > 0 on [0, T] and B(t) = int_0^t beta, each elementwise."""

    @property
    def T(self) -> float:
        """The noisy end of time."""

    def beta(self, t: Array, xp: Namespace) -> Array:
        """The rate at t."""

    def integral(self, t: Array, xp: Namespace) -> Array:
        """B(t), accurate relative to itself near t = 0."""


@dataclass(frozen=True)
class ConstantRate:
    """beta."""

    shape: ClassVar[str] = "constant"
    T: float
    rate: float

    def __post_init__(self) -> None:
        _positive(self, T="T", rate="beta")

    def beta(self, t: Array, xp: Namespace) -> Array:
        """The rate at t."""
        return self.rate + 0.0 * t

    def integral(self, t: Array, xp: Namespace) -> Array:
        """beta t."""
        return self.rate * t

    def time(self, integral: Array) -> Array:
        """The inverse of ``integral``, NumPy."""
        return integral / self.rate


@dataclass(frozen=True)
class LinearRate:
    """beta_min + (beta_max - beta_min) t / T."""

    shape: ClassVar[str] = "linear"
    T: float
    beta_min: float
    beta_max: float

    def __post_init__(self) -> None:
        _positive(self, T="T", beta_min="beta_min", beta_max="beta_max")

    def beta(self, t: Array, xp: Namespace) -> Array:
        """The rate at t."""
        return self.beta_min + (self.beta_max - self.beta_min) / self.T * t

    def integral(self, t: Array, xp: Namespace) -> Array:
        """beta_min t + (beta_max - beta_min) t^2 / (2 T)."""
        return (self.beta_min + 0.5 * (self.beta_max - self.beta_min) / self.T * t) * t

    def time(self, integral: Array) -> Array:
        """The inverse of ``integral``, NumPy."""
        slope = (self.beta_max - self.beta_min) / self.T
        root = np.sqrt(np.maximum(self.beta_min**2 + 2.0 * slope * integral, 0.0))
        return 2.0 * integral / (self.beta_min + root)


@dataclass(frozen=True)
class CosineRate:
    """alphabar(t) = (cos f(t) / cos f(0))^2 with f(t) = pi / 2 (s + end t / T) / (1 + s)."""

    shape: ClassVar[str] = "cosine"
    T: float
    s: float
    end: float

    def __post_init__(self) -> None:
        _positive(self, T="T", s="s", end="end")
        if self.end >= 1:
            raise ValueError(f"end must lie below 1, where no signal is left, got {self.end}")

    @property
    def _angles(self) -> tuple[float, float]:
        """f(0) and f'."""
        unit = 0.5 * math.pi / (1.0 + self.s)
        return unit * self.s, unit * self.end / self.T

    def beta(self, t: Array, xp: Namespace) -> Array:
        """2 f' tan f(t)."""
        start, speed = self._angles
        return 2.0 * speed * xp.tan(start + speed * t)

    def integral(self, t: Array, xp: Namespace) -> Array:
        """-2 log(cos f(t) / cos f(0))."""
        start, speed = self._angles
        # cos(f0 + d) / cos f0 = 1 - (2 sin^2(d / 2) + tan(f0) sin d): nothing cancels at small t.
        half = xp.sin(0.5 * speed * t)
        return -2.0 * xp.log1p(-(2.0 * half * half + math.tan(start) * xp.sin(speed * t)))

    def time(self, integral: Array) -> Array:
        """The inverse of ``integral``, NumPy."""
        start, speed = self._angles
        sin_0, cos_0 = math.sin(start), math.cos(start)
        lost = -cos_0 * np.expm1(-0.5 * integral)  # cos f(0) - cos f(t)
        cos, square = cos_0 - lost, -(cos_0**2) * np.expm1(-integral)
        sin = np.sqrt(sin_0**2 + square)
        # sin(f - f0) and cos(f - f0), from differences that do not cancel at small t.
        turned = cos_0 * square / (sin + sin_0) + sin_0 * lost
        return np.arctan2(turned, cos * cos_0 + sin * sin_0) / speed


@dataclass(frozen=True)
class ChainRate:
    """The rate of a discrete chain, NumPy only: constant on each [i, i + 1), with integral -log alphabar_i at i + 1."""

    knots: NDArray[np.float64]

    @classmethod
    def of(cls, alphas_cumprod: NDArray[np.float64]) -> ChainRate:
        """That of a chain with alphabar_i at index i."""
        return cls(np.concatenate(([0.0], -np.log(alphas_cumprod))))

    @property
    def T(self) -> float:
        """The number of intervals."""
        return float(self.knots.size - 1)

    def beta(self, t: Array, xp: Namespace) -> Array:
        """The rate at t."""
        return np.diff(self.knots)[np.clip(t, 0, self.T - 1).astype(np.int64)]

    def integral(self, t: Array, xp: Namespace) -> Array:
        """-log alphabar."""
        i = np.clip(t, 0, self.T - 1).astype(np.int64)
        return self.knots[i] + np.diff(self.knots)[i] * (t - i)


RATES: dict[str, type[ConstantRate | LinearRate | CosineRate]] = {
    rate.shape: rate for rate in (ConstantRate, LinearRate, CosineRate)
}


def _positive(instance: Any, /, **names: str) -> None:
    """The fields become floats; each must be finite and positive, or is called by the name that is given here."""
    for field, name in names.items():
        value = getattr(instance, field)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}")
        object.__setattr__(instance, field, float(value))
