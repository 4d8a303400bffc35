"""Laws of the share of noise that training times are drawn by (2403.03206, section 3.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["CosMap", "Law", "LogitNormal", "Mode"]

# The greatest scale at which the map of ``Mode`` rises everywhere.
MAX_MODE_SCALE = 2 / (math.pi - 2)
_HALVINGS = 60


class Law(Protocol):
    """A distribution of the fraction of noise, r = sigma / (alpha + sigma), on [0, 1]."""

    def cdf(self, r: Tensor) -> Tensor:
        """P(fraction <= r), float64."""

    def quantile(self, u: Tensor) -> Tensor:
        """The inverse of ``cdf``."""

    def density(self, r: Tensor) -> Tensor:
        """The derivative of ``cdf``."""

    def reflected(self) -> Law:
        """The law of 1 - r, the fraction of data."""


@dataclass(frozen=True)
class LogitNormal:
    """logit(r) is normal (2403.03206, section 3.1): most times where noise and data are mixed.

    Args:
        mean: of the logit; positive is noisier.
        std: of the logit, positive.

    Raises:
        ValueError: mean is not finite, or std not positive and finite.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean):
            raise ValueError(f"mean must be finite, got {self.mean}")
        if not (self.std > 0 and math.isfinite(self.std)):
            raise ValueError(f"std must be positive and finite, got {self.std}")

    def cdf(self, r: Tensor) -> Tensor:
        """Phi((logit(r) - mean) / std)."""
        # By erfc, which is accurate in the lower tail; torch's ndtr is not.
        below: Tensor = 0.5 * torch.special.erfc((self.mean - r.logit()) / (self.std * math.sqrt(2)))
        return below

    def quantile(self, u: Tensor) -> Tensor:
        """The logistic function of a normal quantile."""
        # Not torch.sigmoid, whose last bit depends on the place in the tensor: draws must not depend on the batch.
        return 1 / (1 + torch.exp(-self.mean - self.std * torch.special.ndtri(u)))

    def density(self, r: Tensor) -> Tensor:
        """The normal density of the logit over r (1 - r); 0 at both ends."""
        z = (r.logit() - self.mean) / self.std
        inside = (r > 0) & (r < 1)
        scale = self.std * math.sqrt(2 * math.pi)
        return torch.where(inside, torch.exp(-0.5 * z.square()) / (scale * r * (1 - r)), 0.0)

    def reflected(self) -> LogitNormal:
        """Of the opposite mean."""
        return LogitNormal(-self.mean, self.std)


@dataclass(frozen=True)
class Mode:
    """r = 1 - u - s (cos^2(pi u / 2) - 1 + u) for uniform u (2403.03206, section 3.1): no time is left out.

    Args:
        scale: s in [-1, 2 / (pi - 2)]. Positive has more times in the middle, negative more at the ends; 0 is uniform.
            1.29 is the default of diffusers' scripts.

    Raises:
        ValueError: scale out of its range.
    """

    scale: float = 1.29

    def __post_init__(self) -> None:
        if not -1 <= self.scale <= MAX_MODE_SCALE:
            raise ValueError(f"scale must lie in [-1, 2 / (pi - 2)] = [-1, {MAX_MODE_SCALE:.4f}], got {self.scale}")

    def quantile(self, u: Tensor) -> Tensor:
        """The map at 1 - u, which rises with u; u itself, bit for bit, at scale 0."""
        # cos^2(pi (1 - u) / 2) = sin^2(pi u / 2).
        return u + self.scale * (u - torch.sin(u * (math.pi / 2)).square())

    def _slope(self, u: Tensor) -> Tensor:
        return 1 + self.scale * (1 - (math.pi / 2) * torch.sin(u * math.pi))

    def cdf(self, r: Tensor) -> Tensor:
        """The inverse of the map, by bisection."""
        low, high = torch.zeros_like(r), torch.ones_like(r)
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            above = self.quantile(middle) > r
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return torch.where(r >= 1, 1.0, torch.where(r <= 0, 0.0, 0.5 * (low + high)))

    def density(self, r: Tensor) -> Tensor:
        """One over the slope of the map."""
        return self._slope(self.cdf(r)).reciprocal()

    def reflected(self) -> Mode:
        """The same: the map is antisymmetric about 1 / 2."""
        return self


@dataclass(frozen=True)
class CosMap:
    """Density 2 / (pi (1 - 2 r + 2 r^2)): the log-SNR of the cosine schedule (2403.03206, section 3.1)."""

    def cdf(self, r: Tensor) -> Tensor:
        """(2 / pi) atan(r / (1 - r))."""
        return torch.atan2(r, 1 - r) * (2 / math.pi)

    def quantile(self, u: Tensor) -> Tensor:
        """tan(pi u / 2) / (1 + tan(pi u / 2))."""
        angle = u * (math.pi / 2)
        return torch.sin(angle) / (torch.sin(angle) + torch.cos(angle))

    def density(self, r: Tensor) -> Tensor:
        """2 / (pi ((1 - r)^2 + r^2))."""
        return 2 / (math.pi * ((1 - r).square() + r.square()))

    def reflected(self) -> CosMap:
        """The same."""
        return self
