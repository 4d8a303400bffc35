"""Fixed distributions of training times: those of Stable Diffusion 3 (2403.03206), and SpeeD's (2405.17403)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pydiffaccel.forward.process import Process, timestep_uniforms
from pydiffaccel.schedule.slope import noise_slope

__all__ = ["CosMap", "LogitNormal", "Mode", "NoiseDensity", "SpeedDensity", "TimeDensity", "TimeDistribution"]

# The greatest scale at which the map of ``Mode`` rises everywhere.
MAX_MODE_SCALE = 2 / (math.pi - 2)
_HALVINGS = 60
# Step of a difference quotient, over the whole of time.
_STEP = 1e-6


class TimeDistribution(Protocol):
    """What a training loop asks of a distribution of times: curricula and densities have it."""

    @property
    def importance(self) -> bool:
        """Whether ``weights`` are other than 1."""

    def sample(
        self, step: int, n: int, seed: int = 0, first_sample: int = 0, device: torch.device | str | None = None
    ) -> Tensor:
        """n times: time j is a pure function of (seed, step, first_sample + j)."""

    def weights(self, step: int, t: Tensor) -> Tensor:
        """The factor of each sample's loss, of t's shape."""


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


class TimeDensity(ABC):
    """A distribution of a process' training times that stays the same over training.

    Times are drawn by inverting the distribution at the draws of ``Process.sample_timesteps``, on the CPU, so that
    every device gets the same ones: time j is a pure function of (seed, step, first_sample + j).

    Attributes:
        process: with uniform training times: FlowProcess, VPProcess or KLProcess.
        importance: whether ``weights`` makes up for the density, so that the expected loss is that of uniform times.
    """

    process: Process
    importance: bool
    _chain: _Chain | None  # None on continuous time

    @abstractmethod
    def _relative(self, t: Tensor) -> Tensor:
        """``density`` on continuous time, for float64 t."""

    @abstractmethod
    def _invert(self, u: Tensor) -> Tensor:
        """The times on continuous time that the draws u ``[n]`` stand for."""

    def probabilities(self) -> Tensor:
        """The probability of each index of a chain, float64 ``[T]`` on the CPU, of sum 1.

        Raises:
            ValueError: the process is on continuous time, which has a density only.
        """
        if self._chain is None:
            raise ValueError("a density on continuous time has no probabilities of indices; use density(t)")
        return self._chain.probabilities

    def density(self, t: Tensor) -> Tensor:
        """The density at times t of any shape over that of uniform times, float64 on t's device.

        Raises:
            TypeError: t has a dtype that the process' times cannot have.
        """
        self._check_dtype(t)
        return self._relative(t.double()) if self._chain is None else self._chain.density(t)

    def sample(
        self, step: int, n: int, seed: int = 0, first_sample: int = 0, device: torch.device | str | None = None
    ) -> Tensor:
        """n times, int64 ``[n]`` indices or float64 ``[n]``.

        Raises:
            ValueError: step < 0.
        """
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        u = timestep_uniforms(n, seed, step, first_sample)
        return (self._invert(u) if self._chain is None else self._chain.indices(u)).to(device)

    def weights(self, step: int, t: Tensor) -> Tensor:
        """The factor of each sample's loss, float32 of t's shape: 1 / ``density`` with importance, else 1.

        Raises:
            TypeError: t has a dtype that the process' times cannot have.
        """
        self._check_dtype(t)
        return self.density(t).reciprocal().float() if self.importance else torch.ones(t.shape, device=t.device)

    @property
    def _ends(self) -> tuple[float, float]:
        """The range that times on continuous time are drawn from."""
        schedule = self.process.schedule
        first, last = sorted((schedule.cleanest_time, schedule.noisy_end))
        return first, last

    def _check_process(self) -> None:
        if not isinstance(self.process, Process):
            raise TypeError(f"process must be a Process, got {type(self.process).__name__}")
        if self.process.schedule.kind == "edm":
            raise ValueError(
                "a density of times needs a process with uniform times, but an edm process has a log-normal one of its "
                "own: set its p_mean and p_std"
            )

    def _check_dtype(self, t: Tensor) -> None:
        if (self._chain is None) != t.is_floating_point():
            kind = "floating-point times" if self._chain is None else "integer indices"
            raise TypeError(f"t must hold {kind}, got dtype {t.dtype}")


class _Chain:
    """Probabilities of the indices of a chain, and what follows from them."""

    def __init__(self, mass: Tensor) -> None:
        self.probabilities = mass / mass.sum()
        # Index t has the draws from P(< t) up to P(<= t). The last bound is 1 up to rounding: none lies above it.
        self._bounds = self.probabilities.cumsum(0)[:-1]
        self._density = {torch.device("cpu"): len(mass) * self.probabilities}

    def indices(self, u: Tensor) -> Tensor:
        """The indices that draws stand for."""
        return torch.searchsorted(self._bounds, u, right=True)

    def density(self, t: Tensor) -> Tensor:
        """The probabilities of indices t over 1 / T."""
        if t.device not in self._density:  # one copy per device, so that a training step copies nothing
            self._density[t.device] = self._density[torch.device("cpu")].to(t.device)
        return self._density[t.device][t.long()]


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
    _chain: _Chain | None = field(init=False, repr=False, compare=False)
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
        object.__setattr__(self, "_chain", _Chain(below.diff().clamp(min=0)) if on_chain else None)
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
    _chain: _Chain | None = field(init=False, repr=False, compare=False)
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
            chain = _Chain(mass)
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
