"""Training times by their share of noise."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pydiffaccel.densities.base import Chain, TimeDensity
from pydiffaccel.densities.laws import CosMap, LogitNormal, Mode
from pydiffaccel.forward import Process

__all__ = ["NoiseDensity"]

# Step of a difference quotient, over the whole of time.
_STEP = 1e-6


@dataclass(frozen=True)
class NoiseDensity(TimeDensity):
    """Training times whose fraction of noise, r = sigma / (alpha + sigma), has a given law.

    For flow matching r = 1 - t, and this is the density of Stable Diffusion 3. Another process' time stands for the
    time of flow matching with the same log-SNR, -logit(r) (ours); the law is cut to the noise levels that the process
    trains on. On a chain an index has the probability of the levels up to the middles towards its neighbours.

    Args:
        process: FlowProcess, VPProcess or KLProcess.
        law: ``LogitNormal``, ``Mode`` or ``CosMap``.
        importance: whether ``weights`` makes up for the density. Where it vanishes towards an end, as a logit-normal
            one does, those weights are unbiased and unbounded.

    Raises:
        TypeError: process is no Process, or law none of the three.
        ValueError: an EDM process, or a law that lies outside of the process' noise levels.
    """

    process: Process
    law: LogitNormal | Mode | CosMap
    importance: bool = False
    _chain: Chain | None = field(init=False, repr=False, compare=False)
    _low: float = field(init=False, repr=False, compare=False)  # the law below the least noisy time
    _high: float = field(init=False, repr=False, compare=False)  # and up to the noisiest one

    def __post_init__(self) -> None:
        self._check_process()
        if not isinstance(self.law, (LogitNormal, Mode, CosMap)):
            raise TypeError(f"law must be LogitNormal, Mode or CosMap, got {type(self.law).__name__}")
        below = self.law.cdf(_fraction(self._level_bounds()))
        if not below[-1] - below[0] > 1e-12:
            raise ValueError(f"{self.law} lies outside of the process' noise levels")
        on_chain = self.process.schedule.num_train_timesteps is not None
        object.__setattr__(self, "_chain", Chain(below.diff().clamp(min=0)) if on_chain else None)
        object.__setattr__(self, "_low", float(below[0]))
        object.__setattr__(self, "_high", float(below[-1]))

    def _level_bounds(self) -> Tensor:
        """log-SNR, falling: at the ends of continuous time, or around every index of a chain, ``[T + 1]``."""
        schedule = self.process.schedule
        count = schedule.num_train_timesteps
        if count is None:
            return torch.from_numpy(schedule.log_snr([schedule.cleanest_time, schedule.noisy_end]))
        bounds = schedule.log_snr(np.arange(count) - 0.5)
        last = schedule.log_snr(schedule.noisy_end)
        # As far beyond the last index as the middle lies before it.
        return torch.from_numpy(np.append(bounds, 2 * last - bounds[-1]))

    def _invert(self, u: Tensor) -> Tensor:
        schedule = self.process.schedule
        if schedule.kind == "flow":
            return self.law.reflected().quantile(u)
        r = self.law.quantile(self._low + (self._high - self._low) * u)
        cleanest, noisiest = schedule.log_snr([schedule.cleanest_time, schedule.noisy_end])
        levels = np.clip(-torch.logit(r).numpy(), noisiest, cleanest)
        return torch.from_numpy(np.clip(schedule.time_of_log_snr(levels), *self._ends))

    def _relative(self, t: Tensor) -> Tensor:
        if self.process.schedule.kind == "flow":
            return self.law.reflected().density(t)
        first, last = self._ends
        step = _STEP * (last - first)
        before, after = (t - step).clamp(min=self.process.schedule.clean_end), (t + step).clamp(max=last)
        r, low, high = (self._fraction_at(time) for time in (t, before, after))
        change = (high - low) / (after - before)
        return self.law.density(r) * change * ((last - first) / (self._high - self._low))

    def _fraction_at(self, t: Tensor) -> Tensor:
        alpha, sigma = (level.view(t.shape) for level in self.process.levels(t.flatten()))
        return sigma / (alpha + sigma)


def _fraction(log_snr: Tensor) -> Tensor:
    """sigma / (alpha + sigma) where log(alpha / sigma) is given."""
    return torch.sigmoid(-log_snr)
