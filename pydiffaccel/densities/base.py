"""What every density of training times shares: draws, weights, the indices of a chain."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor

from pydiffaccel.forward.process import Process, timestep_uniforms

__all__ = ["Chain", "TimeDensity", "TimeDistribution"]


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
    _chain: Chain | None  # None on continuous time

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


class Chain:
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
