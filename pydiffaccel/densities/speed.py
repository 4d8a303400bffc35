"""Fewer training times from where the noise level has converged (2405.17403)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pydiffaccel.densities.base import Chain, TimeDensity
from pydiffaccel.forward import Process
from pydiffaccel.schedule.slope import noise_slope

__all__ = ["SpeedDensity"]


@dataclass(frozen=True)
class SpeedDensity(TimeDensity):
    """Asymmetric sampling as in SpeeD (2405.17403): fewer times from where the noise level has converged.

    Up to the last time at which sigma changes by at least ``threshold`` (per unit of time, which is 1 for the whole of
    it), a time is ``suppression`` times as likely as after it. The defaults are those of the published code for 1000
    indices: slopes below 1e-4 per index, weights 2.5 and 0.5. That code also draws half of a batch as partners of the
    other half, at a reflected time; that is not done here, since it makes draws depend on the split of a batch.

    Args:
        process: VPProcess or KLProcess. The noise level of flow matching changes at a constant rate, to the end.
        suppression: how many times as likely the earlier times are, at least 1; 1 is uniform, bit for bit.
        threshold: slope of sigma below which it has converged, positive.
        importance: whether ``weights`` makes up for the density.

    Raises:
        TypeError: process is no Process.
        ValueError: a value out of its range, an EDM process, or no time that has converged or none that has not.
    """

    process: Process
    suppression: float = 5.0
    threshold: float = 0.1
    importance: bool = False
    _chain: Chain | None = field(init=False, repr=False, compare=False)
    _border: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check_process()
        if not (self.suppression >= 1 and math.isfinite(self.suppression)):
            raise ValueError(f"suppression must be at least 1 and finite, got {self.suppression}")
        if not (self.threshold > 0 and math.isfinite(self.threshold)):
            raise ValueError(f"threshold must be positive and finite, got {self.threshold}")
        times, slopes = noise_slope(self.process.schedule)
        moving = np.flatnonzero(slopes >= self.threshold)
        if moving.size == 0 or moving[-1] == len(times) - 1:
            where = "no time" if moving.size == 0 else "the noisiest time"
            raise ValueError(
                f"asymmetric sampling needs a noise level that converges, but sigma of the process "
                f"{self.process.name!r} changes by {float(slopes[-1]):.3g} per unit of time at its end and {where} is "
                f"above the threshold {self.threshold:g}"
            )
        border = int(moving[-1]) + 1
        chain = None
        if self.process.schedule.num_train_timesteps is not None:
            mass = torch.ones(len(times), dtype=torch.float64)
            mass[:border] = self.suppression
            chain = Chain(mass)
        object.__setattr__(self, "_chain", chain)
        object.__setattr__(self, "_border", float(times[border]))

    @property
    def border(self) -> float:
        """The first time of the convergence area."""
        return self._border

    def sample(
        self, step: int, n: int, seed: int = 0, first_sample: int = 0, device: torch.device | str | None = None
    ) -> Tensor:
        """n times, as ``TimeDensity.sample``; at suppression 1 those of the process itself.

        Raises:
            ValueError: step < 0.
        """
        if self.suppression == 1 and step >= 0:
            return self.process.sample_timesteps(n, seed=seed, step=step, first_sample=first_sample, device=device)
        return super().sample(step, n, seed, first_sample, device)

    @property
    def _split(self) -> tuple[float, float]:
        """The part of time before the border, and the density after it over that of uniform times."""
        first, last = self._ends
        part = (self._border - first) / (last - first)
        return part, 1 / (self.suppression * part + 1 - part)

    def _invert(self, u: Tensor) -> Tensor:
        first, last = self._ends
        part, after = self._split
        before = self.suppression * after
        unit = torch.where(u < before * part, u / before, part + (u - before * part) / after)
        return first + (last - first) * unit.clamp(max=1.0)

    def _relative(self, t: Tensor) -> Tensor:
        _, after = self._split
        return torch.where(t < self._border, self.suppression * after, after).to(t)
