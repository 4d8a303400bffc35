"""A curriculum over training times: from uniform towards those that matter most (2404.07946)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pydiffaccel.forward.process import Process, timestep_uniforms, uniform_indices
from pydiffaccel.schedule import VPSchedule

__all__ = ["ContinuousCurriculum", "TimestepCurriculum"]

# Cells of equal length that the density over continuous time is constant on.
_CELLS = 4096


class _Mixture:
    """What both curricula share: the checks of their settings and the weight of the Gaussian."""

    total_steps: int
    mu: float
    width: float
    max_weight: float

    def _check(self, **counts: int) -> None:
        for name, value in {**counts, "total_steps": self.total_steps}.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {type(value).__name__}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not math.isfinite(self.mu):
            raise ValueError(f"mu must be finite, got {self.mu}")
        if not (self.width > 0 and math.isfinite(self.width)):
            raise ValueError(f"width must be positive and finite, got {self.width}")
        if not 0 <= self.max_weight <= 1:
            raise ValueError(f"max_weight must lie in [0, 1], got {self.max_weight}")

    def mixing(self, step: int) -> float:
        """w_i, the weight of the Gaussian at a step.

        Raises:
            ValueError: step < 0.
        """
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        return self.max_weight * min(1.0, step / self.total_steps)


@dataclass(frozen=True)
class TimestepCurriculum(_Mixture):
    """Training indices from p_i(t) = (1 - w_i) / T + w_i g(t) at step i, with w_i = max_weight min(1, i / total_steps).

    g is a Gaussian over the indices 0 .. T-1, normalised there. The paper gives its centre, 0.3 T, and not its width.
    The distribution is a pure function of the step, so nothing is saved and a resumed run continues it exactly.

    Args:
        num_train_timesteps: T, at least 1.
        total_steps: I, after which the weight stays; at least 1.
        mu: centre of g over T; any finite number.
        width: standard deviation of g over T, positive.
        max_weight: the final weight, in [0, 1]. 0 is the plain process' ``sample_timesteps``, bit for bit.
        importance: whether ``weights`` makes up for the changed distribution, so that the expected loss is the
            uniform one.

    Raises:
        TypeError: num_train_timesteps or total_steps is no int.
        ValueError: a value out of its range.
    """

    num_train_timesteps: int
    total_steps: int
    mu: float = 0.3
    width: float = 0.3
    max_weight: float = 1.0
    importance: bool = False

    def __post_init__(self) -> None:
        self._check(num_train_timesteps=self.num_train_timesteps)

    def probabilities(self, step: int) -> Tensor:
        """p_i, float64 ``[T]`` on the CPU, of sum 1.

        Raises:
            ValueError: step < 0.
        """
        w = self.mixing(step)
        return (1 - w) / self.num_train_timesteps + w * self._gaussian()

    def sample(
        self,
        step: int,
        n: int,
        seed: int = 0,
        first_sample: int = 0,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """n indices from p_i, int64 ``[n]``: index j is a pure function of (seed, step, first_sample + j).

        They invert the distribution at the draws of ``Process.sample_timesteps``, on the CPU, so that every device
        gets the same ones.

        Raises:
            ValueError: step < 0.
        """
        w = self.mixing(step)
        u = timestep_uniforms(n, seed, step, first_sample)
        if w == 0:
            indices = uniform_indices(u, self.num_train_timesteps)
        else:
            # Index t has the draws from P(< t) up to P(<= t). The last bound is 1 up to rounding: none lies above it.
            bounds = self.probabilities(step).cumsum(0)[:-1]
            indices = torch.searchsorted(bounds, u, right=True)
        return indices.to(device)

    def weights(self, step: int, t: Tensor) -> Tensor:
        """The factor of each sample's loss, float32 ``[n]`` on t's device: 1 / (T p_i(t)) with importance, else 1.

        Raises:
            TypeError: t does not hold integers.
            ValueError: step < 0.
        """
        if t.is_floating_point():
            raise TypeError(f"t must hold integer indices, got dtype {t.dtype}")
        w = self.mixing(step)
        if not self.importance or w == 0:
            return torch.ones(t.shape, device=t.device)
        density = self.num_train_timesteps * self.probabilities(step)
        return density.reciprocal().float().to(t.device)[t]

    def _gaussian(self) -> Tensor:
        """g, float64 ``[T]``, of sum 1."""
        t = torch.arange(self.num_train_timesteps, dtype=torch.float64)
        exponent = -0.5 * ((t - self.mu * self.num_train_timesteps) / (self.width * self.num_train_timesteps)) ** 2
        return exponent.softmax(0)


@dataclass(frozen=True)
class ContinuousCurriculum(_Mixture):
    """The curriculum for processes on continuous time: its Gaussian lies where the log-SNR is that of a DDPM's indices.

    The paper's g is over the indices of a DDPM. A time of another process stands for the index with the same log-SNR
    (ours; by the value of time itself the curriculum would name other noise levels for each process). So at step i
    p_i = (1 - w_i) uniform + w_i g, with g the law of the process' time when the index is Gaussian on [0, T - 1].
    The density is constant on 4096 cells of equal length, which both draws and weights use. Where the log-SNR is beyond
    the reference's, g is 0: at weight 1 such times are not drawn, and importance weights cannot make up for them.

    Args:
        process: on continuous time and with uniform training times: FlowProcess, or VPProcess or KLProcess on a
            ContinuousVPSchedule.
        total_steps, mu, width, max_weight, importance: as in ``TimestepCurriculum``; mu and width over T, that of the
            reference. max_weight 0 is the process' ``sample_timesteps``, bit for bit.
        reference: the chain whose indices mu and width are about; by default that of DDPM.

    Raises:
        TypeError: process is no Process, or total_steps no int.
        ValueError: a process on discrete time or without uniform times, a value out of its range, or a Gaussian that
            lies outside of the process' noise levels.
    """

    process: Process
    total_steps: int
    mu: float = 0.3
    width: float = 0.3
    max_weight: float = 1.0
    importance: bool = False
    reference: VPSchedule = field(default_factory=VPSchedule.linear)
    _mass: Tensor = field(init=False, repr=False, compare=False)  # of g in each cell

    def __post_init__(self) -> None:
        if not isinstance(self.process, Process):
            raise TypeError(f"process must be a Process, got {type(self.process).__name__}")
        schedule = self.process.schedule
        if schedule.kind == "edm" or schedule.num_train_timesteps is not None:
            raise ValueError(
                f"a continuous curriculum needs uniform times on continuous time, got the process {self.process.name!r}"
                f" on a {schedule.name} schedule"
            )
        self._check()
        first, last = self._ends
        noisiest, cleanest = self.reference.log_snr([self.reference.noisy_end, self.reference.cleanest_time])
        levels = np.clip(schedule.log_snr(np.linspace(first, last, _CELLS + 1)), noisiest, cleanest)
        index = torch.from_numpy(self.reference.time_of_log_snr(levels))
        total = self.reference.num_train_timesteps
        mass = torch.special.ndtr((index - self.mu * total) / (self.width * total)).diff().abs()
        if not mass.sum() > 1e-12:
            raise ValueError(
                f"the Gaussian of mu {self.mu:g} and width {self.width:g} lies outside of the process' noise levels"
            )
        object.__setattr__(self, "_mass", mass / mass.sum())

    def probabilities(self, step: int) -> Tensor:
        """p_i of each cell, float64 ``[4096]`` on the CPU, of sum 1, in the order of time.

        Raises:
            ValueError: step < 0.
        """
        w = self.mixing(step)
        return (1 - w) / _CELLS + w * self._mass

    def sample(
        self,
        step: int,
        n: int,
        seed: int = 0,
        first_sample: int = 0,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """n times from p_i, float64 ``[n]``: time j is a pure function of (seed, step, first_sample + j).

        They invert the distribution at the draws of ``Process.sample_timesteps``, on the CPU.

        Raises:
            ValueError: step < 0.
        """
        if self.mixing(step) == 0:
            return self.process.sample_timesteps(n, seed=seed, step=step, first_sample=first_sample, device=device)
        p = self.probabilities(step)
        below = torch.cat([p.new_zeros(1), p.cumsum(0)[:-1]])
        u = timestep_uniforms(n, seed, step, first_sample)
        # The last cell that is ever drawn: its upper bound is 1 up to rounding.
        cell = (torch.searchsorted(below, u, right=True) - 1).clamp(max=int(p.nonzero().max()))
        inside = ((u - below[cell]) / p[cell]).clamp(0.0, 1.0 - 1e-9)  # rounding must not reach the next cell
        first, last = self._ends
        return (first + (last - first) * ((cell + inside) / _CELLS)).to(device)

    def weights(self, step: int, t: Tensor) -> Tensor:
        """The factor of each sample's loss, float32, of t's shape: uniform density over p_i with importance, else 1.

        Raises:
            TypeError: t does not hold floating-point times.
            ValueError: step < 0.
        """
        if not t.is_floating_point():
            raise TypeError(f"t must hold floating-point times, got dtype {t.dtype}")
        if not self.importance or self.mixing(step) == 0:
            return torch.ones(t.shape, device=t.device)
        first, last = self._ends
        cell = ((t.double() - first) / (last - first) * _CELLS).long().clamp(0, _CELLS - 1)
        return (_CELLS * self.probabilities(step)).reciprocal().float().to(t.device)[cell]

    @property
    def _ends(self) -> tuple[float, float]:
        """The range that training times are drawn from."""
        schedule = self.process.schedule
        first, last = sorted((schedule.cleanest_time, schedule.noisy_end))
        return first, last
