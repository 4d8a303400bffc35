"""A curriculum over training times: from uniform towards those that matter most (2404.07946)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pydiffaccel.forward.process import timestep_uniforms, uniform_indices

__all__ = ["TimestepCurriculum"]


@dataclass(frozen=True)
class TimestepCurriculum:
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
        for name in ("num_train_timesteps", "total_steps"):
            value = getattr(self, name)
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
